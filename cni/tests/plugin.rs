//! The real binary against a fake agent on a socket.
#![expect(clippy::unwrap_used, reason = "tests may")]

use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread::{self, JoinHandle},
};

use leme_cni::{Attachment, Failure, Reply, Request, code};
use serde_json::Value;

struct Socket(PathBuf);

impl Socket {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("leme-cni-{test}-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Self(path)
    }

    fn serve(&self, reply: Vec<u8>) -> JoinHandle<Request> {
        let listener = UnixListener::bind(&self.0).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            stream.write_all(&reply).unwrap();
            serde_json::from_slice(&bytes).unwrap()
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn plugin(command: &str, version: &str, socket: &Path) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_leme-cni"))
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", "/run/netns/a")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let conf = serde_json::json!({"cniVersion": version, "name": "leme", "type": "leme-cni", "socket": socket});
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn attached() -> Vec<u8> {
    let made = Attachment {
        address: "10.244.0.7".parse().unwrap(),
        gateway: "169.254.1.1".parse().unwrap(),
        mtu: 1450,
        host_ifname: "leme0123456789a".into(),
        host_mac: "02:00:00:00:00:01".into(),
        ifname: "eth0".into(),
        mac: "02:00:00:00:00:02".into(),
        netns: "/run/netns/a".into(),
    };
    serde_json::to_vec(&Reply::Attached(made)).unwrap()
}

#[test]
fn add_prints_the_result_in_the_version_of_the_configuration() {
    let socket = Socket::new("add");
    let agent = socket.serve(attached());
    let output = plugin("ADD", "0.4.0", &socket.0);
    assert!(output.status.success());
    assert_eq!(json(&output)["cniVersion"], "0.4.0");
    assert_eq!(json(&output)["ips"][0]["address"], "10.244.0.7/32");
    assert_eq!(agent.join().unwrap().netns.as_deref(), Some("/run/netns/a"));
}

#[test]
fn del_prints_nothing_when_done() {
    let socket = Socket::new("del");
    let agent = socket.serve(serde_json::to_vec(&Reply::Done).unwrap());
    let output = plugin("DEL", "1.0.0", &socket.0);
    assert!(output.status.success() && output.stdout.is_empty());
    agent.join().unwrap();
}

#[test]
fn the_agents_failure_is_printed_with_its_code() {
    let socket = Socket::new("failure");
    let failure = Failure::new(code::ADDRESSES_EXHAUSTED, "no address left", "10.244.0.0/24");
    let agent = socket.serve(serde_json::to_vec(&Reply::Failed(failure)).unwrap());
    let output = plugin("ADD", "1.1.0", &socket.0);
    assert!(!output.status.success());
    assert_eq!((json(&output)["code"].clone(), json(&output)["details"].clone()), (101.into(), "10.244.0.0/24".into()));
    agent.join().unwrap();
}

#[test]
fn without_an_agent_del_is_to_be_tried_again_and_status_is_not_available() {
    let socket = Socket::new("absent");
    for (command, expected) in [("DEL", code::TRY_AGAIN_LATER), ("STATUS", code::PLUGIN_NOT_AVAILABLE)] {
        let output = plugin(command, "1.1.0", &socket.0);
        assert!(!output.status.success());
        assert_eq!(json(&output)["code"], expected, "{command}");
    }
}

#[test]
fn an_agent_that_hangs_up_is_not_a_success() {
    let socket = Socket::new("hangup");
    let agent = socket.serve(Vec::new());
    let output = plugin("DEL", "1.0.0", &socket.0);
    assert_eq!(json(&output)["code"], code::TRY_AGAIN_LATER);
    agent.join().unwrap();
}

#[test]
fn version_needs_no_agent() {
    let output = plugin("VERSION", "1.0.0", Path::new("/nonexistent"));
    assert!(output.status.success());
    assert_eq!(json(&output)["supportedVersions"], serde_json::json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
}
