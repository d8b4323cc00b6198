//! The name server's process: started by the agent, not its child in spirit. It goes on answering when the agent
//! dies, and an agent that starts finds it again by its pid file and leaves it alone.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const LOOK: Duration = Duration::from_secs(2);

/// Keeps the process alive until `shutdown`, which leaves it running.
pub async fn keep(command: Vec<String>, run_dir: PathBuf, shutdown: CancellationToken) {
    let pid_file = run_dir.join("dns.pid");
    loop {
        if find(&pid_file, &command).is_none()
            && let Err(error) = start(&command, &run_dir, &pid_file)
        {
            warn!("the name server does not start: {error:#}");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// The pid in the file, if that process still is what was started: pids are used again.
fn find(pid_file: &Path, command: &[String]) -> Option<u32> {
    let pid: u32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    reap(pid);
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).filter(|word| !word.is_empty()).collect();
    words.iter().zip(command).skip(1).all(|(word, wanted)| *word == wanted.as_bytes()).then_some(())?;
    (words.len() == command.len()).then_some(pid)
}

/// One that died as our child would otherwise look alive for ever.
fn reap(pid: u32) {
    use nix::sys::wait::{WaitPidFlag, waitpid};
    let _ = waitpid(nix::unistd::Pid::from_raw(pid as i32), Some(WaitPidFlag::WNOHANG));
}

fn start(command: &[String], run_dir: &Path, pid_file: &Path) -> anyhow::Result<()> {
    let (program, arguments) = command.split_first().context("the command is empty")?;
    fs::create_dir_all(run_dir).with_context(|| format!("making {}", run_dir.display()))?;
    let log_path = run_dir.join("dns.log");
    let log = fs::OpenOptions::new().create(true).append(true).open(&log_path);
    let log = log.with_context(|| format!("opening {}", log_path.display()))?;
    let mut child = Command::new(program);
    child.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // A group of its own: signals meant for the agent do not reach it.
    child.process_group(0);
    let child = child.spawn().with_context(|| format!("starting {program}"))?;
    fs::write(pid_file, child.id().to_string()).with_context(|| format!("writing {}", pid_file.display()))?;
    info!(pid = child.id(), "the name server has been started");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_started_once_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("dns.pid");
        let command = ["sleep".to_owned(), "1000".to_owned()];
        assert_eq!(find(&pid_file, &command), None);
        start(&command, directory.path(), &pid_file).unwrap();
        let pid = loop {
            // The new process shows its own command line once it has become `sleep`.
            if let Some(pid) = find(&pid_file, &command) {
                break pid;
            }
        };
        assert_eq!(find(&pid_file, &["sleep".to_owned(), "999".to_owned()]), None);
        let child = nix::unistd::Pid::from_raw(pid as i32);
        nix::sys::signal::kill(child, nix::sys::signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(child, None).unwrap();
        assert_eq!(find(&pid_file, &command), None);
    }
}
