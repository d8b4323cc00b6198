//! Copies of the server's state, by hand and by the clock, the way back, and the way from one store to another: what
//! `leme store` does, and what a server does beside serving.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use leme_store::{
    Revision, Store,
    embedded::Embedded,
    snapshot::{self, Restored},
    transfer::{self, UNFINISHED},
};
use tokio_util::sync::CancellationToken;

use crate::Etcd;

const PREFIX: &str = "snapshot-";
const SUFFIX: &str = ".db";
/// Upstream's record of servers that live.
const LIVING: &str = "/registry/masterleases/";

/// Where a server keeps its state.
#[derive(Clone, Debug)]
pub struct Location {
    pub data_dir: PathBuf,
    /// `None`: embedded, under `data_dir`.
    pub etcd: Option<Etcd>,
}

/// Snapshots that a server takes by itself, into `<data-dir>/snapshots`.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub interval: Duration,
    /// How many are kept.
    pub retention: usize,
}

impl Default for Schedule {
    /// As k3s: every twelve hours, five of them.
    fn default() -> Self {
        Self { interval: Duration::from_secs(12 * 3600), retention: 5 }
    }
}

impl Location {
    pub fn database(&self) -> PathBuf {
        self.data_dir.join("state.db")
    }

    fn directory(&self) -> PathBuf {
        self.data_dir.join("snapshots")
    }

    /// Takes a snapshot, also of a store in use, into `to` or under a name of its own in the server's directory.
    pub async fn snapshot(&self, to: Option<PathBuf>) -> Result<(PathBuf, u64)> {
        let to = match to {
            Some(to) => to,
            None => {
                let directory = self.directory();
                std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
                directory.join(format!("{PREFIX}{}{SUFFIX}", Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ")))
            }
        };
        let size = match &self.etcd {
            Some(etcd) => snapshot::take_etcd(&etcd.open().await?, &to).await?,
            None => {
                let (database, to) = (self.database(), to.clone());
                tokio::task::spawn_blocking(move || snapshot::take(&database, &to)).await??
            }
        };
        Ok((to, size))
    }

    /// Puts a snapshot in the place of the embedded store, which no server may have open.
    pub async fn restore(&self, file: &Path) -> Result<Restored> {
        ensure!(self.etcd.is_none(), "etcd's snapshots are restored with etcdutl, member by member");
        std::fs::create_dir_all(&self.data_dir).with_context(|| format!("make {}", self.data_dir.display()))?;
        let (database, file) = (self.database(), file.to_owned());
        Ok(tokio::task::spawn_blocking(move || snapshot::restore(&file, &database)).await??)
    }

    /// Snapshots on schedule until `shutdown`; one that fails is told and tried again at the next time.
    pub(crate) async fn keep(self, schedule: Schedule, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(schedule.interval)).await.is_some() {
            let taken = shutdown.run_until_cancelled(self.snapshot(None)).await;
            match taken {
                None => return,
                Some(Ok((path, bytes))) => tracing::info!(path = %path.display(), bytes, "snapshot taken"),
                Some(Err(error)) => tracing::warn!("no snapshot could be taken: {error:#}"),
            }
            if let Err(error) = prune(&self.directory(), schedule.retention) {
                tracing::warn!("older snapshots stay: {error:#}");
            }
        }
    }
}

/// The newest stay. Names are times, so their order is that of time.
fn prune(directory: &Path, retention: usize) -> Result<()> {
    let ours = |name: &str| name.starts_with(PREFIX) && name.ends_with(SUFFIX);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(ours) {
            found.push(entry.path());
        }
    }
    found.sort();
    for path in found.iter().rev().skip(retention) {
        std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// From the embedded store into an etcd that holds nothing; no server may run. The embedded store stays as it is.
pub async fn migrate_to_etcd(data_dir: &Path, etcd: &Etcd) -> Result<Revision> {
    let location = Location { data_dir: data_dir.to_owned(), etcd: None };
    let database = location.database();
    ensure!(database.exists(), "there is no embedded store: {} does not exist", database.display());
    let source = Embedded::open(&database)?;
    let (contents, revision) = source.contents();
    Ok(transfer::fill(&etcd.open().await?, contents, revision).await?)
}

/// From an etcd that no server uses into an embedded store that is not there yet. etcd stays as it is.
pub async fn migrate_to_embedded(data_dir: &Path, etcd: &Etcd) -> Result<Revision> {
    let location = Location { data_dir: data_dir.to_owned(), etcd: None };
    let database = location.database();
    ensure!(!database.exists(), "{} is there already: move it away first", database.display());
    std::fs::create_dir_all(data_dir).with_context(|| format!("make {}", data_dir.display()))?;
    let source = etcd.open().await?;
    usable(&source).await?;
    let living = source.list(LIVING, None, 1, None).await?;
    if let Some(record) = living.records.first() {
        bail!(
            "the server {} runs, or has ended less than 15 seconds ago: stop all servers first",
            record.key.trim_start_matches(LIVING)
        );
    }
    let (contents, revision) = source.contents().await?;
    let (target, fresh) = snapshot::prepare(&database, revision)?;
    let end = transfer::fill(&target, contents, revision).await?;
    drop(target);
    ensure!(source.revision().await? == revision, "somebody wrote to etcd meanwhile: stop all servers, then again");
    snapshot::adopt(&fresh, &database)?;
    Ok(end)
}

/// Half a migration is no state to serve.
pub(crate) async fn usable(store: &dyn Store) -> Result<()> {
    let unfinished = store.get(UNFINISHED).await?.0.is_some();
    ensure!(!unfinished, "a migration into this store has not ended: run `leme store migrate` again");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_snapshots_stay_and_files_of_others() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["snapshot-1.db", "snapshot-2.db", "snapshot-3.db", "snapshot-2.db.part", "mine.db"];
        names.iter().for_each(|name| std::fs::write(directory.path().join(name), "").unwrap());
        prune(directory.path(), 2).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["mine.db", "snapshot-2.db", "snapshot-2.db.part", "snapshot-3.db"]);
    }
}
