//! The tarball: unpacked into /usr/local it is installed, and removed file by file it is gone.

use std::env::consts::ARCH;

use anyhow::Result;

use super::archive::{self, File};
use super::files::{Contents, Layout, UNITS};
use super::stamp::Stamp;

const LAYOUT: Layout = Layout {
    prefix: "",
    units: "lib/systemd/system",
    configuration: "share/doc/leme/examples",
    completions: ["share/bash-completion/completions", "share/zsh/site-functions", "share/fish/vendor_completions.d"],
};

pub(crate) fn name(stamp: &Stamp) -> String {
    format!("{}.tar.gz", folder(stamp))
}

fn folder(stamp: &Stamp) -> String {
    format!("leme-{}-linux-{ARCH}", stamp.version)
}

pub(crate) fn bytes(contents: &Contents, stamp: &Stamp) -> Result<Vec<u8>> {
    let mut files = contents.laid_out(&LAYOUT)?;
    for unit in UNITS {
        let file = files.get_mut(&format!("{}/{unit}", LAYOUT.units)).expect("has just been laid out");
        file.bytes = String::from_utf8_lossy(&file.bytes).replace("=/usr/bin/", "=/usr/local/bin/").into_bytes();
    }
    files.insert("share/doc/leme/LICENSE".to_owned(), File { mode: 0o644, bytes: contents.licence.clone() });
    archive::gzip(&archive::tar(&files, &format!("{}/", folder(stamp)), stamp.time)?, contents.compression)
}
