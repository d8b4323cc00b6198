//! Running commands so that a person sees what happens and, when something fails, why.

use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::place;

/// Starts a section: what is about to be done.
pub(crate) fn say(what: &str) {
    let mark = if std::io::stderr().is_terminal() { "\x1b[1;36m•\x1b[0m" } else { "•" };
    eprintln!("{mark} {what}");
}

/// A command by name or path.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    Command::new(program)
}

/// `cargo` of this workspace's toolchain.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(place::workspace()).env("PROTOC", place::on_path("protoc").unwrap_or_default());
    cargo
}

/// Runs a command whose output the person should see as it comes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = display(command);
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Runs a command silently under a title; its output goes to a log that is shown (its end) when it fails.
pub(crate) fn run_quietly(title: &str, command: &mut Command) -> Result<()> {
    let started = Instant::now();
    let (log, path) = log_file(title)?;
    eprint!("  {title} … ");
    let _ = std::io::stderr().flush();
    let shown = display(command);
    let status = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        eprintln!("failed");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        bail!(
            "`{shown}` failed ({status}); the end of {}:\n{}",
            path.display(),
            lines[lines.len().saturating_sub(20)..].join("\n")
        );
    }
    eprintln!("{:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// Standard output of a command that must succeed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = display(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Refuses politely when not root.
pub(crate) fn require_root(what: &str) -> Result<()> {
    if output(command("id").arg("-u"))?.trim() != "0" {
        bail!("{what} needs root: it makes network namespaces and loads eBPF programs. Run it with sudo.");
    }
    Ok(())
}

fn log_file(title: &str) -> Result<(std::fs::File, PathBuf)> {
    let folder = place::cache().join("logs");
    std::fs::create_dir_all(&folder)?;
    let name: String = title.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(60).collect();
    let path = folder.join(format!("{name}.log"));
    Ok((std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?, path))
}

fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
