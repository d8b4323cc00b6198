//! Into a pod: its network and its cgroup, where the socket programs see the process as one of the pod's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

/// Moves this process, which must have one thread, into the pod of another process.
pub(crate) fn pod_of(pid: u32) -> Result<()> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).context("the pod's process is gone")?;
    let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2 hierarchy")?;
    let folder = unified()?.join(cgroup);
    fs::write(folder.join("cgroup.procs"), "0").with_context(|| format!("cannot join {}", folder.display()))?;
    let net = File::open(format!("/proc/{pid}/ns/net"))?;
    setns(net, CloneFlags::CLONE_NEWNET).context("cannot enter the pod's network")
}

/// A process of a pod, found by the pod's cgroup.
pub(crate) fn process_of(uid: &str) -> Result<u32> {
    let folder = find(&unified()?, &format!("pod{uid}")).with_context(|| format!("no cgroup of pod {uid}"))?;
    let processes = subfolders(&folder)
        .find_map(|it| fs::read_to_string(it.join("cgroup.procs")).ok()?.lines().next()?.parse().ok());
    processes.with_context(|| format!("no process in {}", folder.display()))
}

fn unified() -> Result<PathBuf> {
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
