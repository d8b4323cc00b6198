//! Memory of processes as the kernel counts it: resident in all, and its anonymous part, which is what the process
//! itself asked for (the rest are pages of files, the binary's among them, that processes share).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use leme_measure::Measurement;

/// The process that a pid file names.
pub(crate) fn pid(file: &Path) -> Result<u32> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    text.trim().parse().with_context(|| format!("{} holds no process id", file.display()))
}

/// Two rows about processes of one kind.
pub(crate) fn at_rest(what: &str, pids: &[u32]) -> Result<[Measurement; 2]> {
    let of = |field| pids.iter().map(|&pid| mebibytes(pid, field)).collect::<Result<Vec<_>>>();
    Ok([
        Measurement::new("memory at rest: resident", what, "MiB", of("VmRSS:")?),
        Measurement::new("memory at rest: anonymous", what, "MiB", of("RssAnon:")?),
    ])
}

fn mebibytes(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let value =
        status.lines().find_map(|line| line.strip_prefix(field)).and_then(|rest| rest.split_whitespace().next());
    let kibibytes: f64 = value.with_context(|| format!("process {pid} tells no {field}"))?.parse()?;
    Ok(kibibytes / 1024.0)
}
