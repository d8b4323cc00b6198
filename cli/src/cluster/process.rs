//! Processes: children that prepare something, ones that are found again by pid file, and ones to be gone.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork as fork_process};

/// A child that has done its preparation and stays until `finish`.
pub(crate) struct Fork {
    pub(crate) pid: Pid,
    stream: UnixStream,
}

/// Runs `prepare` in a child process and keeps the child for its namespaces. Only from a process with one thread.
pub(crate) fn fork(prepare: impl FnOnce() -> Result<()>) -> Result<Fork> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    // SAFETY: the callers run before any thread is started, so the child may allocate.
    match unsafe { fork_process() }? {
        ForkResult::Child => {
            drop(ours);
            let outcome = prepare();
            let message = outcome.err().map(|error| format!("{error:#}")).unwrap_or_default();
            let _ = theirs.write_all(format!("{message}\n").as_bytes());
            let _ = theirs.read(&mut [0]);
            // SAFETY: ends the child without running what the parent has registered for its own exit.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            let fork = Fork { pid: child, stream: ours.try_clone()? };
            let mut message = Vec::new();
            let mut byte = [0];
            while ours.read(&mut byte)? == 1 && byte[0] != b'\n' {
                message.push(byte[0]);
            }
            if !message.is_empty() {
                fork.finish()?;
                bail!("cannot prepare the node's namespaces: {}", String::from_utf8_lossy(&message));
            }
            Ok(fork)
        }
    }
}

impl Fork {
    pub(crate) fn finish(self) -> Result<()> {
        drop(self.stream);
        waitpid(self.pid, None).map(drop).context("cannot wait for the preparing child")
    }
}

/// The process a pid file names, if it still runs that program.
pub(crate) fn running(pid_file: &Path, program: &str) -> Option<Pid> {
    let pid: i32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let first = command.split(|&byte| byte == 0).next()?;
    let name = Path::new(std::str::from_utf8(first).ok()?).file_name()?.to_str()?;
    (name == program && !is_zombie(pid)).then_some(Pid::from_raw(pid))
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with(['Z', 'X']))
}

/// Whether a process is there and not only waiting to be reaped.
pub(crate) fn alive(pid: Pid) -> bool {
    kill(pid, None).is_ok() && !is_zombie(pid.as_raw())
}

/// Sends a signal; a process that is gone needs none.
pub(crate) fn signal(pid: Pid, signal: Signal) {
    let _ = kill(pid, signal);
}

/// Polls until something holds; for what the kernel gives no event for.
pub(crate) fn wait_until(limit: Duration, holds: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
