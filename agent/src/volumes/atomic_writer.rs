//! Upstream's atomic writer: files are written into a fresh hidden directory and `..data` is switched to it by one
//! rename, so a reader sees all of the old contents or all of the new. User-visible names are links through `..data`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::{VolumeError, io};

/// Path inside the volume → contents and mode.
pub type Payload = BTreeMap<String, File>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Only for tokens, which not everybody may read.
    pub private: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Owner {
    pub user: Option<u32>,
    pub group: Option<u32>,
}

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Does nothing where the contents are already these.
pub fn write(target: &Path, payload: &Payload, owner: Owner) -> Result<(), VolumeError> {
    let old = fs::read_link(target.join(DATA)).ok();
    if let Some(old) = &old
        && is_current(&target.join(old), payload)
    {
        return link_all(target, payload);
    }
    let name = format!("..{}", jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%f"));
    fill(&target.join(&name), payload, owner)?;
    let fresh = target.join(DATA_NEW);
    remove_if_there(&fresh)?;
    symlink(&name, &fresh).map_err(io("link", &fresh))?;
    fs::rename(&fresh, target.join(DATA)).map_err(io("switch", &fresh))?;
    link_all(target, payload)?;
    remove_stale(target, payload)?;
    match old.map(|old| target.join(old)).filter(|old| old.is_dir()) {
        Some(old) => fs::remove_dir_all(&old).map_err(io("remove", &old)),
        None => Ok(()),
    }
}

fn is_current(directory: &Path, payload: &Payload) -> bool {
    let same = |(path, file): (&String, &File)| fs::read(directory.join(path)).is_ok_and(|data| data == file.data);
    payload.iter().all(same) && count_files(directory) == payload.len()
}

fn count_files(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count_files(&entry.path()) } else { 1 }).sum()
}

fn fill(directory: &Path, payload: &Payload, owner: Owner) -> Result<(), VolumeError> {
    make_directory(directory, owner)?;
    for (path, file) in payload {
        let parents: Vec<&Path> = Path::new(path).ancestors().skip(1).filter(|part| *part != Path::new("")).collect();
        for parent in parents.into_iter().rev() {
            make_directory(&directory.join(parent), owner)?;
        }
        let path = directory.join(path);
        fs::write(&path, &file.data).map_err(io("write", &path))?;
        let group_bits = if owner.group.is_some() { 0o440 } else { 0 };
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode | group_bits)).map_err(io("chmod", &path))?;
        let user = owner.user.filter(|_| file.private);
        if user.is_some() || owner.group.is_some() {
            chown(&path, user, owner.group).map_err(io("chown", &path))?;
        }
    }
    Ok(())
}

fn make_directory(path: &Path, owner: Owner) -> Result<(), VolumeError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir(path).map_err(io("create", path))?;
    let mode = if owner.group.is_some() { 0o2755 } else { 0o755 };
    if owner.group.is_some() {
        chown(path, None, owner.group).map_err(io("chown", path))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io("chmod", path))
}

fn tops(payload: &Payload) -> BTreeSet<&str> {
    payload.keys().filter_map(|path| path.split('/').next()).collect()
}

fn link_all(target: &Path, payload: &Payload) -> Result<(), VolumeError> {
    for top in tops(payload) {
        let link = target.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(PathBuf::from(DATA).join(top), &link).map_err(io("link", &link))?;
        }
    }
    Ok(())
}

fn remove_stale(target: &Path, payload: &Payload) -> Result<(), VolumeError> {
    let wanted = tops(payload);
    for entry in fs::read_dir(target).map_err(io("read", target))?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.into(), mode: 0o644, private: false };
        files.iter().map(|(path, data)| (path.to_string(), file(data))).collect()
    }

    #[test]
    fn contents_change_at_once_and_what_is_gone_goes() {
        let directory = tempfile::tempdir().unwrap();
        let (target, owner) = (directory.path(), Owner::default());
        write(target, &payload(&[("a", "1"), ("d/b", "2")]), owner).unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(target.join("d/b")).unwrap(), "2");
        let first = fs::read_link(target.join(DATA)).unwrap();

        write(target, &payload(&[("a", "1"), ("d/b", "2")]), owner).unwrap();
        assert_eq!(fs::read_link(target.join(DATA)).unwrap(), first, "the same contents are not written again");

        write(target, &payload(&[("a", "3")]), owner).unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "3");
        assert!(fs::symlink_metadata(target.join("d")).is_err());
        assert!(!target.join(first).exists());
    }

    #[test]
    fn modes_are_as_asked() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = payload(&[("a", "1")]);
        files.get_mut("a").unwrap().mode = 0o400;
        write(directory.path(), &files, Owner::default()).unwrap();
        let mode = fs::metadata(directory.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
    }
}
