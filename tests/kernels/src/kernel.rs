//! A Debian kernel package, unpacked: its image and its modules.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

pub struct Kernel {
    pub image: PathBuf,
    modules: BTreeMap<String, PathBuf>,
}

impl Kernel {
    /// The kernel called `name` (`5.10`) among the folders that `LEME_KERNELS` lists.
    pub fn find(name: &str) -> Result<Self> {
        let folders = std::env::var("LEME_KERNELS")
            .context("LEME_KERNELS names no kernels: run these tests with `cargo xtask test kernels`")?;
        let folder = std::env::split_paths(&folders).find(|folder| folder.file_name().is_some_and(|file| file == name));
        Self::open(&folder.with_context(|| format!("LEME_KERNELS ({folders}) has no kernel {name}"))?)
    }

    fn open(folder: &Path) -> Result<Self> {
        let mut found = Vec::new();
        // Merged-/usr and older packages put images and modules in different places.
        for root in ["boot", "lib/modules", "usr/lib/modules"] {
            collect(&folder.join(root), &mut found)?;
        }
        let image = found.iter().find(|(name, _)| name.starts_with("vmlinuz")).map(|(_, path)| path.clone());
        let image = image.with_context(|| format!("no vmlinuz in {}", folder.display()))?;
        let module = |(name, path): (String, PathBuf)| Some((name.split_once(".ko")?.0.replace('-', "_"), path));
        Ok(Self { image, modules: found.into_iter().filter_map(module).collect() })
    }

    /// A module's bytes, uncompressed: `None` where it is built in (or does not exist).
    pub fn module(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.modules.get(name) else { return Ok(None) };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => unpack("xz", path).map(Some),
            Some("zst") => unpack("zstd", path).map(Some),
            _ => Ok(Some(fs::read(path)?)),
        }
    }
}

fn collect(folder: &Path, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => collect(&entry.path(), found)?,
            false => found.push((entry.file_name().to_string_lossy().into_owned(), entry.path())),
        }
    }
    Ok(())
}

fn unpack(tool: &str, path: &Path) -> Result<Vec<u8>> {
    let output = Command::new(tool).args(["-dc"]).arg(path).output().with_context(|| format!("start {tool}"))?;
    if !output.status.success() {
        bail!("{tool} -dc {}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}
