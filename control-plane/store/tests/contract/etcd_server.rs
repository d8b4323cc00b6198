//! A real etcd for one test.

use std::{
    io::Write,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use leme_store::{Store, etcd::Etcd};

pub struct Server {
    binary: PathBuf,
    process: Child,
    directory: tempfile::TempDir,
    ports: [u16; 2],
}

impl Server {
    pub async fn start() -> Option<Self> {
        let Some(binary) = find() else {
            assert!(std::env::var("LEME_TEST_ETCD").as_deref() != Ok("1"), "LEME_TEST_ETCD=1, but no etcd binary");
            // Not eprintln!: the test runner would hide it.
            let _ =
                writeln!(std::io::stderr(), "no etcd in $LEME_ETCD or PATH: this test of the etcd engine did nothing");
            return None;
        };
        let directory = tempfile::Builder::new().prefix("store-etcd-").tempdir().unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let ports = [free(), free()].map(|listener| listener.local_addr().unwrap().port());
        let process = spawn(&binary, &directory, ports);
        let server = Self { binary, process, directory, ports };
        server.ready().await;
        Some(server)
    }

    pub async fn restart(&mut self) {
        self.stop();
        self.process = spawn(&self.binary, &self.directory, self.ports);
        self.ready().await;
    }

    pub async fn store(&self) -> Arc<dyn Store> {
        Arc::new(Etcd::connect(&[format!("http://127.0.0.1:{}", self.ports[0])], None).await.unwrap())
    }

    async fn ready(&self) {
        let store = self.store().await;
        let answers = async {
            while store.revision().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), answers).await.expect("etcd answers within 30 s");
    }

    fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("LEME_ETCD") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join("etcd")).find(|file| file.is_file())
}

fn spawn(binary: &PathBuf, directory: &tempfile::TempDir, [client, peer]: [u16; 2]) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    Command::new(binary)
        .arg("--data-dir")
        .arg(directory.path())
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd starts")
}
