//! The few mount calls that volumes need, each by the system call.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{VolumeError, io};

pub fn tmpfs(target: &Path, size: Option<i64>) -> Result<(), VolumeError> {
    let options = size.map(|bytes| format!("size={bytes}"));
    let flags = MsFlags::MS_RELATIME;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, options.as_deref()).map_err(failed("mount tmpfs on", target))
}

pub fn bind(source: &Path, target: &Path, flags: MsFlags) -> Result<(), VolumeError> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>).map_err(failed("bind", target))
}

pub fn make(target: &Path, propagation: MsFlags) -> Result<(), VolumeError> {
    let none = None::<&str>;
    mount(none, target, none, propagation, none).map_err(failed("share", target))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(nix::Error) -> VolumeError {
    let path = path.to_owned();
    move |error| io(action, &path)(error.into())
}

pub fn is_mounted(path: &Path) -> Result<bool, VolumeError> {
    Ok(mount_points()?.iter().any(|point| point == path))
}

/// Deepest first, since a mount that holds another is busy.
pub fn unmount_below(directory: &Path) -> Result<(), VolumeError> {
    let mut first = Ok(());
    for point in mount_points()?.into_iter().rev().filter(|point| point.starts_with(directory)) {
        let outcome = umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        first = first.and(outcome.map_err(failed("unmount", &point)));
    }
    first
}

/// In the order in which they were mounted.
fn mount_points() -> Result<Vec<PathBuf>, VolumeError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = std::fs::read_to_string(table).map_err(io("read", table))?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect())
}

/// The kernel writes blanks and backslashes in octal.
fn unescape(text: &str) -> PathBuf {
    let text = text.replace(r"\040", " ").replace(r"\011", "\t").replace(r"\012", "\n");
    PathBuf::from(text.replace(r"\134", r"\"))
}
