//! Cgroups of the nodes made for measuring, below one directory per run: what a killed run has left is found there.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::enter::unified;

fn all() -> Result<PathBuf> {
    Ok(unified()?.join("leme-bench"))
}

pub(crate) fn create(name: &str) -> Result<PathBuf> {
    let folder = all()?.join(std::process::id().to_string()).join(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Ends every process in them and removes them. Absent is done.
pub(crate) fn remove_all() -> Result<()> {
    let folder = all()?;
    if folder.exists() { remove(&folder) } else { Ok(()) }
}

fn remove(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove(&entry.path())?;
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        kill_all(folder);
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => bail!("cannot remove {}: {error}", folder.display()),
            Err(_) => sleep(Duration::from_millis(5)),
            Ok(()) => return Ok(()),
        }
    }
}

fn kill_all(folder: &Path) {
    let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()) {
        // An error only says that it is gone already.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}
