//! Into a pod, or a node made for measuring: its network and its cgroup, where the socket programs see the process as
//! one of that node's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use nix::sched::{CloneFlags, setns};

/// Where a process that sends or answers load is to be.
#[derive(Args)]
pub(crate) struct Place {
    /// In the pod of this process
    #[arg(long, conflicts_with_all = ["net", "cgroup"], required_unless_present = "net")]
    pod_of: Option<u32>,
    /// In this network namespace
    #[arg(long, requires = "cgroup")]
    net: Option<PathBuf>,
    /// In this cgroup
    #[arg(long)]
    cgroup: Option<PathBuf>,
}

impl Place {
    /// Moves this process, which must have one thread.
    pub(crate) fn enter(&self) -> Result<()> {
        match (self.pod_of, &self.net, &self.cgroup) {
            (Some(pid), _, _) => pod_of(pid),
            (None, Some(net), Some(cgroup)) => into(net, cgroup),
            _ => anyhow::bail!("neither a pod nor a namespace with a cgroup"),
        }
    }
}

fn pod_of(pid: u32) -> Result<()> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).context("the pod's process is gone")?;
    let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2 hierarchy")?;
    into(Path::new(&format!("/proc/{pid}/ns/net")), &unified()?.join(cgroup))
}

fn into(net: &Path, cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("cannot join {}", cgroup.display()))?;
    let net = File::open(net).with_context(|| format!("no network namespace {}", net.display()))?;
    setns(net, CloneFlags::CLONE_NEWNET).context("cannot enter the network")
}

/// A process of a pod, found by the pod's cgroup.
pub(crate) fn process_of(uid: &str) -> Result<u32> {
    let folder = find(&unified()?, &format!("pod{uid}")).with_context(|| format!("no cgroup of pod {uid}"))?;
    let processes = subfolders(&folder)
        .find_map(|it| fs::read_to_string(it.join("cgroup.procs")).ok()?.lines().next()?.parse().ok());
    processes.with_context(|| format!("no process in {}", folder.display()))
}

/// Where cgroup v2 is mounted.
pub(crate) fn unified() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|it| it.get(2) == Some(&"cgroup2"));
    Ok(mount.context("no cgroup v2 hierarchy is mounted")?[1].into())
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let found = folder.join(name);
    if found.is_dir() { Some(found) } else { subfolders(folder).find_map(|sub| find(&sub, name)) }
}

fn subfolders(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir())
}
