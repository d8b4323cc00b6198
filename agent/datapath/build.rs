//! Puts the eBPF object where `include_bytes` finds it: `LEME_BPF_OBJECT`, or `target/bpf/leme-programs` of the
//! workspace, or nothing, in which case the crate still compiles and says so when asked to load.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=LEME_BPF_OBJECT");
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../..");
    let default = workspace.join("target/bpf/leme-programs");
    let object = env::var_os("LEME_BPF_OBJECT").map_or(default, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("programs");
    let bytes = fs::read(&object).unwrap_or_default();
    fs::write(&embedded, bytes).expect("the output directory is writable");
}
