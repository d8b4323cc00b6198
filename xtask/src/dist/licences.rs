//! What is linked into the binaries from elsewhere, and the notices that its licences ask to be passed on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::step::{cargo, output};

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: PathBuf,
    /// None: of this workspace.
    source: Option<String>,
}

/// Every crate with its licence's name, then each notice once, under the crates that it belongs to.
pub(crate) fn text() -> Result<String> {
    let linked = linked()?;
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata =
        output(cargo().args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &platform]))?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata says something unexpected")?;
    let mut packages = metadata.packages;
    packages.retain(|package| package.source.is_some() && linked.contains(&package.name_and_version()));
    packages.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
    let mut text = String::from("Leme's binaries contain these crates.\n\n");
    for package in &packages {
        let licence = package.license.as_deref().unwrap_or("see its notice");
        writeln!(text, "{}: {licence}", package.name_and_version())?;
    }
    for (notice, owners) in notices(&packages)? {
        write!(text, "\n{}\n{}\n\n{}\n", "-".repeat(80), owners.join(", "), notice.trim_end())?;
    }
    Ok(text)
}

/// Names and versions of what `leme` and `leme-cni` link: no tools of the build, nothing of other systems.
fn linked() -> Result<BTreeSet<String>> {
    let tree = output(cargo().args([
        "tree", "--locked", "-p", "leme", "-p", "leme-cni", "--edges", "normal", "--prefix", "none", "--format", "{p}",
    ]))?;
    let line = |line: &str| {
        let (name, version) = line.split_once(" v")?;
        Some(format!("{name} {}", version.split_whitespace().next()?))
    };
    Ok(tree.lines().filter_map(line).collect())
}

/// Each text once, with the crates that came with it.
fn notices(packages: &[Package]) -> Result<BTreeMap<String, Vec<String>>> {
    let mut notices: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages {
        let folder = package.manifest_path.parent().context("a manifest lies in a folder")?;
        for file in files(folder)? {
            let text = String::from_utf8_lossy(&fs::read(&file)?).replace('\r', "");
            notices.entry(text).or_default().push(package.name_and_version());
        }
    }
    Ok(notices)
}

fn files(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let paths = entries.collect::<Result<Vec<_>, _>>()?.into_iter().map(|entry| entry.path());
    Ok(paths.filter(|path| path.is_file() && is_notice(path)).collect())
}

fn is_notice(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
    ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"].iter().any(|start| name.starts_with(start))
}

impl Package {
    fn name_and_version(&self) -> String {
        format!("{} {}", self.name, self.version)
    }
}
