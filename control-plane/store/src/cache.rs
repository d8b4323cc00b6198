//! An ordered view of one prefix in memory, fed by a list and a watch of the store; the API keeps one per resource.
//!
//! The whole view (a persistent map, its revision, a ring of past events) is one value in a `tokio::sync::watch`
//! channel. A snapshot is a pointer clone. A watcher is a cursor into the shared ring: it owns no queue, so a
//! thousand watchers cost a thousand cursors, events and objects are shared, and one that falls off the ring's end
//! is cut without touching the others. All events that are ready are applied before the watchers are woken once.
//!
//! When the store's watch breaks it is resumed from the last revision. Only when that has been compacted is the
//! prefix listed again, and then every watcher is cut with `Compacted`: nobody skips an event unawares.
//! The cache never writes.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, stream};
use imbl::OrdMap;
use tokio::{sync::watch, task::JoinHandle};

use crate::{Error, Event, Key, Record, Revision, Store, Watch};

/// Events that the ring remembers; a watcher further behind than this is cut.
const RING: usize = 8192;
/// How far back the ring is filled from the store's history at start, so that clients resume across a restart.
const HISTORY: u64 = 4096;
/// Events applied before watchers are woken.
const BURST: usize = 1024;
/// Events that a watcher takes from the ring at a time.
const TAKE: usize = 64;
const RETRY: Duration = Duration::from_millis(200);

/// The prefix as it was at one revision.
#[derive(Debug)]
pub struct Snapshot<T> {
    pub revision: Revision,
    pub objects: OrdMap<Key, Arc<T>>,
}

impl<T> Clone for Snapshot<T> {
    fn clone(&self) -> Self {
        Self { revision: self.revision, objects: self.objects.clone() }
    }
}

#[derive(Debug)]
pub enum CacheEvent<T> {
    Added {
        revision: Revision,
        key: Key,
        object: Arc<T>,
    },
    Modified {
        revision: Revision,
        key: Key,
        object: Arc<T>,
        previous: Option<Arc<T>>,
    },
    /// `object` is the last state decoded with the deletion's revision; `previous` as it was before.
    Deleted {
        revision: Revision,
        key: Key,
        object: Arc<T>,
        previous: Option<Arc<T>>,
    },
    /// Everything up to here has been delivered.
    Bookmark(Revision),
}

impl<T> CacheEvent<T> {
    pub fn revision(&self) -> Revision {
        match self {
            Self::Added { revision, .. }
            | Self::Modified { revision, .. }
            | Self::Deleted { revision, .. }
            | Self::Bookmark(revision) => *revision,
        }
    }
}

impl<T> Clone for CacheEvent<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Added { revision, key, object } => {
                Self::Added { revision: *revision, key: key.clone(), object: object.clone() }
            }
            Self::Modified { revision, key, object, previous } => Self::Modified {
                revision: *revision,
                key: key.clone(),
                object: object.clone(),
                previous: previous.clone(),
            },
            Self::Deleted { revision, key, object, previous } => Self::Deleted {
                revision: *revision,
                key: key.clone(),
                object: object.clone(),
                previous: previous.clone(),
            },
            Self::Bookmark(revision) => Self::Bookmark(*revision),
        }
    }
}

type Decode<T> = dyn Fn(&Record) -> T + Send + Sync;

/// The objects before a burst of events, and what the burst has done to them so far.
type Known<'a, T> = (&'a Snapshot<T>, &'a mut HashMap<Key, Option<Arc<T>>>);

/// What the channel carries. `revision` zero: not listed yet.
struct View<T> {
    snapshot: Snapshot<T>,
    ring: VecDeque<CacheEvent<T>>,
    /// The sequence number of the ring's front.
    first: u64,
    /// Every event after this revision is in the ring.
    floor: Revision,
}

pub struct Cache<T> {
    prefix: Key,
    store: Arc<dyn Store>,
    view: watch::Sender<View<T>>,
    feeder: std::sync::OnceLock<JoinHandle<()>>,
}

impl<T: Send + Sync + 'static> Cache<T> {
    /// Lists and watches `prefix` in a task of its own until the cache is dropped. Empty at revision zero until
    /// the first list: await [`Cache::current`] or [`Cache::wait_for`].
    pub fn start(
        store: Arc<dyn Store>,
        prefix: impl Into<Key>,
        decode: impl Fn(&Record) -> T + Send + Sync + 'static,
    ) -> Arc<Self> {
        let cache = Arc::new(Self {
            prefix: prefix.into(),
            store,
            view: watch::Sender::new(View::empty()),
            feeder: std::sync::OnceLock::new(),
        });
        let feeder = Feeder { cache: Arc::downgrade(&cache), decode: Box::new(decode) };
        cache.feeder.get_or_init(|| tokio::spawn(feeder.run(cache.store.clone(), cache.prefix.clone())));
        cache
    }

    /// The view as it is now; may lack the latest writes of others. Never blocks on the store.
    pub fn snapshot(&self) -> Snapshot<T> {
        self.view.borrow().snapshot.clone()
    }

    pub fn revision(&self) -> Revision {
        self.view.borrow().snapshot.revision
    }

    /// Once the view shows `revision`. The revision must be of a write under this prefix; for any other, see
    /// [`Cache::current`].
    pub async fn wait_for(&self, revision: Revision) -> Snapshot<T> {
        let mut view = self.view.subscribe();
        let view = view.wait_for(|view| view.snapshot.revision >= revision.max(Revision(1))).await;
        view.expect("the cache owns the sender").snapshot.clone()
    }

    /// The view with every write that was acknowledged before this call.
    pub async fn current(&self) -> Result<Snapshot<T>, Error> {
        let frontier = self.store.frontier(&self.prefix).await?;
        Ok(self.wait_for(frontier).await)
    }

    /// Every event after `from`, then live; ends with an error when the watcher is cut. A `from` in the future
    /// is quiet until then.
    pub fn watch_from(&self, from: Revision) -> Result<CacheWatch<T>, Error> {
        let receiver = self.view.subscribe();
        let cursor = {
            let view = receiver.borrow();
            if from < view.floor {
                return Err(Error::Compacted { wanted: from, oldest: view.floor });
            }
            view.first + view.ring.partition_point(|event| event.revision() <= from) as u64
        };
        let watcher = Watcher { view: receiver, cursor, from, delivered: from, ready: VecDeque::new() };
        Ok(Box::pin(stream::unfold(Some(watcher), Watcher::step)))
    }
}

pub type CacheWatch<T> = std::pin::Pin<Box<dyn Stream<Item = Result<CacheEvent<T>, Error>> + Send>>;

impl<T> Drop for Cache<T> {
    fn drop(&mut self) {
        if let Some(feeder) = self.feeder.get() {
            feeder.abort();
        }
    }
}

/// One watcher: where it is in the ring, and the few events it has taken.
struct Watcher<T> {
    view: watch::Receiver<View<T>>,
    cursor: u64,
    from: Revision,
    delivered: Revision,
    ready: VecDeque<CacheEvent<T>>,
}

impl<T: Send + Sync + 'static> Watcher<T> {
    async fn step(this: Option<Self>) -> Option<(Result<CacheEvent<T>, Error>, Option<Self>)> {
        let mut this = this?;
        loop {
            if let Some(event) = this.ready.pop_front() {
                this.delivered = this.delivered.max(event.revision());
                return Some((Ok(event), Some(this)));
            }
            if let Err(error) = this.take() {
                return Some((Err(error), None));
            }
            if this.ready.is_empty() && this.view.changed().await.is_err() {
                return None;
            }
        }
    }

    fn take(&mut self) -> Result<(), Error> {
        let view = self.view.borrow_and_update();
        let Some(start) = self.cursor.checked_sub(view.first) else {
            return Err(Error::Compacted { wanted: self.delivered, oldest: view.floor });
        };
        let start = (start as usize).min(view.ring.len());
        let end = (start + TAKE).min(view.ring.len());
        let fresh = view.ring.range(start..end).filter(|event| event.revision() > self.from);
        self.ready.extend(fresh.cloned());
        self.cursor = view.first + end as u64;
        if self.ready.is_empty() && end == view.ring.len() && view.snapshot.revision > self.delivered {
            self.ready.push_back(CacheEvent::Bookmark(view.snapshot.revision));
        }
        Ok(())
    }
}

impl<T> View<T> {
    fn empty() -> Self {
        let snapshot = Snapshot { revision: Revision::default(), objects: OrdMap::new() };
        Self { snapshot, ring: VecDeque::new(), first: 0, floor: Revision::default() }
    }

    fn remember(&mut self, event: CacheEvent<T>) {
        if self.ring.len() == RING
            && let Some(old) = self.ring.pop_front()
        {
            self.first += 1;
            self.floor = old.revision();
        }
        self.ring.push_back(event);
    }

    fn apply(&mut self, event: CacheEvent<T>) {
        self.snapshot.absorb(&event);
        if !matches!(event, CacheEvent::Bookmark(_)) {
            self.remember(event);
        }
    }

    /// A new list after a gap: every cursor becomes invalid.
    fn reset(&mut self, snapshot: Snapshot<T>, history: VecDeque<CacheEvent<T>>, floor: Revision) {
        self.first += self.ring.len() as u64 + 1;
        self.snapshot = snapshot;
        self.ring = history;
        self.floor = floor;
    }
}

/// The task that keeps the view; holds the cache weakly so that dropping the cache ends it.
struct Feeder<T> {
    cache: Weak<Cache<T>>,
    decode: Box<Decode<T>>,
}

impl<T: Send + Sync + 'static> Feeder<T> {
    async fn run(self, store: Arc<dyn Store>, prefix: Key) {
        while self.cache.strong_count() > 0 {
            let error = match self.fill(&store, &prefix).await {
                Ok(watch) => self.follow(&store, &prefix, watch).await,
                Err(error) => error,
            };
            tracing::warn!(%prefix, %error, "the cache lists again");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Lists, and fills the ring with what the store still knows of the past.
    async fn fill(&self, store: &Arc<dyn Store>, prefix: &str) -> Result<Watch, Error> {
        let page = store.list(prefix, None, 0, None).await?;
        let now = page.revision;
        let mut floor = Revision(now.0.saturating_sub(HISTORY).max(1).min(now.0));
        let (events, watch) = loop {
            match self.past(store, prefix, floor, now).await {
                Ok(past) => break past,
                Err(Error::Compacted { oldest, .. }) if oldest > floor && oldest <= now => floor = oldest,
                Err(error) => return Err(error),
            }
        };
        let objects = page.records.iter().map(|record| (record.key.clone(), Arc::new((self.decode)(record))));
        let mut snapshot = Snapshot { revision: now, objects: objects.collect() };
        events.iter().filter(|event| event.revision() > now).for_each(|event| snapshot.absorb(event));
        let history = events.into_iter().filter(|event| !matches!(event, CacheEvent::Bookmark(_))).collect();
        if let Some(cache) = self.cache.upgrade() {
            cache.view.send_modify(|view| view.reset(snapshot, history, floor));
        }
        Ok(watch)
    }

    /// What happened after `from`, at least up to `now`, and the watch that goes on from there.
    async fn past(
        &self,
        store: &Arc<dyn Store>,
        prefix: &str,
        from: Revision,
        now: Revision,
    ) -> Result<(Vec<CacheEvent<T>>, Watch), Error> {
        let mut watch = store.watch(prefix, from).await?;
        let mut events = Vec::new();
        loop {
            let event = self.translate(next(&mut watch, prefix).await?, None);
            let revision = event.revision();
            let reached = revision > now || (revision == now && matches!(event, CacheEvent::Bookmark(_)));
            events.push(event);
            if reached {
                return Ok((events, watch));
            }
        }
    }

    /// Applies events until the past cannot be resumed.
    async fn follow(&self, store: &Arc<dyn Store>, prefix: &str, mut watch: Watch) -> Error {
        loop {
            let first = next(&mut watch, prefix).await;
            let error = match first {
                Ok(event) => match self.apply_ready(event, &mut watch) {
                    None => continue,
                    Some(error) => error,
                },
                Err(error) => error,
            };
            if matches!(error, Error::Compacted { .. }) {
                return error;
            }
            tracing::debug!(%prefix, %error, "the store's watch broke; resuming");
            let Some(from) = self.cache.upgrade().map(|cache| cache.revision()) else { return error };
            watch = loop {
                match store.watch(prefix, from).await {
                    Ok(watch) => break watch,
                    Err(error @ Error::Compacted { .. }) => return error,
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            };
        }
    }

    /// Applies `event` and all that are ready behind it, then wakes the watchers once.
    fn apply_ready(&self, event: Event, watch: &mut Watch) -> Option<Error> {
        let cache = self.cache.upgrade()?;
        let (events, failure) = gather(event, watch, &cache.prefix);
        let mut latest = HashMap::new();
        let before = cache.snapshot();
        let events: Vec<_> = events
            .into_iter()
            .filter(|event| event.revision() >= before.revision)
            .map(|event| self.translate(event, Some((&before, &mut latest))))
            .collect();
        cache.view.send_if_modified(|view| {
            let revision = view.snapshot.revision;
            let remembered = view.first + view.ring.len() as u64;
            events.into_iter().for_each(|event| view.apply(event));
            view.snapshot.revision > revision || view.first + view.ring.len() as u64 > remembered
        });
        failure
    }

    /// Decodes. `known` yields the objects that are already decoded: the view, and what this burst did to it.
    fn translate(&self, event: Event, known: Option<Known<'_, T>>) -> CacheEvent<T> {
        let revision = event.revision();
        let (record, previous, deleted) = match event {
            Event::Progress(revision) => return CacheEvent::Bookmark(revision),
            Event::Put { record, previous } => (record, previous, false),
            Event::Delete { record } => (record, None, true),
        };
        let object = Arc::new((self.decode)(&record));
        let key = record.key.clone();
        let previous = match known {
            Some((before, latest)) => {
                let old = latest.get(&key).cloned().unwrap_or_else(|| before.objects.get(&key).cloned());
                latest.insert(key.clone(), (!deleted).then(|| object.clone()));
                old
            }
            None if deleted => Some(object.clone()),
            None => previous.map(|record| Arc::new((self.decode)(&record))),
        };
        match (deleted, previous) {
            (true, previous) => CacheEvent::Deleted { revision, key, object, previous },
            (false, None) => CacheEvent::Added { revision, key, object },
            (false, previous) => CacheEvent::Modified { revision, key, object, previous },
        }
    }
}

impl<T> Snapshot<T> {
    fn absorb(&mut self, event: &CacheEvent<T>) {
        self.revision = self.revision.max(event.revision());
        match event {
            CacheEvent::Added { key, object, .. } | CacheEvent::Modified { key, object, .. } => {
                self.objects.insert(key.clone(), object.clone());
            }
            CacheEvent::Deleted { key, .. } => {
                self.objects.remove(key);
            }
            CacheEvent::Bookmark(_) => {}
        }
    }
}

/// `first` and what is ready behind it, and why the watch ended if it has.
fn gather(first: Event, watch: &mut Watch, prefix: &str) -> (Vec<Event>, Option<Error>) {
    let mut events = vec![first];
    while events.len() < BURST
        && let Some(next) = watch.next().now_or_never()
    {
        match next {
            Some(Ok(event)) => events.push(event),
            Some(Err(error)) => return (events, Some(error)),
            None => return (events, Some(ended(prefix))),
        }
    }
    (events, None)
}

async fn next(watch: &mut Watch, prefix: &str) -> Result<Event, Error> {
    watch.next().await.unwrap_or_else(|| Err(ended(prefix)))
}

fn ended(prefix: &str) -> Error {
    Error::Unavailable { action: "watch", subject: prefix.to_owned(), reason: "the stream ended".to_owned() }
}
