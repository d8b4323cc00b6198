//! A node without pods: a namespace of its own with a NIC, a cgroup, pins and a state directory, all of which go with it.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use leme_tests_packets::node::{ADDRESS, cgroup_root, ensure_bpffs, make_nic};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use tempfile::TempDir;

use crate::{Answer, Call, Left, Pod};

pub struct Node {
    pub(crate) name: String,
    pub(crate) cgroup: PathBuf,
    pub(crate) nic: u32,
    pub(crate) pods: String,
    pub(crate) agent_binary: &'static str,
    directory: TempDir,
}

/// Runs a test on a thread of its own in a node's namespace. `agent` is this package's binary, which only tests know.
pub fn on_node(agent: &'static str, pods: &str, test: impl FnOnce(&Node) + Send + 'static) {
    let pods = pods.to_owned();
    let outcome = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root: run them with `cargo xtask test cni`");
        test(&Node::new(agent, pods));
    });
    if let Err(panic) = outcome.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Node {
    fn new(agent_binary: &'static str, pods: String) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cni-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ensure_bpffs().expect("bpffs");
        let cgroup = cgroup_root().expect("cgroup v2").join(&name);
        fs::create_dir(&cgroup).expect("a cgroup");
        let nic = make_nic().expect("a NIC");
        let directory = TempDir::with_prefix("leme-cni-").expect("a directory");
        Self { name, cgroup, nic, pods, agent_binary, directory }
    }

    pub fn state(&self) -> &Path {
        self.directory.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.state().join("cni.sock")
    }

    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/leme").join(&self.name)
    }

    pub fn add(&self, pod: &Pod) -> Answer {
        Call::new(self, "ADD", pod).run()
    }

    /// With everything that a pod may ask for: a port of the node, and limits.
    pub fn add_with_port(&self, pod: &Pod, port: u16) -> Answer {
        let runtime = json!({
            "portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 1_000_000_000, "egressRate": 1_000_000_000},
        });
        Call::new(self, "ADD", pod).with("runtimeConfig", runtime).run()
    }

    /// With limits in bits per second.
    pub fn add_with_bandwidth(&self, pod: &Pod, bandwidth: serde_json::Value) -> Answer {
        Call::new(self, "ADD", pod).with("runtimeConfig", json!({ "bandwidth": bandwidth })).run()
    }

    pub fn check(&self, pod: &Pod, added: &Answer) -> Answer {
        Call::new(self, "CHECK", pod).with("prevResult", added.document.clone()).run()
    }

    pub fn delete(&self, pod: &Pod) -> Answer {
        Call::new(self, "DEL", pod).run()
    }

    pub fn status(&self) -> Answer {
        Call::of_network(self, "STATUS").run()
    }

    pub fn collect(&self, valid: &[&Pod]) -> Answer {
        let valid: Vec<_> = valid.iter().map(|pod| json!({"containerID": pod.container, "ifname": "eth0"})).collect();
        Call::of_network(self, "GC").with("cni.dev/valid-attachments", json!(valid)).run()
    }

    pub fn left(&self) -> Left {
        Left::count(self)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let pods = self.pods.parse().expect("a pod range");
        let config = leme_datapath::Config::new(&self.name, &self.cgroup, IpAddr::V4(ADDRESS), pods);
        let removed = runtime().block_on(leme_datapath::remove_all(&config));
        let gone = fs::remove_dir(&self.cgroup);
        if !std::thread::panicking() {
            removed.expect("everything goes");
            gone.expect("the cgroup goes");
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
