//! An acknowledged write is on disk: strace delays or refuses the server's syncs, and the answers follow the disk.
#![expect(clippy::unwrap_used, reason = "tests may")]

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const DELAY: Duration = Duration::from_millis(700);
const LIMIT: Duration = Duration::from_secs(60);

fn tool(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run `cargo xtask test cluster`")).into()
}

struct Server {
    process: Child,
    folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new(tool("LEME_BIN"))
            .args(["server", "--no-controllers", "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1"])
            .args(["--secure-port", &port.to_string(), "--data-dir"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { process, folder };
        let started = Instant::now();
        while !server.kubectl(&["get", "--raw", "/readyz"]).status.success() {
            assert!(started.elapsed() < LIMIT, "the server is not ready after {LIMIT:?}");
            thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn kubectl(&self, arguments: &[&str]) -> Output {
        let config = self.folder.path().join("admin.kubeconfig");
        Command::new(tool("LEME_KUBECTL")).env("KUBECONFIG", config).args(arguments).output().unwrap()
    }

    /// Writes one object; whether that was acknowledged.
    fn write(&self, name: &str) -> bool {
        self.kubectl(&["create", "configmap", name, "--from-literal=key=value"]).status.success()
    }

    fn has(&self, name: &str) -> bool {
        self.kubectl(&["get", "configmap", name]).status.success()
    }

    /// Does this to every sync of the server until the tracer is dropped.
    fn meddle(&self, what: &str) -> Tracer {
        let mut tracer = Command::new("strace")
            .args([
                "-f",
                "-e",
                "trace=fsync,fdatasync",
                "-e",
                &format!("inject=fsync,fdatasync:{what}"),
                "-o",
                "/dev/null",
            ])
            .args(["-p", &self.process.id().to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is installed");
        let mut lines = BufReader::new(tracer.stderr.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        assert!(first.contains("attached"), "{first}");
        // strace goes on speaking; nobody listening would end it.
        thread::spawn(move || lines.for_each(drop));
        Tracer(tracer)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

struct Tracer(Child);

impl Drop for Tracer {
    fn drop(&mut self) {
        // An interrupt detaches; a kill could leave the traced process stopped.
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGINT).unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn the_answer_to_a_write_waits_for_the_disk() {
    let server = Server::start();
    let tracer = server.meddle(&format!("delay_enter={}", DELAY.as_micros()));
    let started = Instant::now();
    assert!(server.write("slow"));
    let took = started.elapsed();
    drop(tracer);
    assert!(took >= DELAY, "acknowledged after {took:?}, before a sync that takes {DELAY:?}");
    assert!(server.has("slow"));
}

#[test]
fn a_write_that_the_disk_refuses_is_refused_and_leaves_nothing() {
    let server = Server::start();
    let tracer = server.meddle("error=EIO");
    assert!(!server.write("refused"), "acknowledged although no sync succeeded");
    assert!(!server.has("refused"), "shown although it was refused");
    drop(tracer);
    assert!(!server.has("refused"));
    assert!(server.write("accepted"), "the disk is well again, the server is not");
    assert!(server.has("accepted"));
}
