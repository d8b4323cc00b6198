//! Each long-lived part ends when it is told to, whatever it waits for just then: here in a network of its own, in which
//! nobody answers.
#![expect(clippy::unwrap_used, reason = "tests may")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};

/// More than any part needs for its own, less than any of the waits it could be in.
const LIMIT: Duration = Duration::from_secs(3);

/// Nobody is at that address.
const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: 'https://192.0.2.1:6443', insecure-skip-tls-verify: true}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: none}}]
current-context: c
";

fn leme() -> PathBuf {
    std::env::var_os("LEME_BIN").expect("LEME_BIN is not set: run `cargo xtask test cluster`").into()
}

struct Part {
    process: Child,
    log: PathBuf,
}

impl Part {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let log = folder.join("log");
        let file = fs::File::create(&log).unwrap();
        let process = Command::new("unshare")
            .args(["--net", "--mount", "--"])
            .arg(leme())
            .args(arguments)
            .current_dir(folder)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { process, log }
    }

    /// Waits until the log says something.
    fn says(&self, text: &str) {
        let started = Instant::now();
        while !fs::read_to_string(&self.log).unwrap().contains(text) {
            assert!(started.elapsed() < Duration::from_secs(60), "{text:?} not in:\n{}", self.said());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Not for a client that has stopped listening, but when it is told to.
    fn ends(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap());
        kill(pid, Signal::SIGPIPE).unwrap();
        let began = Instant::now();
        kill(pid, Signal::SIGTERM).unwrap();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert!(status.success(), "{status}:\n{}", self.said());
                return;
            }
            assert!(began.elapsed() < LIMIT, "goes on after {LIMIT:?}:\n{}", self.said());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An agent's name server is meant to outlive it: here it must not.
struct NameServer(PathBuf);

impl Drop for NameServer {
    fn drop(&mut self) {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        if let Ok(pid) = text.trim().parse().map(Pid::from_raw) {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("kubeconfig"), KUBECONFIG).unwrap();
    fs::write(folder.path().join("resolv.conf"), "nameserver 192.0.2.2\n").unwrap();
    folder
}

#[test]
fn a_server_ends_as_soon_as_it_serves() {
    let folder = folder();
    let arguments = ["server", "--advertise-address", "127.0.0.1", "--data-dir", "data"];
    let part = Part::start(folder.path(), &arguments);
    part.says("serving");
    part.ends();
}

#[test]
fn an_agent_ends_while_neither_the_api_nor_the_runtime_answers() {
    let folder = folder();
    // What the agent leaves behind becomes a child of this process, which can reap it.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let _name_server = NameServer(folder.path().join("run/dns.pid"));
    let arguments = "agent --kubeconfig kubeconfig --hostname-override nobody --node-ip 192.0.2.3 --root-dir kubelet \
        --run-dir run --pod-log-dir logs --container-runtime-endpoint absent.sock --resolv-conf resolv.conf \
        --cni-conf-dir net.d --cni-bin-dir bin --cgroup-root /leme-nobody";
    let part = Part::start(folder.path(), &arguments.split_whitespace().collect::<Vec<_>>());
    part.says("the container runtime does not answer yet");
    part.ends();
}

#[test]
fn a_name_server_ends_while_the_api_does_not_answer() {
    let folder = folder();
    let arguments = ["dns", "--listen", "0.0.0.0:53", "--kubeconfig", "kubeconfig", "--resolv-conf", "resolv.conf"];
    let part = Part::start(folder.path(), &arguments);
    part.says("a watch is broken");
    part.ends();
}
