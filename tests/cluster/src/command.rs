//! Programs that end: run with a limit, their output read whole.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a program said and whether it was content.
#[derive(Debug)]
pub struct Outcome {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program to its end; past the limit it is killed and that is an error.
pub fn run(command: &mut Command, limit: Duration) -> Result<Outcome> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let stdout = drain(child.stdout.take().expect("stdout is piped"));
    let stderr = drain(child.stderr.take().expect("stderr is piped"));
    let deadline = Instant::now() + limit;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => break None,
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (stdout, stderr) = (stdout.join().expect("a reader"), stderr.join().expect("a reader"));
    match status {
        Some(status) => Ok(Outcome { success: status.success(), stdout, stderr }),
        None => bail!("{shown} did not end within {limit:?}:\n{stdout}{stderr}"),
    }
}

/// Runs a program that must succeed; its standard output.
pub fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let outcome = run(command, limit)?;
    if !outcome.success {
        bail!("{command:?} failed:\n{}{}", outcome.stdout, outcome.stderr);
    }
    Ok(outcome.stdout)
}

fn drain(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
