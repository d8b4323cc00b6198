//! The one thread that writes: compare-and-swap, group commit, expiry, compaction, and the feed of the watches.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, PoisonError, RwLock, RwLockWriteGuard,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{
    Entry, Present, Shared,
    disk::{self, Change, NewRow},
};
use crate::{Condition, Error, Event, Key, Operation, Outcome, Record, Revision, Transaction};

/// Transactions that share one fsync at most.
const BATCH: usize = 512;
/// Expiries are looked for this often.
const TICK: Duration = Duration::from_millis(500);
/// Watches that saw nothing are told where the store is this often.
const PROGRESS: Duration = Duration::from_secs(5);
/// Revisions that one step of a compaction covers, so that writes get their turn in between.
const COMPACT_STEP: u64 = 500;

pub(super) type Answer<R> = oneshot::Sender<Result<R, Error>>;

pub(super) enum Command {
    Commit(Transaction, Answer<Outcome>),
    Compact(Revision, Answer<()>),
}

pub(super) struct Writer {
    connection: Connection,
    shared: Arc<RwLock<Shared>>,
    queue: Receiver<Command>,
    /// Every lease ever taken and not yet looked at: the present tells whether it still holds.
    expiries: BTreeSet<(u64, Key)>,
    /// Rows up to here have been deleted; behind the mark while a compaction is under way.
    forgotten: Revision,
    compacted: Revision,
    told: (Instant, Revision),
}

/// Transactions applied to a copy of the present, not yet on disk.
struct Batch {
    present: Present,
    rows: Vec<NewRow>,
    /// One element per revision, so that a watcher is never cut inside one.
    events: Vec<Vec<Event>>,
    answers: Vec<(Answer<Outcome>, Result<Outcome, Error>)>,
    expiries: Vec<(u64, Key)>,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        shared: Arc<RwLock<Shared>>,
        queue: Receiver<Command>,
        expiries: BTreeSet<(u64, Key)>,
    ) -> Self {
        let (compacted, revision) = {
            let shared = shared.read().unwrap_or_else(PoisonError::into_inner);
            (shared.compacted, shared.present.revision)
        };
        // A compaction that a crash interrupted goes on from the oldest row; rows that live on make this a guess
        // on the low side, which only costs a look.
        let oldest = disk::oldest(&connection).ok().flatten().unwrap_or(compacted);
        let forgotten = Revision(oldest.0.saturating_sub(1)).min(compacted);
        Self { connection, shared, queue, expiries, forgotten, compacted, told: (Instant::now(), revision) }
    }

    pub(super) fn run(mut self) {
        loop {
            let wait = if self.forgotten < self.compacted { Duration::ZERO } else { TICK };
            match self.queue.recv_timeout(wait) {
                Ok(command) => self.work(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.expire();
            self.compact_step();
            self.tell_progress();
        }
        let mut shared = self.write();
        shared.closed = true;
        shared.watchers.clear();
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shared> {
        self.shared.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn batch(&self) -> Batch {
        let present = self.shared.read().unwrap_or_else(PoisonError::into_inner).present.clone();
        Batch { present, rows: Vec::new(), events: Vec::new(), answers: Vec::new(), expiries: Vec::new() }
    }

    /// Serves `first` and whatever waits behind it.
    fn work(&mut self, first: Command) {
        let mut batch = self.batch();
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Commit(transaction, answer) => {
                    let outcome = batch.stage(transaction);
                    batch.answers.push((answer, outcome));
                }
                Command::Compact(revision, answer) => {
                    self.finish(batch);
                    // The caller may have gone; the compaction is done all the same.
                    let _ = answer.send(self.compact(revision));
                    batch = self.batch();
                }
            }
            next = if batch.answers.len() < BATCH { self.queue.try_recv().ok() } else { None };
        }
        self.finish(batch);
    }

    /// To disk, then to memory and watches, then to the callers.
    fn finish(&mut self, batch: Batch) {
        let Batch { present, rows, events, answers, expiries } = batch;
        let written = if rows.is_empty() { Ok(()) } else { disk::append(&mut self.connection, &rows) };
        if let Err(error) = &written {
            let failure = unavailable("commit", error);
            tracing::error!(error = %failure, transactions = answers.len(), "a batch of writes failed");
            answers.into_iter().for_each(|(answer, _)| drop(answer.send(Err(failure.clone()))));
            return;
        }
        if !rows.is_empty() {
            self.expiries.extend(expiries);
            publish(&mut self.write(), present, events);
        }
        answers.into_iter().for_each(|(answer, outcome)| drop(answer.send(outcome)));
    }

    /// Deletes what is due, each key at a revision of its own so that a watch can resume between any two.
    fn expire(&mut self) {
        let now = unix_seconds();
        if self.expiries.first().is_none_or(|(due, _)| *due > now) {
            return;
        }
        let mut batch = self.batch();
        let mut taken = Vec::new();
        while taken.len() < BATCH
            && let Some((due, key)) = self.expiries.pop_first()
        {
            if due > now {
                self.expiries.insert((due, key));
                break;
            }
            if batch.present.entries.get(&key).is_some_and(|entry| entry.expires == Some(due)) {
                let delete = Operation::Delete { key: key.clone() };
                let staged = batch.stage(Transaction { conditions: Vec::new(), operations: vec![delete] });
                debug_assert!(staged.is_ok());
            }
            taken.push((due, key));
        }
        let before = self.revision();
        let wanted = batch.present.revision;
        self.finish(batch);
        if wanted > before && self.revision() == before {
            // The disk refused: they stay due, a while later so that the log is not flooded.
            self.expiries.extend(taken);
            std::thread::sleep(TICK);
        }
    }

    fn revision(&self) -> Revision {
        self.shared.read().unwrap_or_else(PoisonError::into_inner).present.revision
    }

    fn tell_progress(&mut self) {
        let (at, told) = self.told;
        if at.elapsed() < PROGRESS {
            return;
        }
        let revision = self.revision();
        self.told = (Instant::now(), revision);
        if revision > told {
            let progress = |watcher: &super::Watcher| {
                revision <= watcher.from || watcher.feed.try_send(vec![Event::Progress(revision)]).is_ok()
            };
            self.write().watchers.retain(progress);
        }
    }

    /// Raises the mark; rows go step by step between writes.
    fn compact(&mut self, to: Revision) -> Result<(), Error> {
        let newest = self.revision();
        if to > newest {
            return Err(Error::Future { wanted: to, newest });
        }
        if to <= self.compacted {
            return Ok(());
        }
        disk::mark_compacted(&self.connection, to).map_err(|error| unavailable("compact", &error))?;
        self.compacted = to;
        self.write().compacted = to;
        Ok(())
    }

    fn compact_step(&mut self) {
        if self.forgotten >= self.compacted {
            return;
        }
        // A store that was restored or filled begins far beyond its oldest rows.
        let next = match disk::next_after(&self.connection, self.forgotten) {
            Ok(next) => next.unwrap_or(self.compacted),
            Err(_) => Revision(self.forgotten.0 + 1),
        };
        let from = next.0.saturating_sub(1).max(self.forgotten.0);
        let to = Revision((from + COMPACT_STEP).min(self.compacted.0));
        match disk::forget(&mut self.connection, self.forgotten, to) {
            Ok(()) => self.forgotten = to,
            Err(error) => {
                tracing::warn!(%error, "compaction could not delete; it goes on later");
                std::thread::sleep(TICK);
            }
        }
    }
}

/// Under the lock: from here on readers see the batch and watchers have its events.
fn publish(shared: &mut Shared, present: Present, events: Vec<Vec<Event>>) {
    shared.present = present;
    shared.watchers.retain_mut(|watcher| {
        events.iter().all(|events| {
            let wanted = |event: &&Event| event.key().is_some_and(|key| key.starts_with(&watcher.prefix));
            let events: Vec<_> = events.iter().filter(wanted).cloned().collect();
            let Some(revision) = events.first().map(Event::revision) else { return true };
            watcher.touched = revision;
            revision <= watcher.from || watcher.feed.try_send(events).is_ok()
        })
    });
}

impl Batch {
    /// Applies the transaction to the copy, or says why not.
    fn stage(&mut self, transaction: Transaction) -> Result<Outcome, Error> {
        check(&transaction.operations)?;
        if !transaction.conditions.iter().all(|condition| self.holds(condition)) {
            let current = transaction.conditions.iter().map(|condition| self.record(condition.key())).collect();
            return Ok(Outcome::Conflict { revision: self.present.revision, current });
        }
        let revision = Revision(self.present.revision.0 + 1);
        let mut events = Vec::new();
        for operation in transaction.operations {
            let change = Change::new(revision, events.len());
            match operation {
                Operation::Put { key, value, lease } => {
                    let record = Record { key, value, created: revision, modified: revision };
                    events.push(self.put(record, change, lease));
                }
                Operation::Delete { key } => events.extend(self.delete(&key, revision, change)),
            }
        }
        if !events.is_empty() {
            self.present.revision = revision;
            self.events.push(events);
        }
        Ok(Outcome::Committed(self.present.revision))
    }

    fn holds(&self, condition: &Condition) -> bool {
        let current = self.present.entries.get(condition.key());
        match condition {
            Condition::Absent(_) => current.is_none(),
            Condition::Unchanged(_, revision) => current.is_some_and(|entry| entry.record.modified == *revision),
        }
    }

    fn record(&self, key: &Key) -> Option<Record> {
        self.present.entries.get(key).map(|entry| entry.record.clone())
    }

    fn put(&mut self, mut record: Record, change: Change, lease: Option<u32>) -> Event {
        let previous = self.present.entries.get(&record.key);
        let (replaced, previous) = (previous.map(|entry| entry.change), previous.map(|entry| entry.record.clone()));
        if let Some(previous) = &previous {
            record.created = previous.created;
        }
        let expires = lease.map(|seconds| unix_seconds() + u64::from(seconds));
        self.expiries.extend(expires.map(|due| (due, record.key.clone())));
        self.rows.push(NewRow {
            change,
            key: record.key.clone(),
            created: record.created,
            previous: replaced,
            expires,
            value: Some(record.value.clone()),
        });
        self.present.entries.insert(record.key.clone(), Entry { record: record.clone(), change, expires });
        Event::Put { record, previous }
    }

    fn delete(&mut self, key: &Key, revision: Revision, change: Change) -> Option<Event> {
        let Entry { mut record, change: replaced, .. } = self.present.entries.remove(key)?;
        self.rows.push(NewRow {
            change,
            key: key.clone(),
            created: record.created,
            previous: Some(replaced),
            expires: None,
            value: None,
        });
        record.modified = revision;
        Some(Event::Delete { record })
    }
}

/// etcd's rule too: a transaction writes a key once.
fn check(operations: &[Operation]) -> Result<(), Error> {
    let refuse = |subject: &str, reason: &str| {
        Err(Error::Unavailable { action: "commit", subject: subject.to_owned(), reason: reason.to_owned() })
    };
    if operations.len() > disk::MAX_OPERATIONS {
        return refuse(operations[0].key(), "too many operations in one transaction");
    }
    let mut seen = BTreeSet::new();
    match operations.iter().find(|operation| !seen.insert(operation.key())) {
        Some(twice) => refuse(twice.key(), "written twice in one transaction"),
        None => Ok(()),
    }
}

fn unavailable(action: &'static str, error: &rusqlite::Error) -> Error {
    Error::Unavailable { action, subject: "the embedded store".to_owned(), reason: disk::reason(error) }
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
