//! `leme supervise-host`: holds a host's parts where no service manager does. It restarts what dies and adopts what
//! already runs; when it is told to end, its parts go on.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::services::{pid_file, supervisor_pid_file};
use super::{Host, LOGS, RUN};
use crate::cluster::supervisor::{Component, block_signals, listen, watch};

pub(crate) fn run() -> Result<()> {
    let host = Host::load()?.context("this machine is not in a cluster: leme init, or leme join")?;
    fs::create_dir_all(RUN)?;
    let signals = block_signals()?;
    nix::sys::prctl::set_child_subreaper(true)?;
    let component = |(name, command): (&'static str, Vec<String>)| {
        Component::new(name, command, pid_file(name), Path::new(LOGS).join(format!("{name}.log")))
    };
    let mut components: Vec<_> = host.commands()?.into_iter().map(component).collect();
    fs::write(supervisor_pid_file(), std::process::id().to_string())?;
    watch(&mut components, &listen(signals)?, || {})
}
