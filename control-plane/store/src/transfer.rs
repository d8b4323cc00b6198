//! The whole state from one engine to another, with writes stopped, under the same keys.
//!
//! The target's revision is first moved past the source's and its history forgotten: resource versions never go
//! backwards, and who watches from an older one is told to list again. A target that is not empty is refused, unless
//! what is in it is the beginning of a transfer that did not end ([`UNFINISHED`]): that is cleared away first.

use bytes::Bytes;

use crate::{Condition, Error, Key, Operation, Outcome, Record, Revision, Store, Transaction, etcd::Etcd};

/// Everything that is transferred begins so.
pub const PREFIX: &str = "/registry/";
/// Stands in the target from the first write to the last. No server may use a store that has it.
pub const UNFINISHED: &str = "/leme/unfinished-migration";
/// etcd takes 128 operations and 1.5 MiB in one transaction.
const OPERATIONS: usize = 100;
const BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Store(#[from] Error),
    #[error("the target is not empty: it holds {found}. Name another one, or empty it first")]
    NotEmpty { found: String },
    #[error("another migration to this target runs, or has taken a step meanwhile")]
    Contended,
}

/// A record, and in how many seconds it goes by itself.
#[derive(Clone, Debug)]
pub struct Content {
    pub record: Record,
    pub lifetime: Option<u32>,
}

/// An engine whose clock can be set forward.
#[async_trait::async_trait]
pub trait Target: Store {
    /// The revision is at least this one from now on.
    async fn advance(&self, to: Revision) -> Result<(), Error>;
}

#[async_trait::async_trait]
impl Target for Etcd {
    /// etcd's clock moves by writes only.
    async fn advance(&self, to: Revision) -> Result<(), Error> {
        const AT_ONCE: u64 = 256;
        loop {
            let missing = to.0.saturating_sub(self.revision().await?.0);
            if missing == 0 {
                return Ok(());
            }
            let ticks = (0..missing.min(AT_ONCE)).map(|_| self.commit(write(UNFINISHED, Bytes::new(), Vec::new())));
            futures::future::try_join_all(ticks).await?;
        }
    }
}

/// Writes `contents`, which `source` (its newest revision) held, into a target that has nothing else. The revision that
/// it ends at.
pub async fn fill(target: &dyn Target, contents: Vec<Content>, source: Revision) -> Result<Revision, TransferError> {
    begin(target).await?;
    target.advance(Revision(source.0 + 1)).await?;
    let mut batch = Vec::new();
    let mut bytes = 0;
    for Content { record, lifetime } in contents {
        let size = record.value.len();
        if batch.len() == OPERATIONS || (bytes + size > BYTES && !batch.is_empty()) {
            put(target, std::mem::take(&mut batch)).await?;
            bytes = 0;
        }
        bytes += size;
        batch.push(Operation::Put { key: record.key, value: record.value, lease: lifetime });
    }
    put(target, batch).await?;
    let operations = vec![Operation::Delete { key: Key::from(UNFINISHED) }];
    target.commit(Transaction { conditions: Vec::new(), operations }).await?;
    let end = target.revision().await?;
    target.compact(end).await?;
    Ok(end)
}

/// Marks the target as taken, and empties what an earlier attempt has left.
async fn begin(target: &dyn Target) -> Result<(), TransferError> {
    let again = target.get(UNFINISHED).await?.0.is_some();
    let page = target.list(PREFIX, None, 1, None).await?;
    if let Some(record) = page.records.first().filter(|_| !again) {
        let found = format!("{} and {} more", record.key, page.remaining);
        return Err(TransferError::NotEmpty { found });
    }
    if !again {
        let absent = vec![Condition::Absent(Key::from(UNFINISHED))];
        let outcome = target.commit(write(UNFINISHED, Bytes::new(), absent)).await?;
        return if matches!(outcome, Outcome::Committed(_)) { Ok(()) } else { Err(TransferError::Contended) };
    }
    loop {
        let page = target.list(PREFIX, None, OPERATIONS, None).await?;
        if page.records.is_empty() {
            return Ok(());
        }
        let operations = page.records.into_iter().map(|record| Operation::Delete { key: record.key }).collect();
        target.commit(Transaction { conditions: Vec::new(), operations }).await?;
    }
}

async fn put(target: &dyn Target, operations: Vec<Operation>) -> Result<(), TransferError> {
    if operations.is_empty() {
        return Ok(());
    }
    let conditions = operations.iter().map(|operation| Condition::Absent(operation.key().clone())).collect();
    match target.commit(Transaction { conditions, operations }).await? {
        Outcome::Committed(_) => Ok(()),
        Outcome::Conflict { .. } => Err(TransferError::Contended),
    }
}

fn write(key: &str, value: Bytes, conditions: Vec<Condition>) -> Transaction {
    Transaction { conditions, operations: vec![Operation::Put { key: Key::from(key), value, lease: None }] }
}
