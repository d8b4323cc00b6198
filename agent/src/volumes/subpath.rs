//! `subPath`: a part of a volume, mounted without trusting the volume's contents. The path is resolved by the kernel
//! beneath the volume (openat2), so no symbolic link leads out of it, and what was resolved is bound by descriptor, so
//! nothing can be swapped in between.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, mkdirat};

use super::{VolumeError, io, mounts};

/// Binds `subpath` of `volume` onto `target` and returns it; an absent directory is made, as upstream does.
pub fn bind(volume: &Path, subpath: &str, target: PathBuf) -> Result<PathBuf, VolumeError> {
    let found = resolve(volume, subpath)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let is_dir = std::fs::metadata(&source).map_err(io("stat", &source))?.is_dir();
    if mounts::is_mounted(&target)? {
        mounts::unmount_below(&target)?;
    }
    let parent = target.parent().expect("the target is below the pod's directory");
    std::fs::create_dir_all(if is_dir { &target } else { parent }).map_err(io("create", &target))?;
    if !is_dir {
        File::create(&target).map_err(io("create", &target))?;
    }
    mounts::bind(&source, &target, MsFlags::MS_REC)?;
    Ok(target)
}

fn resolve(volume: &Path, subpath: &str) -> Result<OwnedFd, VolumeError> {
    let mut current: OwnedFd = File::open(volume).map_err(io("open", volume))?.into();
    let parts: Vec<&str> = subpath.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(VolumeError::Escape(subpath.into()));
    }
    if let Ok(whole) = open(&current, &parts.join("/")) {
        return Ok(whole);
    }
    for part in parts {
        current = match open(&current, part) {
            Err(nix::Error::ENOENT) => {
                mkdirat(&current, part, Mode::from_bits_truncate(0o750))
                    .map_err(|error| io("create", Path::new(subpath))(error.into()))?;
                open(&current, part)
            }
            opened => opened,
        }
        .map_err(|error| match error {
            nix::Error::EXDEV | nix::Error::ELOOP => VolumeError::Escape(subpath.into()),
            other => io("open", Path::new(subpath))(other.into()),
        })?;
    }
    Ok(current)
}

fn open(at: &OwnedFd, path: &str) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(at, if path.is_empty() { "." } else { path }, how)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_outside_the_volume_is_reached_and_missing_directories_are_made() {
        let outer = tempfile::tempdir().unwrap();
        let volume = outer.path().join("volume");
        std::fs::create_dir_all(volume.join("inside")).unwrap();
        symlink("inside", volume.join("good")).unwrap();
        symlink("/etc", volume.join("absolute")).unwrap();
        symlink("../", volume.join("up")).unwrap();
        assert!(resolve(&volume, "good").is_ok());
        assert!(resolve(&volume, "a/b").is_ok() && volume.join("a/b").is_dir());
        for escape in ["absolute", "up", "../volume", "absolute/passwd", "inside/../.."] {
            assert!(matches!(resolve(&volume, escape), Err(VolumeError::Escape(_))), "{escape}");
        }
    }
}
