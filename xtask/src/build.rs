//! `cargo xtask build`: first the eBPF programs, which the agent embeds, then the two binaries.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::place;
use crate::setup::{self, BpfToolchain};
use crate::step::{self, cargo, command, say};

#[derive(Args, Default)]
#[group(skip)]
pub(crate) struct Options {
    /// Build as released instead of as CI does: smaller, faster, and slow to compile
    #[arg(long)]
    pub(crate) release: bool,
}

/// What was built.
pub(crate) struct Built {
    pub(crate) leme: PathBuf,
    pub(crate) cni: PathBuf,
}

pub(crate) fn build(options: &Options) -> Result<Built> {
    programs()?;
    let profile = if options.release { "release" } else { "ci" };
    say(&format!("Building leme and leme-cni (profile {profile})"));
    step::run(cargo().args(["build", "--profile", profile, "-p", "leme", "-p", "leme-cni"]))?;
    let folder = place::target().join(profile);
    Ok(Built { leme: folder.join("leme"), cni: folder.join("leme-cni") })
}

pub(crate) fn run(options: &Options) -> Result<Built> {
    setup::run()?;
    let built = build(options)?;
    say(&format!("Built {} and {}", built.leme.display(), built.cni.display()));
    Ok(built)
}

/// Compiles the eBPF programs to `target/bpf/leme-programs`, where `agent/datapath` looks for them.
pub(crate) fn programs() -> Result<()> {
    say("Building the eBPF programs");
    let (folder, object) =
        (place::workspace().join("target/ebpf"), place::workspace().join("target/bpf/leme-programs"));
    let (mut cargo, linker) = match setup::bpf_toolchain()? {
        BpfToolchain::Nightly { linker } => (nightly_cargo(), linker),
        BpfToolchain::Debian { linker } => (debian_cargo(), linker),
    };
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
        // BTF names source files: the same ones on every machine.
        format!("--remap-path-prefix={}=/leme", place::workspace().display()),
        format!("--remap-path-prefix={}=/cargo", place::cargo_home().display()),
    ];
    step::run(
        cargo
            .current_dir(place::workspace())
            .args([
                "build",
                "--profile",
                "bpf",
                "-Z",
                "build-std=core",
                "--target",
                "bpfel-unknown-none",
                "-p",
                "leme-programs",
            ])
            .arg("--target-dir")
            .arg(&folder)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")),
    )?;
    replace_if_changed(&folder.join("bpfel-unknown-none/bpf/leme-programs"), &object)
}

/// Keeps the time stamp of an object that did not change: what embeds it need not be built again.
fn replace_if_changed(from: &PathBuf, to: &PathBuf) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("the build left no {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::create_dir_all(to.parent().expect("lies in the target directory"))?;
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}

fn nightly_cargo() -> Command {
    let mut cargo = without_toolchain(command("cargo"));
    cargo.env("RUSTUP_TOOLCHAIN", "nightly");
    cargo
}

fn debian_cargo() -> Command {
    let mut cargo = without_toolchain(command("/usr/bin/cargo"));
    cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
    cargo
}

/// Without what rustup's cargo, which started this program, left in the environment.
fn without_toolchain(mut cargo: Command) -> Command {
    for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTC_WRAPPER"] {
        cargo.env_remove(name);
    }
    cargo
}
