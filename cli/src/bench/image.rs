//! The image that `leme bench net` runs: this very binary with the libraries it has loaded, as an OCI layout in a tar
//! archive, which every runtime, registry tool and local cluster can load.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::output::say;

#[derive(Args)]
#[command(after_help = "Examples:
  leme bench image bench.tar && leme image load bench.tar            a cluster of leme's
  leme bench image bench.tar && kind load image-archive bench.tar    one of kind's
  leme bench image bench.tar && ctr -n k8s.io images import bench.tar
                                                                     on each node, as root
  leme bench image bench.tar && skopeo copy oci-archive:bench.tar docker://registry.example/leme-bench
                                                                     then `leme bench net --image …`")]
pub(crate) struct Options {
    /// Where to write it
    file: PathBuf,
}

/// A name that no runtime expands and no registry answers to.
pub(crate) const NAME: &str = concat!("localhost/leme-bench:", env!("CARGO_PKG_VERSION"));

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub(crate) fn run(options: &Options) -> Result<()> {
    write(&options.file)?;
    say(format_args!("{} holds {NAME}.", options.file.display()));
    Ok(())
}

pub(crate) fn write(path: &Path) -> Result<()> {
    let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    pack(file).with_context(|| format!("cannot write {}", path.display()))
}

fn pack(out: impl Write) -> Result<()> {
    let layer = layer()?;
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(), "os": "linux",
        "config": { "Entrypoint": ["/leme"], "User": "65534:65534" },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config), "layers": [descriptor(LAYER, &layer)],
    }))?;
    let mut entry = descriptor(MANIFEST, &manifest);
    let tag = NAME.rsplit_once(':').map(|(_, tag)| tag);
    entry["annotations"] = json!({ "io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": tag });
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [entry] }))?;
    let mut archive = tar::Builder::new(out);
    append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut archive, "index.json", &index, 0o644)?;
    for blob in [&manifest, &config, &layer] {
        append(&mut archive, &format!("blobs/{}", digest(blob).replace(':', "/")), blob, 0o644)?;
    }
    Ok(archive.into_inner()?.flush()?)
}

/// The binary, its loader and its libraries, at the paths where they are here.
fn layer() -> Result<Vec<u8>> {
    let binary = fs::read("/proc/self/exe").context("cannot read this program")?;
    let mut layer = tar::Builder::new(Vec::new());
    let mut libraries = loaded_libraries()?;
    libraries.extend(interpreter(&binary));
    append(&mut layer, "leme", &binary, 0o755)?;
    for path in libraries {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        append(&mut layer, path.to_string_lossy().trim_start_matches('/'), &bytes, 0o755)?;
    }
    Ok(layer.into_inner()?)
}

fn loaded_libraries() -> Result<BTreeSet<PathBuf>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|path| path.contains(".so"));
    Ok(paths.map(PathBuf::from).collect())
}

/// The loader that an ELF file of 64 bits, little endian, names in PT_INTERP; a static one names none.
fn interpreter(elf: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u32 = 3;
    let number = |at: usize| Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?) as usize);
    let half = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?) as usize);
    let (table, size, count) = (number(32)?, half(54)?, half(56)?);
    let is_interp = |at: &usize| elf.get(*at..*at + 4).is_some_and(|kind| kind == PT_INTERP.to_le_bytes());
    let header = (0..count).map(|n| table + n * size).find(is_interp)?;
    let text = elf.get(number(header + 8)?..)?.get(..number(header + 32)?)?;
    Some(PathBuf::from(std::str::from_utf8(text).ok()?.trim_end_matches('\0')))
}

/// As Go spells it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Times are zero, so that one binary always makes the same image.
fn append(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, name, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blob_is_where_its_digest_says() {
        let mut bytes = Vec::new();
        pack(&mut bytes).unwrap();
        let mut names = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            if let Some(hex) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(digest(&content), format!("sha256:{hex}"));
            }
            names.push(name);
        }
        assert_eq!(names.len(), 5);
    }

    #[test]
    fn the_loader_is_found_and_has_its_libraries_with_it() {
        let loader = interpreter(&fs::read("/proc/self/exe").unwrap());
        assert_eq!(loader.is_some(), !loaded_libraries().unwrap().is_empty());
        assert!(interpreter(b"no ELF file").is_none());
    }
}
