//! Versioned objects and their watch, with etcd's semantics: one global revision, compare-and-swap
//! transactions, lists at a revision, watches from a revision, compaction.
//!
//! The control plane's API is the only caller. Nothing here knows Kubernetes: keys are paths
//! (`/registry/pods/default/nginx`), values are bytes.
//!
//! Two engines keep one contract (`tests/contract`, run against both): [`embedded`] and [`etcd`].
//! [`cache`] keeps an ordered view of one prefix in memory, fed by a store's watch.

pub mod cache;
pub mod embedded;
pub mod etcd;
pub mod snapshot;
pub mod transfer;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

/// The store's clock: every transaction that changes something moves it on by one. Zero means "before anything".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub type Key = Arc<str>;

/// One object at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Key,
    pub value: Bytes,
    pub created: Revision,
    pub modified: Revision,
}

/// What a transaction demands before it writes.
#[derive(Clone, Debug)]
pub enum Condition {
    /// The key does not exist.
    Absent(Key),
    /// The key's last change was at this revision.
    Unchanged(Key, Revision),
}

#[derive(Clone, Debug)]
pub enum Operation {
    /// `lease` seconds from now the key goes by itself (events); `None` keeps it.
    Put {
        key: Key,
        value: Bytes,
        lease: Option<u32>,
    },
    Delete {
        key: Key,
    },
}

/// All conditions hold and all operations happen at one revision, or none does.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    pub conditions: Vec<Condition>,
    pub operations: Vec<Operation>,
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed(Revision),
    /// A condition did not hold: the keys that the conditions name, as they are now.
    Conflict {
        revision: Revision,
        current: Vec<Option<Record>>,
    },
}

/// Part of a list, in key order.
#[derive(Clone, Debug)]
pub struct Page {
    pub records: Vec<Record>,
    /// The revision that the page shows.
    pub revision: Revision,
    /// Records under the prefix after this page.
    pub remaining: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put {
        record: Record,
        previous: Option<Record>,
    },
    /// `record` is the last state, with `modified` the revision of the deletion.
    Delete {
        record: Record,
    },
    /// Every event up to this revision has been delivered.
    Progress(Revision),
}

pub type Watch = BoxStream<'static, Result<Event, Error>>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("revision {wanted} has been compacted; the oldest is {oldest}")]
    Compacted { wanted: Revision, oldest: Revision },
    #[error("revision {wanted} is in the future; the newest is {newest}")]
    Future { wanted: Revision, newest: Revision },
    /// The watcher did not read fast enough; watching again from the last revision it saw loses nothing.
    #[error("the watcher of {prefix} fell behind and was cut")]
    Lagged { prefix: String },
    #[error("{action} {subject}: {reason}")]
    Unavailable { action: &'static str, subject: String, reason: String },
}

/// Both engines. Cancelling a call never half-writes.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest revision; linearizable.
    async fn revision(&self) -> Result<Revision, Error>;

    /// Linearizable read of one key and the revision it was read at.
    async fn get(&self, key: &str) -> Result<(Option<Record>, Revision), Error>;

    /// Up to `limit` records (0: all) under `prefix` with keys greater than `after`, as they were at `at` (default: now).
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page, Error>;

    /// Acknowledged only when durable.
    async fn commit(&self, transaction: Transaction) -> Result<Outcome, Error>;

    /// Every change under `prefix` after `from`, in order, without gaps; then live. Progress events when idle,
    /// and one when the past has been delivered.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error>;

    /// The revision that a watcher of `prefix` must have reached to have seen every write under it that was
    /// acknowledged before this call; its watch gets there without another write.
    async fn frontier(&self, prefix: &str) -> Result<Revision, Error>;

    /// Forgets history up to and including `revision`: older watches and lists get [`Error::Compacted`].
    async fn compact(&self, revision: Revision) -> Result<(), Error>;
}

/// Compacts for ever: what was the present one `interval` ago is forgotten (upstream's API server: five minutes).
pub async fn compact_periodically(store: Arc<dyn Store>, interval: Duration) {
    let mut previous = None;
    loop {
        let now = store.revision().await.ok();
        if let Some(revision) = previous
            && let Err(error) = store.compact(revision).await
        {
            tracing::warn!(%error, %revision, "compaction failed; the next one covers it");
        }
        previous = now.or(previous);
        tokio::time::sleep(interval).await;
    }
}

impl Event {
    pub fn revision(&self) -> Revision {
        match self {
            Event::Put { record, .. } | Event::Delete { record } => record.modified,
            Event::Progress(revision) => *revision,
        }
    }
}

impl Event {
    pub fn key(&self) -> Option<&Key> {
        match self {
            Event::Put { record, .. } | Event::Delete { record } => Some(&record.key),
            Event::Progress(_) => None,
        }
    }
}

impl Condition {
    pub fn key(&self) -> &Key {
        match self {
            Condition::Absent(key) | Condition::Unchanged(key, _) => key,
        }
    }
}

impl Operation {
    pub fn key(&self) -> &Key {
        match self {
            Operation::Put { key, .. } | Operation::Delete { key } => key,
        }
    }
}
