//! A node's cgroup: its processes and pods live in it, in whichever hierarchies the machine has, so the socket
//! programs cover them and `down` finds every one of them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::process::wait_until;

/// Processes of the node itself: version 2 wants them in a leaf, beside the pods.
const SYSTEM: &str = "system";

/// Mount points of all hierarchies.
fn hierarchies() -> Vec<PathBuf> {
    mounts(|kind| kind == "cgroup" || kind == "cgroup2")
}

/// The unified hierarchy: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid machines.
pub(crate) fn unified() -> Result<PathBuf> {
    mounts(|kind| kind == "cgroup2")
        .into_iter()
        .next()
        .context("no cgroup v2 hierarchy is mounted: mount one at /sys/fs/cgroup/unified")
}

fn mounts(wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let path = left.split(' ').nth(4)?;
        wanted(right.split(' ').next()?).then(|| PathBuf::from(path))
    };
    let mut found: Vec<_> = info.lines().filter_map(mount).collect();
    found.dedup();
    found
}

/// Moves this process into the node's cgroup.
pub(crate) fn join(cgroup: &str) -> Result<()> {
    let folder = unified()?.join(cgroup).join(SYSTEM);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(folder.join("cgroup.procs"), "0").with_context(|| format!("cannot join {}", folder.display()))
}

/// Kills everything in the cgroup but this process, in every hierarchy, and waits until it is gone.
pub(crate) fn kill_all(cgroup: &str) -> Result<()> {
    let folders: Vec<_> =
        hierarchies().into_iter().map(|root| root.join(cgroup)).filter(|folder| folder.is_dir()).collect();
    let others =
        || folders.iter().flat_map(|folder| processes(folder)).filter(|&pid| pid != Pid::this()).collect::<Vec<_>>();
    let gone = wait_until(Duration::from_secs(20), || {
        let left = others();
        for pid in &left {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        left.is_empty()
    });
    if !gone {
        bail!(
            "processes in cgroup {cgroup} do not end: {:?}",
            folders.iter().flat_map(|folder| processes(folder)).collect::<Vec<_>>()
        );
    }
    Ok(())
}

fn processes(folder: &Path) -> Vec<Pid> {
    let mut found: Vec<Pid> = fs::read_to_string(folder.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|&pid| pid > 0)
        .map(Pid::from_raw)
        .collect();
    for child in children(folder) {
        found.extend(processes(&child));
    }
    found
}

/// Removes the cgroup in every hierarchy, and the parents that are empty then. Absent is done.
pub(crate) fn remove(cgroup: &str) -> Result<()> {
    for root in hierarchies() {
        remove_tree(&root.join(cgroup))?;
        for parent in Path::new(cgroup).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()) {
            // Others' nodes may be in it.
            let _ = fs::remove_dir(root.join(parent));
        }
    }
    Ok(())
}

fn remove_tree(folder: &Path) -> Result<()> {
    for child in children(folder) {
        remove_tree(&child)?;
    }
    let removed = || !matches!(fs::remove_dir(folder), Err(error) if error.kind() == ErrorKind::ResourceBusy);
    // A cgroup is busy until its last process is reaped.
    if !wait_until(Duration::from_secs(10), removed) {
        bail!("cgroup {} stays busy", folder.display());
    }
    Ok(())
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}
