//! The file and its queries. Nothing here decides anything: the writer does.
//!
//! One SQLite database, `application_id` "Leme", `user_version` 1, WAL, `synchronous=FULL` (a commit is an fsync).
//!
//! ```text
//! objects   change    INTEGER PRIMARY KEY   revision << 12 | position in its transaction: appended, never updated
//!           key       TEXT
//!           created   INTEGER               revision at which the key came into being
//!           previous  INTEGER NULL          change that this one replaces; NULL: the key did not exist
//!           expires   INTEGER NULL          Unix seconds at which the writer deletes the key
//!           value     BLOB NULL             NULL: this change deletes the key
//! by_key    (key, change)
//! meta      compacted INTEGER               one row: history up to here is forgotten
//! ```
//!
//! Compaction to R deletes what a change at or before R replaced, and deletions at or before R: what remains is
//! the state at R and all changes after it.

use std::{
    fmt::Display,
    fs::{File, OpenOptions, Permissions, TryLockError},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, ffi, params};

use super::{Entry, OpenError, Present};
use crate::{Error, Event, Key, Page, Record, Revision};

const APPLICATION_ID: i64 = 0x4c65_6d65;
const LAYOUT: i64 = 1;
const POSITION_BITS: u32 = 12;
/// Operations that fit in one transaction.
pub(super) const MAX_OPERATIONS: usize = 1 << POSITION_BITS;

const CREATE: &str = "
    CREATE TABLE objects (
        change INTEGER PRIMARY KEY, key TEXT NOT NULL, created INTEGER NOT NULL,
        previous INTEGER, expires INTEGER, value BLOB);
    CREATE INDEX by_key ON objects (key, change);
    CREATE TABLE meta (compacted INTEGER NOT NULL);
    INSERT INTO meta VALUES (1);
    PRAGMA application_id = 0x4c656d65;
    PRAGMA user_version = 1;";

const CURRENT: &str = "SELECT change, key, created, value, expires FROM objects
    WHERE change IN (SELECT MAX(change) FROM objects GROUP BY key) AND value IS NOT NULL";

const AT: &str = "SELECT change, key, created, value FROM objects o
    WHERE key >= ?1 AND key < ?2 AND value IS NOT NULL
    AND change = (SELECT MAX(change) FROM objects i WHERE i.key = o.key AND i.change < ?3)
    ORDER BY key LIMIT ?4";

const COUNT_AT: &str = "SELECT COUNT(*) FROM objects o
    WHERE key >= ?1 AND key < ?2 AND value IS NOT NULL
    AND change = (SELECT MAX(change) FROM objects i WHERE i.key = o.key AND i.change < ?3)";

/// `+o.key`: in the order of changes, never through the index of keys.
const CHANGES: &str = "SELECT o.change, o.key, o.created, o.value, p.change, p.key, p.created, p.value
    FROM objects o LEFT JOIN objects p ON p.change = o.previous
    WHERE o.change >= ?1 AND o.change < ?2 AND +o.key >= ?3 AND +o.key < ?4 ORDER BY o.change LIMIT ?5";

/// The identity of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Change(i64);

impl Change {
    pub(super) fn new(revision: Revision, position: usize) -> Self {
        Self((revision.0 as i64) << POSITION_BITS | position as i64)
    }

    /// The first change after `revision`.
    pub(super) fn after(revision: Revision) -> Self {
        Self::new(Revision(revision.0 + 1), 0)
    }

    fn revision(self) -> Revision {
        Revision((self.0 >> POSITION_BITS) as u64)
    }

    /// The last revision that lies wholly before this change.
    pub(super) fn revision_before(self) -> Revision {
        Revision(self.revision().0 - 1)
    }
}

/// What a commit appends.
pub(super) struct NewRow {
    pub(super) change: Change,
    pub(super) key: Key,
    pub(super) created: Revision,
    pub(super) previous: Option<Change>,
    pub(super) expires: Option<u64>,
    pub(super) value: Option<Bytes>,
}

pub(super) struct Loaded {
    pub(super) present: Present,
    pub(super) compacted: Revision,
}

/// A lock file beside the database: SQLite's own locks would keep out our readers too.
pub(crate) fn lock(path: &Path) -> Result<File, OpenError> {
    let beside = PathBuf::from(format!("{}.lock", path.display()));
    let file = File::create(&beside).map_err(|error| open_error(&beside, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: path.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(open_error(&beside, &error)),
    }
}

pub(super) fn open_error(path: &Path, error: &dyn Display) -> OpenError {
    OpenError::Open { path: path.display().to_string(), reason: error.to_string() }
}

/// The whole cluster stands in it: its owner's alone. SQLite gives the files beside it the same mode.
fn make_private(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))
}

pub(super) fn open(path: &Path) -> Result<(Connection, Loaded), OpenError> {
    make_private(path).map_err(|error| open_error(path, &error))?;
    let connection = Connection::open(path).map_err(|error| judge(path, &error))?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(|error| judge(path, &error))?;
    identify(path, &connection)?;
    let loaded = prepare(&connection).and_then(|()| load(&connection)).map_err(|error| judge(path, &error))?;
    Ok((connection, loaded))
}

/// A fresh file is laid out; any other must carry our mark.
fn identify(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let number = |query| connection.query_row(query, [], |row| row.get::<_, i64>(0)).map_err(|e| judge(path, &e));
    let foreign = |found: String| OpenError::Foreign { path: path.display().to_string(), found };
    let application = number("PRAGMA application_id")?;
    let tables = number("SELECT COUNT(*) FROM sqlite_schema")?;
    let layout = number("PRAGMA user_version")?;
    match (application, tables, layout) {
        (0, 0, 0) => connection
            .execute_batch(&format!("PRAGMA journal_mode=WAL; BEGIN IMMEDIATE; {CREATE} COMMIT;"))
            .map_err(|error| judge(path, &error)),
        (APPLICATION_ID, _, LAYOUT) => Ok(()),
        (APPLICATION_ID, _, other) => Err(foreign(format!("layout {other}, this version knows {LAYOUT}"))),
        _ => Err(foreign("an SQLite database of another program".to_owned())),
    }
}

fn judge(path: &Path, error: &rusqlite::Error) -> OpenError {
    let (path, reason) = (path.display().to_string(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::Foreign { path, found: "not an SQLite database".to_owned() },
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Corrupt { path, reason },
        _ => match error {
            rusqlite::Error::SqliteFailure(..) => OpenError::Open { path, reason },
            _ => OpenError::Corrupt { path, reason },
        },
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=OFF;")
}

fn load(connection: &Connection) -> rusqlite::Result<Loaded> {
    let compacted: i64 = connection.query_row("SELECT compacted FROM meta", [], |row| row.get(0))?;
    let newest: Option<i64> = connection.query_row("SELECT MAX(change) FROM objects", [], |row| row.get(0))?;
    let compacted = Revision(compacted as u64);
    let newest = newest.map_or(compacted, |change| Change(change).revision());
    let mut current = connection.prepare(CURRENT)?;
    let entries = current.query_map([], |row| {
        let record = record(row, 0)?;
        let expires = row.get::<_, Option<i64>>(4)?.map(|seconds| seconds as u64);
        Ok((record.key.clone(), Entry { change: Change(row.get(0)?), record, expires }))
    })?;
    let present = Present { revision: newest.max(compacted), entries: entries.collect::<Result<_, _>>()? };
    Ok(Loaded { present, compacted })
}

/// Columns from `first`: change, key, created, value.
fn record(row: &Row<'_>, first: usize) -> rusqlite::Result<Record> {
    Ok(Record {
        key: Key::from(row.get_ref(first + 1)?.as_str()?),
        value: Bytes::from(row.get::<_, Option<Vec<u8>>>(first + 3)?.unwrap_or_default()),
        created: Revision(row.get::<_, i64>(first + 2)? as u64),
        modified: Change(row.get(first)?).revision(),
    })
}

/// One SQLite transaction; on any error nothing of it remains.
pub(super) fn append(connection: &mut Connection, rows: &[NewRow]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction.prepare_cached("INSERT INTO objects VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
        for row in rows {
            insert.execute(params![
                row.change.0,
                &*row.key,
                row.created.0 as i64,
                row.previous.map(|change| change.0),
                row.expires.map(|seconds| seconds as i64),
                row.value.as_deref(),
            ])?;
        }
    }
    transaction.commit()
}

/// Makes the mark durable; the rows go later, with [`forget`].
pub(super) fn mark_compacted(connection: &Connection, revision: Revision) -> rusqlite::Result<()> {
    connection.execute("UPDATE meta SET compacted = ?1", [revision.0 as i64]).map(drop)
}

/// Deletes what the changes of the revisions `(from, to]` made obsolete.
pub(super) fn forget(connection: &mut Connection, from: Revision, to: Revision) -> rusqlite::Result<()> {
    let range = params![Change::after(from).0, Change::after(to).0];
    let transaction = connection.transaction()?;
    transaction.execute(
        "DELETE FROM objects WHERE change IN (
            SELECT previous FROM objects WHERE change >= ?1 AND change < ?2 AND previous IS NOT NULL)",
        range,
    )?;
    transaction.execute("DELETE FROM objects WHERE change >= ?1 AND change < ?2 AND value IS NULL", range)?;
    transaction.commit()
}

/// The lowest revision that still has a row: where an interrupted compaction has to start again.
pub(super) fn oldest(connection: &Connection) -> rusqlite::Result<Option<Revision>> {
    let change: Option<Option<i64>> =
        connection.query_row("SELECT MIN(change) FROM objects", [], |row| row.get(0)).optional()?;
    Ok(change.flatten().map(|change| Change(change).revision()))
}

/// The lowest revision after this one that has a row.
pub(super) fn next_after(connection: &Connection, revision: Revision) -> rusqlite::Result<Option<Revision>> {
    let query = "SELECT MIN(change) FROM objects WHERE change >= ?1";
    let change: Option<i64> = connection.query_row(query, [Change::after(revision).0], |row| row.get(0))?;
    Ok(change.map(|change| Change(change).revision()))
}

/// A new store that has forgotten everything up to `revision`.
pub(super) fn create(path: &Path, revision: Revision) -> Result<(), OpenError> {
    let (connection, _) = open(path)?;
    mark_compacted(&connection, revision).map_err(|error| judge(path, &error))
}

/// The newest revision of a store, if there is one and it can tell.
pub(crate) fn newest(path: &Path) -> Option<Revision> {
    let connection = read_only(path).ok()?;
    load(&connection).ok().map(|loaded| loaded.present.revision)
}

/// The whole store as one file, whoever has it open.
pub(crate) fn copy(from: &Path, to: &Path) -> rusqlite::Result<()> {
    read_only(from)?.execute("VACUUM INTO ?1", [to.to_string_lossy()]).map(drop)
}

/// Ends write-ahead logging: what stands beside the file is in it.
pub(crate) fn fold(path: &Path) -> rusqlite::Result<()> {
    Connection::open(path)?.query_row("PRAGMA journal_mode=DELETE", [], |_| Ok(()))
}

/// Whether the file is a sound store; it goes on at the revision that `ahead` names, with its history forgotten.
pub(crate) fn restart(path: &Path, ahead: impl FnOnce(Revision) -> Revision) -> Result<Revision, String> {
    let sqlite = |error: rusqlite::Error| error.to_string();
    let connection = Connection::open(path).map_err(sqlite)?;
    let number = |query| connection.query_row(query, [], |row| row.get::<_, i64>(0)).map_err(sqlite);
    let (application, layout) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
    if (application, layout) != (APPLICATION_ID, LAYOUT) {
        return Err(format!("it is no store of this version (application {application:#x}, layout {layout})"));
    }
    let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(sqlite)?;
    if verdict != "ok" {
        return Err(verdict);
    }
    let revision = ahead(load(&connection).map_err(sqlite)?.present.revision);
    mark_compacted(&connection, revision).map_err(sqlite)?;
    connection.query_row("PRAGMA journal_mode=DELETE", [], |_| Ok(())).map_err(sqlite)?;
    Ok(revision)
}

fn read_only(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}

/// Keys under `prefix` greater than `after`.
pub(super) struct Query {
    start: String,
    end: String,
    limit: usize,
}

impl Query {
    pub(super) fn new(prefix: &str, after: Option<&str>, limit: usize) -> Self {
        let start = after.filter(|after| *after >= prefix).map_or_else(|| prefix.to_owned(), successor);
        Self { start, end: end_of(prefix), limit }
    }
}

/// The first key after `key`.
fn successor(key: &str) -> String {
    format!("{key}\0")
}

/// Keys are paths: none holds the last character of Unicode.
fn end_of(prefix: &str) -> String {
    format!("{prefix}\u{10ffff}")
}

/// Connections for reading the past, made as needed and kept.
pub(super) struct Past {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Past {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), idle: Mutex::default() }
    }

    pub(super) fn path(&self) -> String {
        self.path.display().to_string()
    }

    pub(super) fn list(&self, query: &Query, at: Revision) -> Result<Page, Error> {
        self.read("list", |connection| {
            let snapshot = connection.unchecked_transaction()?;
            let before = Change::after(at).0;
            let limit = if query.limit == 0 { -1 } else { query.limit as i64 };
            let mut select = snapshot.prepare_cached(AT)?;
            let rows = select.query_map(params![query.start, query.end, before, limit], |row| record(row, 0))?;
            let records = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            let remaining = match records.last() {
                Some(last) if records.len() == query.limit => snapshot
                    .prepare_cached(COUNT_AT)?
                    .query_row(params![successor(&last.key), query.end, before], |row| row.get::<_, i64>(0))?,
                _ => 0,
            };
            Ok(Page { records, revision: at, remaining: remaining as u64 })
        })
    }

    /// Up to `limit` changes under `prefix` in `[from, until)`, and where to go on if there may be more.
    pub(super) fn changes(
        &self,
        prefix: &str,
        from: Change,
        until: Change,
        limit: usize,
    ) -> Result<(Vec<Event>, Option<Change>), Error> {
        self.read("watch", |connection| {
            let mut select = connection.prepare_cached(CHANGES)?;
            let range = params![from.0, until.0, prefix, end_of(prefix), limit as i64];
            let rows = select.query_map(range, |row| Ok((Change(row.get(0)?), event(row)?)))?;
            let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            let next = rows.last().filter(|_| rows.len() == limit).map(|(change, _)| Change(change.0 + 1));
            Ok((rows.into_iter().map(|(_, event)| event).collect(), next))
        })
    }

    fn read<R>(
        &self,
        action: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<R>,
    ) -> Result<R, Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let read = idle.map_or_else(|| self.connect(), Ok).and_then(|connection| {
            let result = query(&connection)?;
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            Ok(result)
        });
        read.map_err(|error| Error::Unavailable { action, subject: self.path(), reason: error.to_string() })
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        read_only(&self.path)
    }
}

/// A row of [`CHANGES`].
fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    let changed = record(row, 0)?;
    let previous = row.get::<_, Option<i64>>(4)?.map(|_| record(row, 4)).transpose()?;
    let deleted = row.get_ref(3)?.as_blob_or_null()?.is_none();
    Ok(match (deleted, previous) {
        (true, Some(last)) => Event::Delete { record: Record { modified: changed.modified, ..last } },
        (true, None) => Event::Delete { record: changed },
        (false, previous) => Event::Put { record: changed, previous },
    })
}

/// Whether trying again later can help: the disk may get space.
pub(super) fn reason(error: &rusqlite::Error) -> String {
    match error.sqlite_error() {
        Some(ffi::Error { code: ErrorCode::DiskFull, .. }) => "no space left on the store's disk".to_owned(),
        _ => error.to_string(),
    }
}
