//! What is packed besides the binaries: units, configuration, completions, man pages, licences. The packages differ only in
//! where each thing lies.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::archive::{File, Files, gzip};
use super::compile::{Binaries, Linkage};
use super::licences;
use crate::place;
use crate::step::{self, command, output};

/// Shells, and the names under which each looks for the completion of `leme`.
const SHELLS: [(&str, &str); 3] = [("bash", "leme"), ("zsh", "_leme"), ("fish", "leme.fish")];

pub(crate) const UNITS: [&str; 2] = ["leme-server.service", "leme-agent.service"];
pub(crate) const CONFIGURATION: [&str; 2] = ["server.env", "agent.env"];

/// Named as they are in this repository, or by the tools that read them.
pub(crate) struct Contents {
    pub(crate) linkage: Linkage,
    pub(crate) leme: Vec<u8>,
    pub(crate) cni: Vec<u8>,
    /// Files of `cli/packaging`.
    pub(crate) packaging: BTreeMap<String, Vec<u8>>,
    /// Shell to script.
    pub(crate) completions: BTreeMap<&'static str, Vec<u8>>,
    /// `leme.1.gz`, …
    pub(crate) pages: BTreeMap<String, Vec<u8>>,
    pub(crate) licence: Vec<u8>,
    pub(crate) changelog: Vec<u8>,
    pub(crate) third_party: Vec<u8>,
    /// Of gzip, for the packages; pages are small and always get the best.
    pub(crate) compression: u8,
}

/// Where a package's readers look for each kind of thing.
pub(crate) struct Layout {
    /// `usr/`, or nothing for what is unpacked into a prefix.
    pub(crate) prefix: &'static str,
    pub(crate) units: &'static str,
    pub(crate) configuration: &'static str,
    pub(crate) completions: [&'static str; 3],
}

impl Contents {
    pub(crate) fn gather(binaries: &Binaries) -> Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let root = place::workspace();
        Ok(Self {
            linkage: binaries.linkage.clone(),
            leme: read(&binaries.leme)?,
            cni: read(&binaries.cni)?,
            packaging: folder(&root.join("cli/packaging"))?,
            completions: completions(&binaries.leme)?,
            pages: pages(&binaries.leme)?,
            licence: read(&root.join("LICENSE"))?,
            changelog: gzip(&read(&root.join("CHANGELOG.md"))?, 9)?,
            third_party: gzip(licences::text()?.as_bytes(), 9)?,
            compression: 9,
        })
    }

    /// One that has just been listed.
    pub(crate) fn packaging(&self, name: &str) -> Result<Vec<u8>> {
        self.packaging.get(name).cloned().with_context(|| format!("no cli/packaging/{name}"))
    }

    pub(crate) fn laid_out(&self, layout: &Layout) -> Result<Files> {
        let Layout { prefix, units, configuration, completions } = layout;
        let mut files = Files::new();
        let mut add = |path: String, mode, bytes: Vec<u8>| drop(files.insert(path, File { mode, bytes }));
        add(format!("{prefix}bin/leme"), 0o755, self.leme.clone());
        add(format!("{prefix}libexec/leme/leme-cni"), 0o755, self.cni.clone());
        add(format!("{prefix}share/doc/leme/CHANGELOG.md.gz"), 0o644, self.changelog.clone());
        add(format!("{prefix}share/doc/leme/third-party.txt.gz"), 0o644, self.third_party.clone());
        for unit in UNITS {
            add(format!("{units}/{unit}"), 0o644, self.packaging(unit)?);
        }
        for name in CONFIGURATION {
            add(format!("{configuration}/{name}"), 0o644, self.packaging(name)?);
        }
        for ((shell, name), folder) in SHELLS.iter().zip(completions) {
            add(format!("{folder}/{name}"), 0o644, self.completions[shell].clone());
        }
        for (name, page) in &self.pages {
            add(format!("{prefix}share/man/man1/{name}"), 0o644, page.clone());
        }
        Ok(files)
    }
}

fn completions(leme: &Path) -> Result<BTreeMap<&'static str, Vec<u8>>> {
    let script = |shell| Ok((shell, output(command(leme).args(["completion", shell]))?.into_bytes()));
    SHELLS.iter().map(|(shell, _)| script(*shell)).collect()
}

fn pages(leme: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let pages = tempfile::tempdir()?;
    step::run(command(leme).arg("manual").arg(pages.path()))?;
    let pages = folder(pages.path())?.into_iter();
    pages.map(|(name, page)| Ok((format!("{name}.gz"), gzip(&page, 9)?))).collect()
}

fn folder(path: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let entries = fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    let read = |entry: fs::DirEntry| Ok((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?));
    entries.map(|entry| read(entry?)).collect()
}
