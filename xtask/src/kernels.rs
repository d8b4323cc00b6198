//! Kernels to boot in tests: Debian's packages, unpacked into the cache, never installed.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::debian::{self, Suite};
use crate::place;
use crate::step::say;

/// Name as the tests know it, and the Debian suite whose kernel it is.
const KERNELS: [(&str, &str); 4] = [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie"), ("newest", "sid")];

/// Downloads what is missing, and qemu to boot it.
pub(crate) fn fetch() -> Result<()> {
    let missing: Vec<_> = ["qemu-system-x86", "xz-utils", "zstd"]
        .into_iter()
        .zip(["qemu-system-x86_64", "xz", "zstd"])
        .filter(|(_, program)| place::on_path(program).is_none())
        .map(|(package, _)| package.to_owned())
        .collect();
    if !missing.is_empty() {
        debian::install(&missing)?;
    }
    for (name, suite) in KERNELS {
        let folder = folder(name);
        if !folder.is_dir() {
            say(&format!("Fetching Linux {name}"));
            fs::create_dir_all(folder.parent().expect("lies in the cache"))?;
            let suite = Suite::open(suite)?;
            let mut image = suite.dependencies("linux-image-cloud-amd64")?;
            image.retain(|package| package.starts_with("linux-image-"));
            let image = image.pop().context("linux-image-cloud-amd64 names no kernel")?;
            // Newer packages have the kernel and its modules in packages of their own.
            let mut parts = suite.dependencies(&image)?;
            parts.retain(|part| part.starts_with("linux-binary-") || part.starts_with("linux-modules-"));
            parts.push(image);
            let parts: Vec<_> = parts.iter().map(String::as_str).collect();
            suite.unpack(&parts, &folder).with_context(|| format!("cannot fetch Linux {name}"))?;
        }
    }
    Ok(())
}

/// `LEME_KERNELS` for the tests.
pub(crate) fn folders() -> Result<OsString> {
    Ok(std::env::join_paths(KERNELS.map(|(name, _)| folder(name)))?)
}

fn folder(name: &str) -> PathBuf {
    place::cache().join("kernels").join(name)
}
