//! Puts the eBPF object where `include_bytes` finds it: `LEME_BPF_OBJECT`, or `target/bpf/leme-programs` of the
//! workspace, or nothing, in which case the crate still compiles and says so when asked to load.
//!
//! Debug information stays out: it has become BTF by now, and is four fifths of the object.

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=LEME_BPF_OBJECT");
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../..");
    let default = workspace.join("target/bpf/leme-programs");
    let object = env::var_os("LEME_BPF_OBJECT").map_or(default, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("programs");
    let bytes = match fs::read(&object) {
        Ok(bytes) => strip(&bytes)?,
        Err(_) => Vec::new(),
    };
    Ok(fs::write(embedded, bytes)?)
}

fn strip(object: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut builder = Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        section.delete = name.trim_start_matches(".rel").starts_with(".debug_");
    }
    // LLVM keeps all names in one section; the builder wants those of sections apart.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}
