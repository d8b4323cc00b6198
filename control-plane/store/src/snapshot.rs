//! Copies of a store in one file, taken while it is in use, and the way back for the embedded one.
//!
//! A snapshot is the engine's own database with the SHA-256 of it at the end, as etcd's snapshots are. It is written
//! beside its place, for its owner's eyes only, and appears whole or not at all. Values are as they are stored: what the
//! server sealed stays sealed, and its keys are not in here.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    Error, Revision,
    embedded::{self, OpenError, disk},
    etcd::Etcd,
};

const DIGEST: usize = 32;
/// Clients may have seen so many revisions since the snapshot was taken, where nobody can tell any more.
const UNSEEN: u64 = 10_000_000;
/// What the restored store may be ahead of the one it replaces.
const MARGIN: u64 = 1000;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("{action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is there already")]
    Exists { path: PathBuf },
    #[error("copy {path}: {source}")]
    Copy { path: PathBuf, source: rusqlite::Error },
    #[error("{path} is no snapshot, or not the whole of one: its checksum is another")]
    Damaged { path: PathBuf },
    #[error(
        "{path} is a snapshot of etcd: restore it into each member with `etcdutl snapshot restore --bump-revision \
         1000000000 --mark-compacted`"
    )]
    Etcd { path: PathBuf },
    #[error("the snapshot {path} is not sound: {reason}")]
    Unsound { path: PathBuf, reason: String },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] Error),
    #[error("read from etcd: {0}")]
    Stream(String),
}

/// What has come of a restore.
#[derive(Debug)]
pub struct Restored {
    /// Where the store goes on: past all that clients can have seen.
    pub revision: Revision,
    /// Where the store that was there before is now.
    pub kept: Option<PathBuf>,
}

/// Of the embedded store at `database`, whoever has it open. The file's size.
pub fn take(database: &Path, to: &Path) -> Result<u64, SnapshotError> {
    refuse_existing(to)?;
    let part = beside(to, ".part");
    create(&part)?;
    disk::copy(database, &part).map_err(|source| SnapshotError::Copy { path: database.to_owned(), source })?;
    seal(&part)?;
    publish(&part, to)
}

/// Of one member of etcd.
pub async fn take_etcd(store: &Etcd, to: &Path) -> Result<u64, SnapshotError> {
    refuse_existing(to)?;
    let part = beside(to, ".part");
    let mut file = create(&part)?;
    let mut stream = store.snapshot().await?;
    while let Some(response) = stream.message().await.map_err(|error| SnapshotError::Stream(error.to_string()))? {
        file.write_all(response.blob()).map_err(failed("write", &part))?;
    }
    // etcd has sent the checksum, too.
    body(&part)?;
    publish(&part, to)
}

/// Puts the snapshot in the place of the store at `database`, which no process may have open. What was there is kept.
pub fn restore(snapshot: &Path, database: &Path) -> Result<Restored, SnapshotError> {
    let length = body(snapshot)?;
    recognise(snapshot)?;
    let _lock = disk::lock(database)?;
    let fresh = beside(database, ".restored");
    let mut source = File::open(snapshot).map_err(failed("read", snapshot))?.take(length);
    let mut file = create(&fresh)?;
    io::copy(&mut source, &mut file).map_err(failed("write", &fresh))?;
    let unsound = |reason| SnapshotError::Unsound { path: snapshot.to_owned(), reason };
    let seen = disk::newest(database).map(|seen| seen.0 + MARGIN);
    let ahead = |own: Revision| Revision(seen.map_or(own.0 + UNSEEN, |seen| seen.max(own.0 + MARGIN)));
    let revision = disk::restart(&fresh, ahead).map_err(|reason| {
        let _ = fs::remove_file(&fresh);
        unsound(reason)
    })?;
    let kept = keep(database)?;
    publish(&fresh, database)?;
    Ok(Restored { revision, kept })
}

/// Both engines' snapshots are sealed alike.
fn recognise(snapshot: &Path) -> Result<(), SnapshotError> {
    const SQLITE: &[u8] = b"SQLite format 3\0";
    const BOLT: [u8; 4] = 0xed0c_daed_u32.to_le_bytes();
    let mut head = [0; 20];
    let read = File::open(snapshot).and_then(|mut file| file.read_exact(&mut head));
    read.map_err(failed("read", snapshot))?;
    match head {
        head if head.starts_with(SQLITE) => Ok(()),
        head if head.ends_with(&BOLT) => Err(SnapshotError::Etcd { path: snapshot.to_owned() }),
        _ => Err(SnapshotError::Damaged { path: snapshot.to_owned() }),
    }
}

/// The store out of the way, with what SQLite has beside it.
fn keep(database: &Path) -> Result<Option<PathBuf>, SnapshotError> {
    if !database.exists() {
        return Ok(None);
    }
    let kept = (1..).map(|n| beside(database, &format!(".before-restore-{n}"))).find(|path| !path.exists());
    let kept = kept.expect("numbers do not end");
    for suffix in ["-wal", "-shm", ""] {
        match fs::rename(beside(database, suffix), beside(&kept, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("move", database)(error));
            }
            _ => {}
        }
    }
    Ok(Some(kept))
}

/// How much of the file comes before its checksum, which is right.
fn body(path: &Path) -> Result<u64, SnapshotError> {
    let damaged = || SnapshotError::Damaged { path: path.to_owned() };
    let mut file = File::open(path).map_err(failed("read", path))?;
    let whole = file.metadata().map_err(failed("read", path))?.len();
    let length = whole.checked_sub(DIGEST as u64).ok_or_else(damaged)?;
    let mut digest = Sha256::new();
    io::copy(&mut (&mut file).take(length), &mut digest).map_err(failed("read", path))?;
    let mut stored = [0; DIGEST];
    file.read_exact(&mut stored).map_err(failed("read", path))?;
    if digest.finalize()[..] == stored { Ok(length) } else { Err(damaged()) }
}

/// Appends the checksum.
fn seal(path: &Path) -> Result<(), SnapshotError> {
    let mut digest = Sha256::new();
    let mut file = OpenOptions::new().read(true).append(true).open(path).map_err(failed("open", path))?;
    io::copy(&mut file, &mut digest).map_err(failed("read", path))?;
    file.write_all(&digest.finalize()).map_err(failed("write", path))
}

fn create(path: &Path) -> Result<File, SnapshotError> {
    let _ = fs::remove_file(path);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path).map_err(failed("create", path))
}

/// On disk, then in its place.
fn publish(part: &Path, to: &Path) -> Result<u64, SnapshotError> {
    let rename = || {
        let file = File::open(part)?;
        file.sync_all()?;
        fs::rename(part, to)?;
        let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()?;
        Ok(file.metadata()?.len())
    };
    rename().map_err(failed("write", to))
}

fn refuse_existing(path: &Path) -> Result<(), SnapshotError> {
    if path.exists() { Err(SnapshotError::Exists { path: path.to_owned() }) } else { Ok(()) }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::File { action, path: path.clone(), source }
}

/// The embedded store at `database` for a transfer into it: made beside its place, see [`adopt`].
pub fn prepare(database: &Path, after: Revision) -> Result<(embedded::Embedded, PathBuf), SnapshotError> {
    let fresh = beside(database, ".migrated");
    for suffix in ["-wal", "-shm", ""] {
        let _ = fs::remove_file(beside(&fresh, suffix));
    }
    create(&fresh)?;
    Ok((embedded::Embedded::open_after(&fresh, after)?, fresh))
}

/// Puts a store that [`prepare`] made, and that is closed now, in its place.
pub fn adopt(fresh: &Path, database: &Path) -> Result<(), SnapshotError> {
    let _lock = disk::lock(database)?;
    refuse_existing(database)?;
    disk::fold(fresh).map_err(|source| SnapshotError::Copy { path: fresh.to_owned(), source })?;
    let _ = fs::remove_file(beside(fresh, ".lock"));
    publish(fresh, database).map(drop)
}
