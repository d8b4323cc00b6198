//! The release's binaries: static where Rust's musl target is installed, and without a path of this machine in them.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::step::{self, cargo, command, output, say};
use crate::{build, debian, place};

pub(crate) struct Binaries {
    pub(crate) leme: PathBuf,
    pub(crate) cni: PathBuf,
    pub(crate) linkage: Linkage,
}

/// What a binary needs of the machine it runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Linkage {
    /// Nothing but the kernel.
    Static,
    /// A GNU C library, this version or newer.
    Glibc { major: u32, minor: u32 },
}

impl Binaries {
    pub(crate) fn in_folder(folder: &Path) -> Result<Self> {
        let folder = folder.canonicalize().with_context(|| format!("no folder {}", folder.display()))?;
        Self::of(folder.join("leme"), folder.join("leme-cni"))
    }

    pub(crate) fn of(leme: PathBuf, cni: PathBuf) -> Result<Self> {
        let linkage = Linkage::of(&leme)?.and(Linkage::of(&cni)?);
        Ok(Self { leme, cni, linkage })
    }
}

pub(crate) fn release() -> Result<Binaries> {
    build::programs()?;
    let target = target()?;
    say(&format!("Building the release for {target} (many minutes)"));
    step::run(release_cargo(&target)?.args(["build", "--release", "--locked", "-p", "leme", "-p", "leme-cni"]))?;
    Binaries::in_folder(&place::target().join(&target).join("release"))
}

/// `--target` is always said: flags then concern what is shipped, and not what runs while building.
fn release_cargo(target: &str) -> Result<Command> {
    let moved = moved_paths()?;
    let rust = moved.iter().map(|(from, to)| format!("--remap-path-prefix={from}={to}"));
    let c = moved.iter().map(|(from, to)| format!("-ffile-prefix-map={from}={to}"));
    let mut cargo = cargo();
    cargo
        .env("CARGO_BUILD_TARGET", target)
        .env("CARGO_ENCODED_RUSTFLAGS", rust.collect::<Vec<_>>().join("\u{1f}"))
        .env(format!("CFLAGS_{}", target.replace('-', "_")), c.collect::<Vec<_>>().join(" "));
    Ok(cargo)
}

/// Where things lie here, and where panics and assertions say that they lie. Later ones win.
fn moved_paths() -> Result<Vec<(String, String)>> {
    let text = |path: &Path| path.to_str().map(str::to_owned).with_context(|| format!("{}: no UTF-8", path.display()));
    let sysroot = output(command("rustc").current_dir(place::workspace()).args(["--print", "sysroot"]))?;
    Ok(vec![
        (text(&place::workspace())?, "/leme".to_owned()),
        (text(&place::target())?, "/leme/target".to_owned()),
        (text(&place::cargo_home())?, "/cargo".to_owned()),
        (sysroot.trim().to_owned(), "/rust".to_owned()),
    ])
}

fn target() -> Result<String> {
    let architecture = std::env::consts::ARCH;
    let musl = format!("{architecture}-unknown-linux-musl");
    if !installed(&musl)? {
        say(&format!(
            "Rust's target {musl} is not installed: the binary will need a C library (rustup target add {musl})"
        ));
        return Ok(format!("{architecture}-unknown-linux-gnu"));
    }
    if place::on_path("musl-gcc").is_none() {
        say("Installing musl-tools, for the parts in C");
        debian::install(&["musl-tools".to_owned()])?;
    }
    Ok(musl)
}

fn installed(target: &str) -> Result<bool> {
    let sysroot = output(command("rustc").current_dir(place::workspace()).args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib").join(target).join("lib").is_dir())
}

impl Linkage {
    pub(crate) fn of(binary: &Path) -> Result<Self> {
        let bytes = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
        Ok(newest_glibc(&bytes).map_or(Self::Static, |(major, minor)| Self::Glibc { major, minor }))
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Static, any) | (any, Self::Static) => any,
            (Self::Glibc { major, minor }, Self::Glibc { major: other, minor: also }) => {
                let (major, minor) = (major, minor).max((other, also));
                Self::Glibc { major, minor }
            }
        }
    }
}

impl fmt::Display for Linkage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static => f.write_str("is static: it needs nothing but the kernel"),
            Self::Glibc { major, minor } => {
                write!(f, "links the C library dynamically: it needs glibc {major}.{minor} or newer")
            }
        }
    }
}

/// The newest of the versions that symbols are asked in: strings like `GLIBC_2.34` that end with a zero byte.
fn newest_glibc(binary: &[u8]) -> Option<(u32, u32)> {
    const MARK: &[u8] = b"\0GLIBC_";
    let places = binary.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK);
    places.filter_map(|(at, _)| version(&binary[at + MARK.len()..])).max()
}

fn version(bytes: &[u8]) -> Option<(u32, u32)> {
    let text = bytes.iter().take(16).position(|&byte| byte == 0).map(|end| &bytes[..end])?;
    let mut numbers = std::str::from_utf8(text).ok()?.split('.').map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_of_a_symbol_counts() {
        let binary = b"x\0GLIBC_2.3.4\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE\0GLIBC_2.99 in a text";
        assert_eq!(newest_glibc(binary), Some((2, 34)));
        assert_eq!(newest_glibc(b"nothing\0of that kind\0"), None);
    }

    #[test]
    fn a_package_needs_what_any_of_its_binaries_needs() {
        let glibc = |minor| Linkage::Glibc { major: 2, minor };
        assert_eq!(Linkage::Static.and(Linkage::Static), Linkage::Static);
        assert_eq!(Linkage::Static.and(glibc(28)), glibc(28));
        assert_eq!(glibc(34).and(glibc(28)), glibc(34));
    }
}
