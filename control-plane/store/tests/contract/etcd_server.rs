//! Real etcds for one test: one, or members of a cluster that come and go.

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
    members: Vec<Member>,
    directory: tempfile::TempDir,
}

struct Member {
    process: Option<Child>,
    client: u16,
    peer: u16,
}

impl Server {
    pub async fn start() -> Option<Self> {
        Self::start_members(1).await
    }

    pub async fn start_members(count: usize) -> Option<Self> {
        let Some(binary) = find() else {
            assert!(std::env::var("LEME_TEST_ETCD").as_deref() != Ok("1"), "LEME_TEST_ETCD=1, but no etcd binary");
            // Not eprintln!: the test runner would hide it.
            let _ =
                writeln!(std::io::stderr(), "no etcd in $LEME_ETCD or PATH: this test of the etcd engine did nothing");
            return None;
        };
        let directory = tempfile::Builder::new().prefix("store-etcd-").tempdir().unwrap();
        // All at once: a port that was let go could be given out again.
        let free: Vec<_> = (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<_> = free.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(free);
        let members = ports.chunks(2).map(|ports| Member { process: None, client: ports[0], peer: ports[1] }).collect();
        let mut server = Self { binary, members, directory };
        (0..count).for_each(|member| server.spawn(member));
        server.ready().await;
        Some(server)
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| url(member.client)).collect()
    }

    pub async fn store(&self) -> Arc<dyn Store> {
        Arc::new(Etcd::connect(&self.endpoints(), None).await.unwrap())
    }

    /// Until a leader answers for all.
    pub async fn ready(&self) {
        let store = self.store().await;
        let answers = async {
            while store.revision().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), answers).await.expect("etcd answers within 30 s");
    }

    /// kill -9
    pub fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub fn spawn(&mut self, member: usize) {
        let name = |member: usize| format!("m{member}");
        let peers: Vec<_> =
            self.members.iter().enumerate().map(|(n, member)| format!("{}={}", name(n), url(member.peer))).collect();
        let Member { client, peer, .. } = self.members[member];
        let process = Command::new(&self.binary)
            .args(["--name", &name(member), "--data-dir"])
            .arg(self.directory.path().join(name(member)))
            .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
            .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
            .args(["--initial-cluster", &peers.join(","), "--log-level", "error"])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        self.members[member].process = Some(process);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|member| self.kill(member));
    }
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("LEME_ETCD") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join("etcd")).find(|file| file.is_file())
}
