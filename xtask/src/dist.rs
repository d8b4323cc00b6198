//! `cargo xtask dist`: what people install: a tarball for any Linux, and a Debian package. The same commit gives the same
//! bytes wherever it is built: every time is the commit's, entries are sorted and belong to root, and no path of this
//! machine gets into a binary.

mod archive;
mod compile;
mod debian_package;
mod files;
mod licences;
mod stamp;
mod tarball;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use sha2::{Digest, Sha256};

use crate::step::say;
use crate::{place, setup};

use compile::Binaries;
use files::Contents;
use stamp::Stamp;

#[derive(Args)]
#[group(skip)]
pub(crate) struct Options {
    /// Pack the `leme` and `leme-cni` of this folder instead of building a release: to try the packaging
    #[arg(long, value_name = "FOLDER")]
    bin_dir: Option<PathBuf>,
    /// Where the packages go [default: target/dist]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run()?;
    let stamp = Stamp::of_commit()?;
    let binaries = match &options.bin_dir {
        Some(folder) => Binaries::in_folder(folder)?,
        None => compile::release()?,
    };
    say(&format!("leme {} {}", stamp.version, binaries.linkage));
    let contents = Contents::gather(&binaries)?;
    let folder = options.out.clone().unwrap_or_else(|| place::target().join("dist"));
    for package in pack(&contents, &stamp, &folder)? {
        say(&format!("{}  {}", checksum(&package)?, package.display()));
    }
    Ok(())
}

/// Both packages of the same contents.
fn pack(contents: &Contents, stamp: &Stamp, folder: &Path) -> Result<[PathBuf; 2]> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let tarball = folder.join(tarball::name(stamp));
    let package = folder.join(debian_package::name(stamp));
    write(&tarball, &tarball::bytes(contents, stamp)?)?;
    write(&package, &debian_package::bytes(contents, stamp)?)?;
    Ok([tarball, package])
}

/// An older and a newer version of the same, quickly compressed, under the names by which `tests/package` asks for them.
pub(crate) fn pack_for_tests(leme: PathBuf, cni: PathBuf) -> Result<[(&'static str, PathBuf); 3]> {
    let contents = Contents { compression: 1, ..Contents::gather(&Binaries::of(leme, cni)?)? };
    let folder = place::target().join("dist-tests");
    let stamp = |version: &str| Stamp { version: version.to_owned(), time: 1_700_000_000 };
    let [_, older] = pack(&contents, &stamp("0.0.1~tests"), &folder)?;
    let [tarball, newer] = pack(&contents, &stamp("0.0.2~tests"), &folder)?;
    Ok([("LEME_DEB_OLDER", older), ("LEME_DEB_NEWER", newer), ("LEME_TARBALL", tarball)])
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn checksum(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}
