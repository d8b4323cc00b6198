//! Secrets at rest: a store that seals what it hands to another store, and opens what it gets from it.
//!
//! The API, its caches and its watchers see objects in the clear; disk, etcd, snapshots and backups never do. Formats and
//! configuration are upstream's, so a cluster's store and its keys can move in and out together.

mod cipher;
mod configuration;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use futures::StreamExt;
use leme_store::{Condition, Error, Event, Operation, Outcome, Page, Record, Revision, Store, Transaction, Watch};

use crate::{pki, resources};
use cipher::Cipher;

/// How often a changed configuration is looked for.
const LOOK: Duration = Duration::from_secs(10);
/// Records that are read at a time where all are.
const PAGE: usize = 500;

/// Where the configuration is if nobody names one: beside the keys that servers of a cluster share anyway.
const FILE: &str = "encryption-config.yaml";

/// Seals what goes into `store` as `file` says, or a file of the server's own that is made here: secrets, with its key.
pub async fn seal(store: Arc<dyn Store>, file: Option<&Path>, pki: &Path) -> Result<(Arc<Sealed>, PathBuf)> {
    let path = file.map_or_else(|| pki.join(FILE), Path::to_owned);
    if file.is_none() && !path.exists() {
        pki::write_private(&path, &configuration::generate())?;
    }
    let keyring = configuration::read(&path, resources::table())?;
    let sealed = Sealed::new(store, keyring).await;
    Ok((Arc::new(sealed.with_context(|| format!("{}", path.display()))?), path))
}

/// Brings everything stored up to the configuration, now and whenever the file has changed. A file that is wrong, or
/// does not open what is stored, changes nothing.
pub async fn follow(store: Arc<Sealed>, path: PathBuf) {
    let mut seen = stamp(&path);
    loop {
        match store.renew().await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "records have been sealed with the first key of the configuration"),
            Err(error) => tracing::warn!(%error, "not everything could be sealed again; the next start tries"),
        }
        while stamp(&path) == seen {
            tokio::time::sleep(LOOK).await;
        }
        seen = stamp(&path);
        if let Err(error) = exchange(&store, &path).await {
            tracing::error!("the changed encryption configuration is not used: {error:#}");
        }
    }
}

async fn exchange(store: &Sealed, path: &Path) -> Result<()> {
    store.exchange(configuration::read(path, resources::table())?).await
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let data = std::fs::metadata(path).ok()?;
    Some((data.modified().ok()?, data.len()))
}

/// What one configuration says.
#[derive(Debug)]
pub struct Keyring {
    rules: Vec<Rule>,
}

/// The first cipher seals, all open. The first rule for a key counts.
#[derive(Debug)]
struct Rule {
    /// `/registry/secrets/`
    prefixes: Vec<Box<str>>,
    ciphers: Vec<Cipher>,
}

impl Keyring {
    fn rule(&self, key: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.prefixes.iter().any(|prefix| key.starts_with(&**prefix)))
    }

    fn seal(&self, key: &str, plain: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let Some(rule) = self.rule(key) else { return Ok(None) };
        rule.ciphers[0].seal(key, plain).map(Some).map_err(|error| failed("seal", key, &error))
    }

    fn open(&self, key: &str, stored: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let ciphers = self.rule(key).map_or(&[][..], |rule| &rule.ciphers);
        match ciphers.iter().find(|cipher| cipher.made(stored)) {
            Some(cipher) => cipher.open(key, stored).map(Some).map_err(|error| failed("open", key, &error)),
            None if ciphers.is_empty() && !stored.starts_with(cipher::MARK) => Ok(None),
            None => Err(failed("open", key, &format!("no configured key is {}", sealed_with(stored)))),
        }
    }

    fn opened(&self, mut record: Record) -> Result<Record, Error> {
        if let Some(plain) = self.open(&record.key, &record.value)? {
            record.value = plain.into();
        }
        Ok(record)
    }

    /// The past may have been sealed with a key that is gone: as good as compacted.
    fn opened_event(&self, event: Event, wanted: Revision) -> Result<Event, Error> {
        let oldest = event.revision();
        let opened = match event {
            Event::Put { record, previous } => self.opened(record).and_then(|record| {
                Ok(Event::Put { record, previous: previous.map(|record| self.opened(record)).transpose()? })
            }),
            Event::Delete { record } => self.opened(record).map(|record| Event::Delete { record }),
            progress @ Event::Progress(_) => Ok(progress),
        };
        opened.map_err(|_| Error::Compacted { wanted, oldest })
    }

    /// Whether it would be sealed otherwise today.
    fn is_stale(&self, key: &str, stored: &[u8]) -> bool {
        self.rule(key).is_some_and(|rule| !rule.ciphers[0].made(stored))
    }
}

/// `k8s:enc:secretbox:v1:key1:` of a sealed record.
fn sealed_with(stored: &[u8]) -> String {
    let head = stored.split_inclusive(|byte| *byte == b':').take(5).collect::<Vec<_>>().concat();
    if stored.starts_with(cipher::MARK) { String::from_utf8_lossy(&head).into_owned() } else { "identity".into() }
}

fn failed(action: &'static str, key: &str, reason: &dyn std::fmt::Display) -> Error {
    Error::Unavailable { action, subject: key.to_owned(), reason: reason.to_string() }
}

fn current(keyring: &RwLock<Arc<Keyring>>) -> Arc<Keyring> {
    keyring.read().expect("no panic holds the lock").clone()
}

/// The store as the API sees it.
pub struct Sealed {
    inner: Arc<dyn Store>,
    keyring: Arc<RwLock<Arc<Keyring>>>,
}

impl Sealed {
    /// Every record must open with the configured keys: a server that hid some, or failed later, would help nobody.
    pub async fn new(inner: Arc<dyn Store>, keyring: Keyring) -> Result<Self> {
        let sealed = Self { inner, keyring: Arc::new(RwLock::new(Arc::new(keyring))) };
        sealed.check(&sealed.keyring()).await?;
        Ok(sealed)
    }

    fn keyring(&self) -> Arc<Keyring> {
        current(&self.keyring)
    }

    async fn check(&self, keyring: &Keyring) -> Result<()> {
        let check = |record: &Record| keyring.open(&record.key, &record.value).map(drop);
        let mut trouble = None;
        let mut count = 0;
        self.visit(keyring, |record| {
            if let Err(error) = check(record) {
                count += 1;
                trouble.get_or_insert(error);
            }
        })
        .await?;
        match trouble {
            None => Ok(()),
            Some(error) => Err(error).with_context(|| {
                format!("{count} records cannot be read with the keys of this encryption configuration; the first")
            }),
        }
    }

    /// Every record that a rule covers, as it is stored.
    async fn visit(&self, keyring: &Keyring, mut visit: impl FnMut(&Record)) -> Result<(), Error> {
        for prefix in keyring.rules.iter().flat_map(|rule| &rule.prefixes) {
            let (mut after, mut at) = (None, None);
            loop {
                let page = self.inner.list(prefix, after.as_deref(), PAGE, at).await?;
                page.records.iter().for_each(&mut visit);
                let Some(last) = page.records.last().filter(|_| page.remaining > 0) else { break };
                (after, at) = (Some(last.key.to_string()), Some(page.revision));
            }
        }
        Ok(())
    }

    /// Another configuration from now on, if everything stored opens with it.
    pub async fn exchange(&self, keyring: Keyring) -> Result<()> {
        self.check(&keyring).await?;
        *self.keyring.write().expect("no panic holds the lock") = Arc::new(keyring);
        Ok(())
    }

    /// Seals again what was sealed with an older key, or not at all; how many records that were. What changes meanwhile
    /// is sealed by whoever changes it.
    pub async fn renew(&self) -> Result<usize> {
        let keyring = self.keyring();
        let mut stale = Vec::new();
        self.visit(&keyring, |record| {
            if keyring.is_stale(&record.key, &record.value) {
                stale.push((record.key.clone(), record.modified));
            }
        })
        .await?;
        let mut renewed = 0;
        for (key, modified) in stale {
            let (Some(record), _) = self.get(&key).await? else { continue };
            let conditions = vec![Condition::Unchanged(key.clone(), modified)];
            let operations = vec![Operation::Put { key, value: record.value, lease: None }];
            let outcome = self.commit(Transaction { conditions, operations }).await?;
            renewed += usize::from(matches!(outcome, Outcome::Committed(_)));
        }
        Ok(renewed)
    }

    fn opened(&self, record: Record) -> Result<Record, Error> {
        self.keyring().opened(record)
    }

    fn sealed(&self, mut transaction: Transaction) -> Result<Transaction, Error> {
        let keyring = self.keyring();
        for operation in &mut transaction.operations {
            if let Operation::Put { key, value, .. } = operation
                && let Some(sealed) = keyring.seal(key, value)?
            {
                *value = sealed.into();
            }
        }
        Ok(transaction)
    }
}

#[async_trait]
impl Store for Sealed {
    async fn revision(&self) -> Result<Revision, Error> {
        self.inner.revision().await
    }

    async fn get(&self, key: &str) -> Result<(Option<Record>, Revision), Error> {
        let (record, revision) = self.inner.get(key).await?;
        Ok((record.map(|record| self.opened(record)).transpose()?, revision))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page, Error> {
        let mut page = self.inner.list(prefix, after, limit, at).await?;
        let keyring = self.keyring();
        let records: Result<_, _> = page.records.into_iter().map(|record| keyring.opened(record)).collect();
        page.records = records.map_err(|error| match at {
            // The past may have been sealed with a key that is gone: as good as compacted.
            Some(wanted) => Error::Compacted { wanted, oldest: page.revision },
            None => error,
        })?;
        Ok(page)
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, Error> {
        match self.inner.commit(self.sealed(transaction)?).await? {
            Outcome::Conflict { revision, current } => {
                let opened = current.into_iter().map(|record| record.map(|record| self.opened(record)).transpose());
                Ok(Outcome::Conflict { revision, current: opened.collect::<Result<_, _>>()? })
            }
            committed => Ok(committed),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        let watch = self.inner.watch(prefix, from).await?;
        let keyring = self.keyring.clone();
        Ok(watch.map(move |event| current(&keyring).opened_event(event?, from)).boxed())
    }

    async fn frontier(&self, prefix: &str) -> Result<Revision, Error> {
        self.inner.frontier(prefix).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.compact(revision).await
    }
}
