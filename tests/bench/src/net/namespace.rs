//! Network namespaces that live as long as this process: nobody has to remove them, whatever ends it.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    pub(crate) fn new() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace; this needs root")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        Ok(Self { file: made.join().expect("the thread does not panic")? })
    }

    /// Where other processes find it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Works in the namespace on a thread of its own.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
                work()
            });
            thread.join().expect("work in a namespace does not panic")
        })
    }

    /// Lines for `ip -batch`.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        self.run("ip", &["-batch", "-"], lines)
    }

    /// A program in the namespace with `input` as its standard input.
    pub(crate) fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        self.within(|| run(program, arguments, input))
    }

    /// A value below /proc/sys/net.
    pub(crate) fn set(&self, name: &str, value: &str) -> Result<()> {
        self.within(|| fs::write(format!("/proc/sys/net/{name}"), value).with_context(|| format!("cannot set {name}")))
    }
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let mut stdin = child.stdin.take().expect("it is piped");
    // It reads all of its input before it fails, or says why it does not.
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), text.trim().lines().take(5).collect::<Vec<_>>().join("; "));
    }
    written.with_context(|| format!("{program} did not read its input"))
}
