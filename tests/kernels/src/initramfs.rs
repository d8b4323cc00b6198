//! An initramfs in the kernel's cpio format (`newc`, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;

#[derive(Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    folders: BTreeSet<PathBuf>,
    libraries: BTreeSet<PathBuf>,
    entries: u32,
}

impl Initramfs {
    /// Puts a file there, with the folders above it.
    pub fn add(&mut self, path: &str, content: &[u8], mode: u32) {
        let path = Path::new(path.trim_start_matches('/'));
        for folder in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            if !folder.as_os_str().is_empty() && self.folders.insert(folder.to_owned()) {
                self.entry(&folder.to_string_lossy(), DIRECTORY, &[]);
            }
        }
        self.entry(&path.to_string_lossy(), FILE | mode, content);
    }

    pub fn add_folder(&mut self, path: &str) {
        self.add(&format!("{path}/.keep"), &[], 0o644);
    }

    /// Puts a program there with the shared libraries it is linked to, where the loader looks for them.
    pub fn add_program(&mut self, path: &str, program: &Path) -> Result<()> {
        let mode = fs::metadata(program)?.permissions().mode() & 0o777;
        self.add(path, &fs::read(program).with_context(|| format!("read {}", program.display()))?, mode);
        for library in libraries(program)? {
            if self.libraries.insert(library.clone()) {
                self.add(&library.to_string_lossy(), &fs::read(&library)?, 0o755);
            }
        }
        Ok(())
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = 1;
        let fields = [self.entries, mode, 0, 0, links, 0, length(content), 0, 0, 0, 0, length(name.as_bytes()) + 1, 0];
        self.bytes.extend(b"070701");
        fields.iter().for_each(|field| self.bytes.extend(format!("{field:08x}").bytes()));
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a file of an initramfs is smaller than 4 GiB")
}

/// What `ldd` says: the libraries' real places, the loader included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("start ldd")?;
    if !output.status.success() {
        bail!("ldd {}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
