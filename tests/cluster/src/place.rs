//! Where a request is made from: this machine, a node, or a pod. In nodes and pods it is made by a process in their
//! network and their cgroup, as anything that runs there would be: the datapath looks at both.

use std::env;
use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::{Cluster, Pod};

#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// Outside of the cluster.
    Machine,
    Node(&'a str),
    Pod(&'a Pod),
}

impl Place<'_> {
    /// This test's own binary as a client there: see `client`.
    pub fn client(&self, cluster: &Cluster, words: &[&str]) -> Result<Command> {
        let this = env::current_exe()?;
        let this = this.to_str().context("a path that is no text")?;
        Ok(match self {
            Self::Machine => {
                let mut command = Command::new(this);
                command.arg("client").args(words);
                command
            }
            Self::Node(node) => cluster.on_node(node, &[&[this, "client"], words].concat()),
            Self::Pod(pod) => {
                let mut command = Command::new(this);
                command.args(["client", "--enter", &pod.process()?.to_string()]).args(words);
                command
            }
        })
    }
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Machine => write!(formatter, "outside"),
            Self::Node(node) => write!(formatter, "node {node}"),
            Self::Pod(pod) => write!(formatter, "pod {} on {}", pod.name, pod.node),
        }
    }
}

/// Runs work on a thread in the network of a process.
pub fn in_network<T: Send>(process: i32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let path = format!("/proc/{process}/ns/net");
    let namespace = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
            work()
        });
        thread.join().expect("work in a network does not panic")
    })
}
