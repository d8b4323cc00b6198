//! The embedded engine: one SQLite file, one writer thread, the present in memory.
//!
//! The writer (`writer`) owns compare-and-swap. It takes all transactions that wait, applies them one after
//! another to a private copy of the present (a persistent map: the copy is a pointer), writes their rows in one
//! SQLite transaction, and only when that is on disk publishes the copy, feeds the watches and acknowledges. A
//! failed commit drops the copy: the whole batch fails and nothing else changes. Handlers merely await the answer,
//! so a cancelled call never half-writes.
//!
//! Reads of the present never touch the disk. Reads of the past and the replay of a watch do (`disk`, which has
//! the byte-level layout), on connections of their own, beside the writer.

pub(crate) mod disk;
mod writer;

use std::{
    ops::Bound,
    path::Path,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, mpsc},
    thread::JoinHandle,
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use imbl::OrdMap;
use tokio::sync::{mpsc as feed, oneshot};

use self::{
    disk::{Change, Past},
    writer::{Command, Writer},
};
use crate::{
    Error, Event, Key, Outcome, Page, Record, Revision, Store, Transaction, Watch,
    transfer::{self, Content, Target},
};

/// Transactions that a watcher may be behind before it is cut.
const WATCH_BUFFER: usize = 8192;
/// Changes that a replay reads from disk at a time.
const REPLAY: usize = 1000;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another process: one server per data directory")]
    Locked { path: String },
    #[error("{path} is not a Leme store: {found}. Choose another data directory or move the file away")]
    Foreign { path: String, found: String },
    #[error("{path} is damaged: {reason}. Restore it from a backup, or move it away to start empty")]
    Corrupt { path: String, reason: String },
    #[error("opening {path}: {reason}")]
    Open { path: String, reason: String },
}

/// The newest state of a key: the record, its row, and when it goes by itself (Unix seconds).
#[derive(Clone, Debug)]
struct Entry {
    record: Record,
    change: Change,
    expires: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Present {
    revision: Revision,
    entries: OrdMap<Key, Entry>,
}

struct Watcher {
    prefix: String,
    from: Revision,
    /// The last revision that was sent and concerned the prefix.
    touched: Revision,
    feed: feed::Sender<Vec<Event>>,
}

/// What the writer publishes and everybody reads; changed under one lock so that a new watcher has no gap.
struct Shared {
    present: Present,
    compacted: Revision,
    watchers: Vec<Watcher>,
    /// Why the writer is gone, for watches that end.
    closed: bool,
}

pub struct Embedded {
    shared: Arc<RwLock<Shared>>,
    past: Arc<Past>,
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<JoinHandle<()>>,
    path: String,
    /// Keeps other processes out until the last thread of this one is done.
    _lock: std::fs::File,
}

impl Embedded {
    /// Opens or creates the store; blocks while the present is read into memory.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let lock = disk::lock(path)?;
        let (connection, loaded) = disk::open(path)?;
        let expiries = loaded.present.entries.values();
        let expiries = expiries.filter_map(|entry| Some((entry.expires?, entry.record.key.clone()))).collect();
        let shared =
            Shared { present: loaded.present, compacted: loaded.compacted, watchers: Vec::new(), closed: false };
        let shared = Arc::new(RwLock::new(shared));
        let (commands, queue) = mpsc::channel();
        let writer = Writer::new(connection, shared.clone(), queue, expiries);
        let writer = std::thread::Builder::new().name("store-writer".to_owned()).spawn(move || writer.run());
        let writer = writer.map_err(|error| disk::open_error(path, &error))?;
        Ok(Self {
            shared,
            past: Arc::new(Past::new(path)),
            commands: Some(commands),
            writer: Some(writer),
            path: path.display().to_string(),
            _lock: lock,
        })
    }

    /// A new store whose first revision comes after this one. Its history before that counts as forgotten.
    pub(crate) fn open_after(path: &Path, revision: Revision) -> Result<Self, OpenError> {
        disk::create(path, revision)?;
        Self::open(path)
    }

    /// Everything to be transferred, and the newest revision.
    pub fn contents(&self) -> (Vec<Content>, Revision) {
        let present = self.read().present.clone();
        let now = writer::unix_seconds();
        let content = |entry: &Entry| Content {
            record: entry.record.clone(),
            // What is due goes a second from now: zero would keep it for ever.
            lifetime: entry.expires.map(|due| u32::try_from(due.saturating_sub(now)).unwrap_or(u32::MAX).max(1)),
        };
        let entries = present.entries.values().filter(|entry| entry.record.key.starts_with(transfer::PREFIX));
        (entries.map(content).collect(), present.revision)
    }

    fn read(&self) -> RwLockReadGuard<'_, Shared> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask<R>(
        &self,
        action: &'static str,
        command: impl FnOnce(oneshot::Sender<Result<R, Error>>) -> Command,
    ) -> Result<R, Error> {
        let (answer, wait) = oneshot::channel();
        let sent = self.commands.as_ref().is_some_and(|commands| commands.send(command(answer)).is_ok());
        let gone = || Error::Unavailable {
            action,
            subject: self.path.clone(),
            reason: "the store's writer has stopped".to_owned(),
        };
        if !sent {
            return Err(gone());
        }
        wait.await.map_err(|_| gone())?
    }

    async fn list_past(&self, query: disk::Query, at: Revision) -> Result<Page, Error> {
        let (past, shared) = (self.past.clone(), self.shared.clone());
        blocking("list", &self.path, move || {
            let page = past.list(&query, at)?;
            still_there(&shared, at)?;
            Ok(page)
        })
        .await
    }
}

#[async_trait]
impl Target for Embedded {
    /// One that was made for a transfer begins late enough.
    async fn advance(&self, to: Revision) -> Result<(), Error> {
        let newest = self.read().present.revision;
        if newest >= to { Ok(()) } else { Err(Error::Future { wanted: to, newest }) }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.commands.take();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(path = %self.path, "the store's writer panicked");
        }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.read().present.revision)
    }

    async fn get(&self, key: &str) -> Result<(Option<Record>, Revision), Error> {
        let present = &self.read().present;
        Ok((present.entries.get(key).map(|entry| entry.record.clone()), present.revision))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page, Error> {
        let (present, compacted) = {
            let shared = self.read();
            (shared.present.clone(), shared.compacted)
        };
        match at {
            Some(wanted) if wanted > present.revision => Err(Error::Future { wanted, newest: present.revision }),
            Some(wanted) if wanted < compacted => Err(Error::Compacted { wanted, oldest: compacted }),
            Some(wanted) if wanted < present.revision => {
                self.list_past(disk::Query::new(prefix, after, limit), wanted).await
            }
            _ => Ok(present.page(prefix, after, limit)),
        }
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, Error> {
        self.ask("commit", |answer| Command::Commit(transaction, answer)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        let (feed, live) = feed::channel(WATCH_BUFFER);
        let now = {
            let mut shared = self.shared.write().unwrap_or_else(PoisonError::into_inner);
            if from < shared.compacted {
                return Err(Error::Compacted { wanted: from, oldest: shared.compacted });
            }
            let now = shared.present.revision;
            let watcher = Watcher { prefix: prefix.to_owned(), from: from.max(now), touched: now, feed };
            shared.watchers.retain(|watcher| !watcher.feed.is_closed());
            shared.watchers.push(watcher);
            now
        };
        let replay = Replay {
            past: self.past.clone(),
            shared: self.shared.clone(),
            prefix: prefix.to_owned(),
            next: Change::after(from),
            last: from,
            until: now,
        };
        let live = stream::unfold(Some((live, self.shared.clone(), prefix.to_owned())), follow);
        let events = stream::unfold(Some(replay), Replay::step).chain(live);
        Ok(events.flat_map(|events| stream::iter(spread(events))).boxed())
    }

    async fn frontier(&self, prefix: &str) -> Result<Revision, Error> {
        let shared = self.read();
        let touched = shared.watchers.iter().filter(|watcher| watcher.prefix == prefix).map(|watcher| watcher.touched);
        Ok(touched.max().unwrap_or(shared.present.revision))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask("compact", |answer| Command::Compact(revision, answer)).await
    }
}

impl Present {
    fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let start = after.filter(|after| *after > prefix).unwrap_or(prefix);
        let mut rest = self
            .entries
            .range::<_, str>((Bound::Included(start), Bound::Unbounded))
            .map(|(_, entry)| &entry.record)
            .take_while(|record| record.key.starts_with(prefix))
            .skip_while(|record| after.is_some_and(|after| &*record.key <= after));
        let limit = if limit == 0 { usize::MAX } else { limit };
        let records = rest.by_ref().take(limit).cloned().collect();
        Page { records, revision: self.revision, remaining: rest.count() as u64 }
    }
}

/// The part of a watch that comes from disk: everything after `from` up to the revision at which it went live.
struct Replay {
    past: Arc<Past>,
    shared: Arc<RwLock<Shared>>,
    prefix: String,
    next: Change,
    last: Revision,
    until: Revision,
}

type Events = Result<Vec<Event>, Error>;

impl Replay {
    async fn step(this: Option<Self>) -> Option<(Events, Option<Self>)> {
        let mut this = this?;
        if this.last >= this.until {
            return Some((Ok(vec![Event::Progress(this.last)]), None));
        }
        let path = this.past.path();
        let read = blocking("watch", &path, move || {
            let (events, next) = this.past.changes(&this.prefix, this.next, Change::after(this.until), REPLAY)?;
            still_there(&this.shared, this.last)?;
            match next {
                Some(next) => (this.next, this.last) = (next, next.revision_before()),
                None => this.last = this.until,
            }
            Ok((events, this))
        });
        match read.await {
            Ok((events, this)) => Some((Ok(events), Some(this))),
            Err(error) => Some((Err(error), None)),
        }
    }
}

type Live = (feed::Receiver<Vec<Event>>, Arc<RwLock<Shared>>, String);

/// The live part: ends with an error once the writer has cut this watcher or stopped.
async fn follow(state: Option<Live>) -> Option<(Events, Option<Live>)> {
    let (mut live, shared, prefix) = state?;
    if let Some(events) = live.recv().await {
        return Some((Ok(events), Some((live, shared, prefix))));
    }
    let closed = shared.read().unwrap_or_else(PoisonError::into_inner).closed;
    let error = match closed {
        false => Error::Lagged { prefix },
        true => Error::Unavailable { action: "watch", subject: prefix, reason: "the store has closed".to_owned() },
    };
    Some((Err(error), None))
}

fn spread(events: Events) -> Vec<Result<Event, Error>> {
    match events {
        Ok(events) => events.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    }
}

/// Compaction raises its mark before it deletes: rows read from after a mark that still stands are complete.
fn still_there(shared: &RwLock<Shared>, wanted: Revision) -> Result<(), Error> {
    let oldest = shared.read().unwrap_or_else(PoisonError::into_inner).compacted;
    if wanted < oldest { Err(Error::Compacted { wanted, oldest }) } else { Ok(()) }
}

async fn blocking<R: Send + 'static>(
    action: &'static str,
    path: &str,
    read: impl FnOnce() -> Result<R, Error> + Send + 'static,
) -> Result<R, Error> {
    let joined = tokio::task::spawn_blocking(read).await;
    joined
        .unwrap_or_else(|error| Err(Error::Unavailable { action, subject: path.to_owned(), reason: error.to_string() }))
}
