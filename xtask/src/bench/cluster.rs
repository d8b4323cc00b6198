//! The cluster under measurement: three nodes under a name of its own, made and removed by `leme` as a user would.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::place;
use crate::registry;
use crate::step::{command, output};

use super::memory;

const NAME: &str = "bench";
const NODES: u8 = 3;

pub(crate) struct Cluster {
    leme: PathBuf,
    /// State and kubeconfig, away from the user's.
    folder: PathBuf,
}

impl Cluster {
    /// Measures in one that `work` makes. It is gone afterwards; where something failed, its nodes' logs are not.
    pub(crate) fn with<T>(leme: &Path, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let cluster = Self::of(leme)?;
        work(&cluster).map_err(|error| match cluster.keep_logs() {
            Ok(kept) => error.context(format!("the cluster's logs are kept in {}", kept.display())),
            Err(lost) => error.context(format!("the cluster's logs are lost: {lost:#}")),
        })
    }

    /// None yet: what a measurement that was cut off has left goes first.
    fn of(leme: &Path) -> Result<Self> {
        let folder = place::cache().join("bench");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let cluster = Self { leme: leme.to_owned(), folder };
        cluster.down()?;
        Ok(cluster)
    }

    /// Makes it and says how long that took: `leme up` returns when all nodes are Ready and names resolve on each.
    pub(crate) fn up(&self) -> Result<Duration> {
        let began = Instant::now();
        let mut up = self.leme("up");
        output(up.args(["--nodes", &NODES.to_string()]).args(registry::mirror_arguments()))?;
        Ok(began.elapsed())
    }

    pub(crate) fn down(&self) -> Result<()> {
        output(&mut self.leme("down")).map(drop)
    }

    fn keep_logs(&self) -> Result<PathBuf> {
        let kept = place::cache().join("logs/bench");
        fs::create_dir_all(&kept)?;
        for index in 1..=NODES {
            let logs = fs::read_dir(self.node_folder(index).join("log")).into_iter().flatten();
            for log in logs.flatten() {
                let name = format!("{}-{}", Self::node(index), log.file_name().to_string_lossy());
                fs::copy(log.path(), kept.join(name))?;
            }
        }
        Ok(kept)
    }

    fn leme(&self, verb: &str) -> std::process::Command {
        let mut leme = command(&self.leme);
        leme.args([verb, "--name", NAME, "--state-dir"]).arg(&self.folder);
        leme.env("KUBECONFIG", self.kubeconfig());
        leme
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    pub(crate) fn node(index: u8) -> String {
        format!("{NAME}-{index}")
    }

    fn node_folder(&self, index: u8) -> PathBuf {
        self.folder.join(NAME).join("nodes").join(Self::node(index))
    }

    pub(crate) fn runtime_socket(&self, index: u8) -> PathBuf {
        self.node_folder(index).join("run/containerd/containerd.sock")
    }

    /// The server's process.
    pub(crate) fn server(&self) -> Result<u32> {
        memory::pid(&self.node_folder(1).join("pids/server.pid"))
    }

    /// A node's agent.
    pub(crate) fn agent(&self, index: u8) -> Result<u32> {
        memory::pid(&self.node_folder(index).join("pids/agent.pid"))
    }

    /// One process of each node, by its pid file in the node's directory.
    pub(crate) fn on_each_node(&self, pid_file: &str) -> Result<Vec<u32>> {
        (1..=NODES).map(|index| memory::pid(&self.node_folder(index).join(pid_file))).collect()
    }
}

/// Whatever happened, nothing stays.
impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.down() {
            eprintln!("the cluster of the benchmark stays: {error:#}");
        }
        // Not empty: what stays is found there.
        let _ = fs::remove_file(self.kubeconfig());
        let _ = fs::remove_dir(&self.folder);
    }
}
