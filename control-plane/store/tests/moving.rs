//! Snapshots, restores and migrations: what is there afterwards, what is refused, and that revisions never go back.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

#[path = "contract/etcd_server.rs"]
mod etcd_server;

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt, path::Path};

use bytes::Bytes;
use leme_store::{
    Error, Key, Operation, Outcome, Revision, Store, Transaction,
    embedded::{Embedded, OpenError},
    etcd::Etcd,
    snapshot::{self, SnapshotError},
    transfer::{self, TransferError, UNFINISHED},
};

async fn put(store: &dyn Store, key: &str, value: &str, lease: Option<u32>) -> Revision {
    let put = Operation::Put { key: Key::from(key), value: Bytes::from(value.to_owned()), lease };
    match store.commit(Transaction { conditions: vec![], operations: vec![put] }).await.unwrap() {
        Outcome::Committed(revision) => revision,
        conflict => panic!("{conflict:?}"),
    }
}

/// So many keys, some of them changed, one gone, one that will go.
async fn fill(store: &dyn Store, count: usize) {
    for n in 0..count {
        put(store, &format!("/registry/things/{n}"), &"x".repeat(n % 7 * 100), None).await;
    }
    put(store, "/registry/things/0", "changed", None).await;
    put(store, "/registry/events/e", "news", Some(3600)).await;
    let operations = vec![Operation::Delete { key: Key::from("/registry/things/1") }];
    store.commit(Transaction { conditions: vec![], operations }).await.unwrap();
}

async fn all(store: &dyn Store) -> BTreeMap<String, Bytes> {
    let page = store.list("/", None, 0, None).await.unwrap();
    page.records.into_iter().map(|record| (record.key.to_string(), record.value)).collect()
}

/// Whoever watched before has to list again.
async fn is_forgotten(store: &dyn Store, revision: Revision) -> bool {
    matches!(store.watch("/registry/", revision).await, Err(Error::Compacted { .. }))
}

fn damage(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_store_in_use_is_restored_whole_and_later_writes_are_kept_aside() {
    let directory = tempfile::tempdir().unwrap();
    let (database, file) = (directory.path().join("state.db"), directory.path().join("s.db"));
    let store = Embedded::open(&database).unwrap();
    fill(&store, 300).await;
    let before = all(&store).await;
    assert!(snapshot::take(&database, &file).unwrap() > 32);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(snapshot::take(&database, &file), Err(SnapshotError::Exists { .. })));
    let seen = put(&store, "/registry/things/later", "later", None).await;
    assert!(matches!(snapshot::restore(&file, &database), Err(SnapshotError::Open(OpenError::Locked { .. }))));
    drop(store);

    let restored = snapshot::restore(&file, &database).unwrap();
    let store = Embedded::open(&database).unwrap();
    assert_eq!(all(&store).await, before);
    assert_eq!(store.revision().await.unwrap(), restored.revision);
    assert!(restored.revision > seen && is_forgotten(&store, seen).await);
    assert!(put(&store, "/registry/things/new", "new", None).await > restored.revision);
    let kept = Embedded::open(restored.kept.unwrap()).unwrap();
    assert!(all(&kept).await.contains_key("/registry/things/later"));
}

#[tokio::test]
async fn a_snapshot_is_restored_where_nothing_is_left_and_goes_on_far_ahead() {
    let directory = tempfile::tempdir().unwrap();
    let (database, file) = (directory.path().join("state.db"), directory.path().join("s.db"));
    let store = Embedded::open(&database).unwrap();
    fill(&store, 10).await;
    let (before, seen) = (all(&store).await, store.revision().await.unwrap());
    snapshot::take(&database, &file).unwrap();
    drop(store);
    let elsewhere = directory.path().join("new.db");
    let restored = snapshot::restore(&file, &elsewhere).unwrap();
    assert!(restored.kept.is_none() && restored.revision.0 > seen.0 + 1_000_000);
    let store = Embedded::open(&elsewhere).unwrap();
    assert_eq!(all(&store).await, before);
    // Its compaction, which has a long way to go, ends, and the store goes on meanwhile.
    let last = put(&store, "/registry/things/2", "changed", None).await;
    store.compact(last).await.unwrap();
    assert!(is_forgotten(&store, seen).await);
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (database, file) = (directory.path().join("state.db"), directory.path().join("s.db"));
    let store = Embedded::open(&database).unwrap();
    fill(&store, 50).await;
    let before = all(&store).await;
    snapshot::take(&database, &file).unwrap();
    drop(store);
    let whole = std::fs::read(&file).unwrap();
    for at in [0, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole).unwrap();
        damage(&file, at);
        assert!(matches!(snapshot::restore(&file, &database), Err(SnapshotError::Damaged { .. })), "byte {at}");
    }
    for length in [0, 31, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        assert!(matches!(snapshot::restore(&file, &database), Err(SnapshotError::Damaged { .. })), "{length} bytes");
    }
    assert_eq!(all(&Embedded::open(&database).unwrap()).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_moves_to_etcd_and_back_and_revisions_only_grow() {
    let Some(server) = etcd_server::Server::start().await else { return };
    let etcd = Etcd::connect(&server.endpoints(), None).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(directory.path().join("state.db")).unwrap();
    fill(&embedded, 700).await;
    let before = all(&embedded).await;
    let (contents, source) = embedded.contents();
    // What an attempt that was killed leaves behind.
    put(&etcd, UNFINISHED, "", None).await;
    put(&etcd, "/registry/things/half", "half", None).await;
    let end = transfer::fill(&etcd, contents.clone(), source).await.unwrap();
    assert_eq!(all(&etcd).await, before);
    assert!(end > source && is_forgotten(&etcd, source).await);
    let again = transfer::fill(&etcd, contents, source).await;
    assert!(matches!(again, Err(TransferError::NotEmpty { .. })), "{again:?}");

    let (contents, source) = etcd.contents().await.unwrap();
    let event = contents.iter().find(|content| &*content.record.key == "/registry/events/e").unwrap();
    assert!(event.lifetime.is_some_and(|seconds| (3000..=3700).contains(&seconds)), "{:?}", event.lifetime);
    assert_eq!(contents.iter().filter(|content| content.lifetime.is_some()).count(), 1);
    let database = directory.path().join("back.db");
    let (target, fresh) = snapshot::prepare(&database, source).unwrap();
    let end = transfer::fill(&target, contents, source).await.unwrap();
    drop(target);
    snapshot::adopt(&fresh, &database).unwrap();
    let back = Embedded::open(&database).unwrap();
    assert_eq!(all(&back).await, before);
    assert!(end > source && back.revision().await.unwrap() == end && is_forgotten(&back, source).await);
    let (contents, _) = back.contents();
    assert_eq!(contents.iter().filter(|content| content.lifetime.is_some()).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_etcd_is_whole_and_says_what_it_is() {
    let Some(server) = etcd_server::Server::start_members(3).await else { return };
    let etcd = Etcd::connect(&server.endpoints(), None).await.unwrap();
    fill(&etcd, 50).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("etcd.db");
    snapshot::take_etcd(&etcd, &file).await.unwrap();
    let refused = snapshot::restore(&file, &directory.path().join("state.db"));
    assert!(matches!(refused, Err(SnapshotError::Etcd { .. })), "{refused:?}");
    damage(&file, 5000);
    let refused = snapshot::restore(&file, &directory.path().join("state.db"));
    assert!(matches!(refused, Err(SnapshotError::Damaged { .. })), "{refused:?}");
    etcd.defragment().await.unwrap();
    assert!(!all(&etcd).await.is_empty());
}
