//! The Debian package, written without Debian's tools: deb(5) is an ar archive of two tar archives.

use std::fmt::Write;

use anyhow::Result;

use super::archive::{self, File, Files};
use super::compile::Linkage;
use super::files::{CONFIGURATION, Contents, Layout};
use super::stamp::Stamp;

const LAYOUT: Layout = Layout {
    prefix: "usr/",
    units: "usr/lib/systemd/system",
    configuration: "etc/leme",
    completions: [
        "usr/share/bash-completion/completions",
        "usr/share/zsh/vendor-completions",
        "usr/share/fish/vendor_completions.d",
    ],
};

/// What dpkg runs, and when: deb-postinst(5), deb-prerm(5), deb-postrm(5).
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

pub(crate) fn name(stamp: &Stamp) -> String {
    format!("leme_{}_{}.deb", stamp.version, architecture())
}

pub(crate) fn bytes(contents: &Contents, stamp: &Stamp) -> Result<Vec<u8>> {
    let mut data = contents.laid_out(&LAYOUT)?;
    let copyright = contents.packaging("copyright")?;
    data.insert("usr/share/doc/leme/copyright".to_owned(), File { mode: 0o644, bytes: copyright });
    let control = control(contents, stamp, &data)?;
    let pack = |files: &Files| archive::gzip(&archive::tar(files, "", stamp.time)?, contents.compression);
    Ok(ar(
        &[("debian-binary", b"2.0\n"), ("control.tar.gz", &pack(&control)?), ("data.tar.gz", &pack(&data)?)],
        stamp.time,
    ))
}

fn control(contents: &Contents, stamp: &Stamp, data: &Files) -> Result<Files> {
    let conffiles: String = CONFIGURATION.iter().map(|name| format!("/{}/{name}\n", LAYOUT.configuration)).collect();
    let text = |text: String| File { mode: 0o644, bytes: text.into_bytes() };
    let mut files = Files::from([
        ("control".to_owned(), text(fields(&contents.linkage, stamp, data))),
        ("conffiles".to_owned(), text(conffiles)),
    ]);
    for script in SCRIPTS {
        files.insert(script.to_owned(), File { mode: 0o755, bytes: contents.packaging(script)? });
    }
    Ok(files)
}

fn fields(linkage: &Linkage, stamp: &Stamp, data: &Files) -> String {
    let kilobytes: usize = data.values().map(|file| file.bytes.len().div_ceil(1024)).sum();
    let mut fields = String::new();
    let mut field = |name: &str, value: &str| writeln!(fields, "{name}: {value}").expect("strings take everything");
    field("Package", "leme");
    field("Version", &stamp.version);
    field("Architecture", architecture());
    field("Maintainer", "The Leme authors <leme@localhost>");
    field("Section", "admin");
    field("Priority", "optional");
    field("Installed-Size", &kilobytes.to_string());
    if let Linkage::Glibc { major, minor } = linkage {
        field("Depends", &format!("libc6 (>= {major}.{minor}), libgcc-s1"));
    }
    // A node needs it; a machine that only serves the API does not.
    field("Recommends", "containerd (>= 1.6) | containerd.io");
    field("Description", "Kubernetes cluster in one binary, its network in eBPF");
    fields.push_str(DESCRIPTION);
    fields
}

const DESCRIPTION: &str = " Leme serves the Kubernetes API with controllers and scheduler, runs pods on
 containerd, and carries their traffic and that of Services with eBPF programs,
 without a rule of iptables or nftables.
 .
 Installing it starts nothing: a cluster begins when somebody makes one.
";

/// Debian's name for what this program was compiled for.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// ar(5): a header of 60 bytes of text before each member, and members begin at even places.
fn ar(members: &[(&str, &[u8])], time: u64) -> Vec<u8> {
    let mut archive = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        archive.extend(format!("{name:<16}{time:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, "100644", bytes.len()).bytes());
        archive.extend(*bytes);
        archive.extend((bytes.len() % 2 == 1).then_some(b'\n'));
    }
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_an_archive_begin_at_even_places_after_their_headers() {
        let archive = ar(&[("odd", b"abc"), ("even", b"de")], 12);
        assert_eq!(archive.len(), 8 + 60 + 4 + 60 + 2);
        assert_eq!(&archive[8..68], b"odd             12          0     0     100644  3         `\n");
        assert_eq!(&archive[68..76], b"abc\neven");
    }

    #[test]
    fn only_a_binary_that_needs_the_c_library_depends_on_it() {
        let stamp = Stamp { version: "1.2.3".to_owned(), time: 0 };
        let fields = |linkage| fields(&linkage, &stamp, &Files::new());
        assert!(!fields(Linkage::Static).contains("Depends:"));
        assert!(fields(Linkage::Glibc { major: 2, minor: 34 }).contains("\nDepends: libc6 (>= 2.34), libgcc-s1\n"));
    }
}
