//! Files to tar, the same ones to the same bytes: in the order of their paths, root's, all of one time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tar::{EntryType, Header};

use crate::step::command;

#[derive(Clone)]
pub(crate) struct File {
    pub(crate) mode: u32,
    pub(crate) bytes: Vec<u8>,
}

/// By path, relative to the root they are installed in.
pub(crate) type Files = BTreeMap<String, File>;

/// `prefix` is empty or ends with a slash.
pub(crate) fn tar(files: &Files, prefix: &str, time: u64) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let folders = folders(files).into_iter().map(|folder| (format!("{prefix}{folder}"), None));
    let files = files.iter().map(|(path, file)| (format!("{prefix}{path}"), Some(file)));
    let entries: BTreeMap<_, _> = folders.chain(files).filter(|(path, _)| !path.is_empty()).collect();
    for (path, file) in entries {
        let mut header = header(file, time);
        archive.append_data(&mut header, &path, file.map_or(&[][..], |file| &file.bytes))?;
    }
    Ok(archive.into_inner()?)
}

fn header(file: Option<&File>, time: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(if file.is_some() { EntryType::Regular } else { EntryType::Directory });
    header.set_mode(file.map_or(0o755, |file| file.mode));
    header.set_size(file.map_or(0, |file| file.bytes.len() as u64));
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header.set_username("root").expect("short");
    header.set_groupname("root").expect("short");
    header
}

/// Every folder on the way to a file, each with a slash at its end; the prefix itself is the empty one.
fn folders(files: &Files) -> BTreeSet<String> {
    let ends = |path: &str| path.match_indices('/').map(|(at, _)| at + 1).collect::<Vec<_>>();
    let on_the_way = files.keys().flat_map(|path| ends(path).into_iter().map(|end| path[..end].to_owned()));
    on_the_way.chain([String::new()]).collect()
}

/// By the system's gzip, which every Linux has: this program is not optimised. `-n`: without name and time.
pub(crate) fn gzip(bytes: &[u8], level: u8) -> Result<Vec<u8>> {
    let mut gzip = command("gzip");
    let mut child = gzip
        .args(["-n", &format!("-{level}")])
        .env_remove("GZIP")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start gzip")?;
    let mut stdin = child.stdin.take().expect("piped");
    let output = std::thread::scope(|scope| {
        // Written beside the reading: pipes are short.
        scope.spawn(move || stdin.write_all(bytes));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("gzip failed ({})", output.status);
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(mode: u32, text: &str) -> File {
        File { mode, bytes: text.as_bytes().to_vec() }
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_everything_is_roots() {
        let files =
            Files::from([("usr/share/b".to_owned(), file(0o644, "b")), ("usr/bin/a".to_owned(), file(0o755, "a"))]);
        let bytes = tar(&files, "leme/", 7).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries: Vec<_> = archive.entries().unwrap().map(Result::unwrap).collect();
        let names: Vec<_> = entries.iter().map(|entry| entry.path().unwrap().display().to_string()).collect();
        assert_eq!(
            names,
            ["leme/", "leme/usr/", "leme/usr/bin/", "leme/usr/bin/a", "leme/usr/share/", "leme/usr/share/b"]
        );
        let modes: Vec<_> = entries.iter().map(|entry| entry.header().mode().unwrap()).collect();
        assert_eq!(modes, [0o755, 0o755, 0o755, 0o755, 0o755, 0o644]);
        for entry in &entries {
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 7));
        }
    }

    #[test]
    fn the_same_is_compressed_to_the_same_bytes() {
        let text = vec![b'x'; 1 << 20];
        let (first, again) = (gzip(&text, 9).unwrap(), gzip(&text, 9).unwrap());
        assert_eq!(first, again);
        assert_eq!(&first[4..8], [0; 4], "a time is in the header");
    }
}
