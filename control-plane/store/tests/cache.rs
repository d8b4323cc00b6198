//! The cache when its store misbehaves: watches that break, history that is gone, watchers that do not read.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::AbortHandle};
use leme_store::{
    Error, Key, Operation, Outcome, Page, Record, Revision, Store, Transaction, Watch,
    cache::{Cache, CacheEvent},
    embedded::Embedded,
};

/// A store whose watches can be broken, and kept from coming back.
struct Fragile {
    inner: Embedded,
    watches: Mutex<Vec<AbortHandle>>,
    down: AtomicBool,
}

impl Fragile {
    fn break_watches(&self) {
        self.watches.lock().unwrap().drain(..).for_each(|watch| watch.abort());
    }
}

#[async_trait]
impl Store for Fragile {
    async fn revision(&self) -> Result<Revision, Error> {
        self.inner.revision().await
    }
    async fn get(&self, key: &str) -> Result<(Option<Record>, Revision), Error> {
        self.inner.get(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page, Error> {
        self.inner.list(prefix, after, limit, at).await
    }
    async fn commit(&self, transaction: Transaction) -> Result<Outcome, Error> {
        self.inner.commit(transaction).await
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        if self.down.load(Ordering::SeqCst) {
            let subject = prefix.to_owned();
            return Err(Error::Unavailable { action: "watch", subject, reason: "down".to_owned() });
        }
        let (watch, handle) = futures::stream::abortable(self.inner.watch(prefix, from).await?);
        self.watches.lock().unwrap().push(handle);
        Ok(watch.boxed())
    }
    async fn frontier(&self, prefix: &str) -> Result<Revision, Error> {
        self.inner.frontier(prefix).await
    }
    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.compact(revision).await
    }
}

struct Fixture {
    store: Arc<Fragile>,
    cache: Arc<Cache<Record>>,
    _directory: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let inner = Embedded::open(directory.path().join("state.db")).unwrap();
    let store = Arc::new(Fragile { inner, watches: Mutex::default(), down: AtomicBool::new(false) });
    put(&store, "/t/first").await;
    let cache = Cache::start(store.clone(), "/t/", Record::clone);
    within(cache.current()).await.unwrap();
    Fixture { store, cache, _directory: directory }
}

async fn within<R>(future: impl Future<Output = R>) -> R {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}

async fn put(store: &Fragile, key: &str) -> Revision {
    let operations = vec![Operation::Put { key: Key::from(key), value: Bytes::from_static(b"v"), lease: None }];
    match store.commit(Transaction { conditions: vec![], operations }).await.unwrap() {
        Outcome::Committed(revision) => revision,
        conflict => panic!("{conflict:?}"),
    }
}

#[tokio::test]
async fn a_broken_watch_is_resumed_without_a_gap() {
    let Fixture { store, cache, .. } = fixture().await;
    let from = cache.revision();
    let mut watcher = cache.watch_from(from).unwrap();
    for n in 0..5 {
        put(&store, &format!("/t/{n}/a")).await;
        store.break_watches();
        put(&store, &format!("/t/{n}/b")).await;
    }
    for n in 0..10 {
        let event = loop {
            match within(watcher.next()).await.unwrap().unwrap() {
                CacheEvent::Bookmark(_) => {}
                event => break event,
            }
        };
        assert!(matches!(event, CacheEvent::Added { .. }));
        assert_eq!(event.revision().0, from.0 + 1 + n);
    }
}

#[tokio::test]
async fn a_gap_cuts_the_watchers_and_the_view_recovers() {
    let Fixture { store, cache, .. } = fixture().await;
    let from = cache.revision();
    let mut watcher = cache.watch_from(from).unwrap();
    store.down.store(true, Ordering::SeqCst);
    store.break_watches();
    put(&store, "/t/unseen").await;
    let last = put(&store, "/t/last").await;
    store.compact(last).await.unwrap();
    store.down.store(false, Ordering::SeqCst);
    assert_eq!(within(cache.wait_for(last)).await.objects.len(), 3);
    assert!(matches!(within(watcher.next()).await, Some(Err(Error::Compacted { .. }))));
    assert!(within(watcher.next()).await.is_none());
    assert!(matches!(cache.watch_from(from), Err(Error::Compacted { .. })));
    assert!(cache.watch_from(last).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_is_cut_and_a_quick_one_is_not() {
    let Fixture { store, cache, .. } = fixture().await;
    let from = cache.revision();
    let mut slow = cache.watch_from(from).unwrap();
    let mut quick = cache.watch_from(from).unwrap();
    let reading = tokio::spawn(async move {
        let mut count = 0;
        while count < 20_000 {
            count += usize::from(!matches!(quick.next().await.unwrap().unwrap(), CacheEvent::Bookmark(_)));
        }
    });
    for n in 0..200 {
        futures::future::join_all((0..100).map(|m| put(&store, if (n + m) % 2 == 0 { "/t/x" } else { "/t/y" }))).await;
    }
    within(reading).await.unwrap();
    assert!(matches!(within(slow.next()).await, Some(Err(Error::Compacted { .. }))));
}

#[tokio::test]
async fn a_new_cache_knows_the_past_so_that_clients_resume() {
    let Fixture { store, cache, .. } = fixture().await;
    let from = cache.revision();
    put(&store, "/t/second").await;
    let restarted = Cache::start(store.clone(), "/t/", Record::clone);
    within(restarted.current()).await.unwrap();
    let mut watcher = restarted.watch_from(from).unwrap();
    let event = within(watcher.next()).await.unwrap().unwrap();
    assert!(matches!(event, CacheEvent::Added { key, .. } if &*key == "/t/second"));
}
