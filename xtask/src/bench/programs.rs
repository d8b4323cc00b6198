//! What is measured, and what measures it: both as released, since what the measuring costs is part of every figure.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::step::{self, cargo, command, output, say};
use crate::{build, place};

pub(crate) struct Programs {
    pub(crate) leme: PathBuf,
    /// `leme-bench`.
    pub(crate) tool: PathBuf,
}

impl Programs {
    /// Those beside `bin`, or a release built now.
    pub(crate) fn find(bin: Option<&Path>) -> Result<Self> {
        let leme = match bin {
            Some(leme) => fs::canonicalize(leme).with_context(|| format!("no {}", leme.display()))?,
            None => build::build(&build::Options { release: true })?.leme,
        };
        let beside = leme.with_file_name("leme-bench");
        if bin.is_some() && beside.exists() {
            return Ok(Self { leme, tool: beside });
        }
        say("Building leme-bench");
        let mut build = cargo();
        build.args(["build", "--release", "-p", "leme-bench"]);
        // Chosen together, all have the dependencies' features in common: nothing is compiled twice.
        build.args(if bin.is_none() { &["-p", "leme", "-p", "leme-cni"][..] } else { &[] });
        step::run(&mut build)?;
        Ok(Self { leme, tool: place::target().join("release/leme-bench") })
    }
}

/// What figures are said to be of.
pub(crate) fn subject(bin: Option<&Path>) -> String {
    let commit = || output(command("git").current_dir(place::workspace()).args(["describe", "--always", "--dirty"]));
    match bin {
        Some(bin) => bin.display().to_string(),
        None => format!("commit {}, release build", commit().unwrap_or_default().trim()),
    }
}
