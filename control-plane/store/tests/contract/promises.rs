//! What both engines promise. Each function gets a fresh store.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, future::join_all};
use leme_store::{
    Condition, Error, Event, Key, Operation, Outcome, Record, Revision, Store, Transaction, Watch,
    cache::{Cache, CacheEvent},
};

type Shared = Arc<dyn Store>;

const PATIENCE: Duration = Duration::from_secs(30);

async fn within<R>(what: &str, future: impl Future<Output = R>) -> R {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

fn write(conditions: Vec<Condition>, key: &str, value: &str) -> Transaction {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Transaction { conditions, operations: vec![Operation::Put { key: Key::from(key), value, lease: None }] }
}

fn removal(key: &str) -> Transaction {
    Transaction { conditions: vec![], operations: vec![Operation::Delete { key: Key::from(key) }] }
}

async fn committed(store: &dyn Store, transaction: Transaction) -> Revision {
    match store.commit(transaction).await.unwrap() {
        Outcome::Committed(revision) => revision,
        conflict => panic!("{conflict:?}"),
    }
}

pub async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    committed(store, write(vec![], key, value)).await
}

/// Events up to and including `last`, without progress.
pub async fn collect_until(mut watch: Watch, last: Revision) -> Vec<Event> {
    let mut events = Vec::new();
    while events.last().is_none_or(|event: &Event| event.revision() < last) {
        let event = within("an event", watch.next()).await.expect("the watch goes on").unwrap();
        if event.key().is_some() {
            events.push(event);
        }
    }
    events
}

fn text(record: &Record) -> &str {
    std::str::from_utf8(&record.value).unwrap()
}

pub async fn a_commit_moves_the_revision_by_one(store: Shared) {
    let start = store.revision().await.unwrap();
    let created = put(&*store, "/t/a", "1").await;
    let changed = put(&*store, "/t/a", "2").await;
    assert_eq!((created.0, changed.0), (start.0 + 1, start.0 + 2));
    let (record, revision) = store.get("/t/a").await.unwrap();
    let record = record.unwrap();
    assert_eq!((text(&record), record.created, record.modified, revision), ("2", created, changed, changed));
    let deleted = committed(&*store, removal("/t/a")).await;
    assert_eq!(deleted.0, changed.0 + 1);
    assert_eq!(store.get("/t/a").await.unwrap(), (None, deleted));
    assert_eq!(committed(&*store, removal("/t/a")).await, deleted, "deleting nothing changes nothing");
    let again = put(&*store, "/t/a", "3").await;
    assert_eq!(store.get("/t/a").await.unwrap().0.unwrap().created, again);
}

pub async fn a_conflict_shows_what_is_there_and_writes_nothing(store: Shared) {
    let created = put(&*store, "/t/a", "1").await;
    let conditions = vec![Condition::Absent(Key::from("/t/a")), Condition::Absent(Key::from("/t/b"))];
    let outcome = store.commit(write(conditions, "/t/b", "x")).await.unwrap();
    let Outcome::Conflict { revision, current } = outcome else { panic!("{outcome:?}") };
    assert_eq!(revision, created);
    assert_eq!(current.len(), 2);
    assert_eq!(text(current[0].as_ref().unwrap()), "1");
    assert_eq!(current[1], None);
    let stale = vec![Condition::Unchanged(Key::from("/t/a"), Revision(created.0 - 1))];
    assert!(matches!(store.commit(write(stale, "/t/a", "x")).await.unwrap(), Outcome::Conflict { .. }));
    let fresh = vec![Condition::Unchanged(Key::from("/t/a"), created)];
    committed(&*store, write(fresh, "/t/a", "2")).await;
    assert_eq!(store.get("/t/b").await.unwrap().0, None);
}

pub async fn a_transaction_is_all_or_nothing_at_one_revision(store: Shared) {
    let from = put(&*store, "/t/old", "1").await;
    let mut transaction = write(vec![Condition::Absent(Key::from("/t/a"))], "/t/a", "1");
    transaction.operations.extend(write(vec![], "/t/b", "2").operations);
    transaction.operations.extend(removal("/t/old").operations);
    let revision = committed(&*store, transaction.clone()).await;
    let page = store.list("/t/", None, 0, None).await.unwrap();
    assert!(page.records.iter().all(|record| record.modified == revision));
    assert_eq!(page.records.len(), 2);
    assert!(matches!(store.commit(transaction).await.unwrap(), Outcome::Conflict { .. }));
    let mut twice = write(vec![], "/t/a", "1");
    twice.operations.extend(removal("/t/a").operations);
    assert!(store.commit(twice).await.is_err(), "a key is written once in a transaction");
    let last = put(&*store, "/t/z", "").await;
    let events = collect_until(store.watch("/t/", from).await.unwrap(), last).await;
    assert_eq!(events.iter().filter(|event| event.revision() == revision).count(), 3);
    assert_eq!(events.len(), 4);
}

pub async fn racing_increments_lose_no_update(store: Shared) {
    put(&*store, "/t/counter", "0").await;
    let increment = |store: Shared| async move {
        for _ in 0..20 {
            loop {
                let record = store.get("/t/counter").await.unwrap().0.unwrap();
                let next = (text(&record).parse::<u64>().unwrap() + 1).to_string();
                let unchanged = vec![Condition::Unchanged(record.key.clone(), record.modified)];
                if let Outcome::Committed(_) = store.commit(write(unchanged, "/t/counter", &next)).await.unwrap() {
                    break;
                }
            }
        }
    };
    join_all((0..8).map(|_| tokio::spawn(increment(store.clone())))).await.into_iter().for_each(|end| end.unwrap());
    assert_eq!(text(&store.get("/t/counter").await.unwrap().0.unwrap()), "160");
}

pub async fn an_acknowledged_write_is_read_by_everybody(store: Shared) {
    let writer = |store: Shared, name: usize| async move {
        let key = format!("/t/{name}");
        for round in 0..50 {
            let revision = put(&*store, &key, &round.to_string()).await;
            let reader = tokio::spawn({
                let (store, key) = (store.clone(), key.clone());
                async move { (store.get(&key).await.unwrap(), store.list("/t/", None, 0, None).await.unwrap()) }
            });
            let ((record, at), page) = reader.await.unwrap();
            assert_eq!(record.unwrap().modified, revision);
            assert!(at >= revision && page.revision >= revision);
            assert!(page.records.iter().any(|record| record.modified == revision));
        }
    };
    let writers = (0..8).map(|name| tokio::spawn(writer(store.clone(), name)));
    join_all(writers).await.into_iter().for_each(|end| end.unwrap());
}

/// Creates, updates and deletes a few keys from many tasks; returns every acknowledged put's revision with its key.
async fn churn(store: &Shared, rounds: usize) -> BTreeMap<Revision, String> {
    let work = |store: Shared, name: usize| async move {
        let mut done = Vec::new();
        for round in 0..rounds {
            let key = format!("/t/{}", (name + round) % 7);
            if round % 5 == 4 {
                committed(&*store, removal(&key)).await;
            } else {
                done.push((put(&*store, &key, &format!("{name}.{round}")).await, key));
            }
        }
        done
    };
    let tasks = (0..8).map(|name| tokio::spawn(work(store.clone(), name)));
    join_all(tasks).await.into_iter().flat_map(|done| done.unwrap()).collect()
}

/// The rules of a complete and ordered history, and the state it leads to.
fn replay(events: &[Event], mut state: BTreeMap<String, Record>) -> BTreeMap<String, Record> {
    let mut last = Revision(0);
    for event in events {
        assert!(event.revision() > last, "in order, each once");
        last = event.revision();
        match event {
            Event::Put { record, previous } => {
                assert_eq!(state.get(&*record.key), previous.as_ref(), "the state before is what was");
                state.insert(record.key.to_string(), record.clone());
            }
            Event::Delete { record } => {
                let before = state.remove(&*record.key).expect("only what exists is deleted");
                assert_eq!((before.value, before.created), (record.value.clone(), record.created));
            }
            Event::Progress(_) => {}
        }
    }
    state
}

async fn present(store: &Shared) -> BTreeMap<String, Record> {
    let page = store.list("/t/", None, 0, None).await.unwrap();
    page.records.into_iter().map(|record| (record.key.to_string(), record)).collect()
}

pub async fn a_watch_misses_nothing_while_many_write(store: Shared) {
    let from = store.revision().await.unwrap();
    let early = store.watch("/t/", from).await.unwrap();
    let writing = tokio::spawn({
        let store = store.clone();
        async move { churn(&store, 60).await }
    });
    let middle = store.watch("/t/", from).await.unwrap();
    let acknowledged = writing.await.unwrap();
    let last = put(&*store, "/t/last", "").await;
    let late = store.watch("/t/", from).await.unwrap();
    let seen = join_all([early, middle, late].map(|watch| collect_until(watch, last))).await;
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "live and replayed history agree");
    let puts = seen[0].iter().filter(|event| matches!(event, Event::Put { .. }));
    let mut puts: BTreeMap<_, _> = puts.map(|event| (event.revision(), event.key().unwrap().to_string())).collect();
    puts.remove(&last);
    assert_eq!(puts, acknowledged, "exactly what was acknowledged");
    assert_eq!(replay(&seen[0], BTreeMap::new()), present(&store).await);
}

pub async fn a_watch_replays_the_past_and_goes_on_live(store: Shared) {
    put(&*store, "/t/a", "0").await;
    let from = put(&*store, "/t/a", "1").await;
    put(&*store, "/other/a", "x").await;
    put(&*store, "/t/a", "2").await;
    let mut watch = store.watch("/t/", from).await.unwrap();
    let first = within("the past", watch.next()).await.unwrap().unwrap();
    let Event::Put { record, previous: Some(previous) } = first else { panic!("{first:?}") };
    assert_eq!((text(&record), text(&previous)), ("2", "1"));
    let last = put(&*store, "/t/b", "3").await;
    let events = collect_until(watch, last).await;
    assert!(matches!(&events[..], [Event::Put { record, previous: None }] if text(record) == "3"));
}

pub async fn pages_show_one_revision_while_writers_run(store: Shared) {
    for n in 0..25 {
        put(&*store, &format!("/t/{n:02}"), "old").await;
    }
    let first = store.list("/t/", None, 10, None).await.unwrap();
    assert_eq!((first.records.len(), first.remaining), (10, 15));
    for n in 0..30 {
        put(&*store, &format!("/t/{n:02}"), "new").await;
        committed(&*store, removal("/t/20")).await;
    }
    let mut records = first.records.clone();
    let mut remaining = first.remaining;
    while remaining > 0 {
        let after = records.last().unwrap().key.clone();
        let page = store.list("/t/", Some(&after), 10, Some(first.revision)).await.unwrap();
        assert_eq!(page.revision, first.revision);
        remaining = page.remaining;
        records.extend(page.records);
    }
    assert_eq!(records.len(), 25);
    assert!(records.iter().all(|record| text(record) == "old"));
    assert!(records.is_sorted_by(|a, b| a.key < b.key));
    let now = store.list("/t/", Some("/t/24"), 3, None).await.unwrap();
    assert_eq!((now.records.len(), now.remaining), (3, 2));
}

pub async fn a_list_in_the_future_or_before_compaction_is_refused(store: Shared) {
    let first = put(&*store, "/t/a", "1").await;
    let second = put(&*store, "/t/a", "2").await;
    let third = put(&*store, "/t/a", "3").await;
    let future = store.list("/t/", None, 0, Some(Revision(third.0 + 1))).await;
    assert!(matches!(future, Err(Error::Future { newest, .. }) if newest == third), "{future:?}");
    store.compact(second).await.unwrap();
    let gone = store.list("/t/", None, 0, Some(first)).await;
    assert!(matches!(gone, Err(Error::Compacted { oldest, .. }) if oldest == second), "{gone:?}");
    let kept = store.list("/t/", None, 0, Some(second)).await.unwrap();
    assert_eq!(text(&kept.records[0]), "2");
}

pub async fn compaction_keeps_the_present_and_ends_old_watches(store: Shared) {
    let from = store.revision().await.unwrap();
    churn(&store, 30).await;
    let before = present(&store).await;
    let middle = put(&*store, "/t/middle", "").await;
    store.compact(middle).await.unwrap();
    store.compact(from).await.unwrap();
    let refused = store.watch("/t/", from).await;
    assert!(matches!(refused, Err(Error::Compacted { oldest, .. }) if oldest == middle));
    committed(&*store, removal("/t/middle")).await;
    let last = put(&*store, "/t/last", "").await;
    let events = collect_until(store.watch("/t/", middle).await.unwrap(), last).await;
    assert_eq!(events.len(), 2);
    assert!(store.compact(Revision(last.0 + 100)).await.is_err(), "the future cannot be compacted");
    let mut after = present(&store).await;
    after.remove("/t/last");
    assert_eq!(before, after);
}

pub async fn a_cancelled_commit_is_whole_or_absent(store: Shared) {
    for n in 0..200_u64 {
        let mut transaction = write(vec![], &format!("/t/{n:03}/a"), "1");
        transaction.operations.extend(write(vec![], &format!("/t/{n:03}/b"), "1").operations);
        let commit = store.commit(transaction);
        let _ = tokio::time::timeout(Duration::from_micros(n * 3), commit).await;
    }
    put(&*store, "/u/barrier", "").await;
    let records = present(&store).await;
    for n in 0..200 {
        let both = ["a", "b"].map(|half| records.get(&format!("/t/{n:03}/{half}")).map(|record| record.modified));
        assert_eq!(both[0], both[1], "transaction {n}");
    }
}

pub async fn leases_expire_and_only_they(store: Shared) {
    let from = put(&*store, "/t/stays", "1").await;
    let leased = |key: &str| {
        let mut transaction = write(vec![], key, "1");
        transaction.operations = vec![Operation::Put { key: Key::from(key), value: Bytes::new(), lease: Some(1) }];
        transaction
    };
    for n in 0..5 {
        committed(&*store, leased(&format!("/t/goes/{n}"))).await;
    }
    committed(&*store, leased("/t/renewed")).await;
    put(&*store, "/t/renewed", "for good").await;
    let mut watch = store.watch("/t/", from).await.unwrap();
    let mut gone = Vec::new();
    while gone.len() < 5 {
        if let Event::Delete { record } = within("expiry", watch.next()).await.unwrap().unwrap() {
            gone.push(record.key.to_string());
        }
    }
    gone.sort();
    assert_eq!(gone, ["/t/goes/0", "/t/goes/1", "/t/goes/2", "/t/goes/3", "/t/goes/4"]);
    assert_eq!(present(&store).await.into_keys().collect::<Vec<_>>(), ["/t/renewed", "/t/stays"]);
}

pub async fn the_frontier_is_reached_without_another_write(store: Shared) {
    let from = put(&*store, "/t/a", "1").await;
    let mut watch = store.watch("/t/", from).await.unwrap();
    put(&*store, "/t/b", "1").await;
    put(&*store, "/other", "1").await;
    let frontier = store.frontier("/t/").await.unwrap();
    let mut seen = from;
    let mut keys = 0;
    while seen < frontier || keys == 0 {
        let event = within("the frontier", watch.next()).await.unwrap().unwrap();
        keys += usize::from(event.key().is_some());
        seen = seen.max(event.revision());
    }
    assert_eq!(keys, 1);
}

fn cache_of(store: &Shared) -> Arc<Cache<Record>> {
    Cache::start(store.clone(), "/t/", Record::clone)
}

pub async fn a_cache_is_consistent_with_acknowledged_writes(store: Shared) {
    put(&*store, "/t/early", "1").await;
    let cache = cache_of(&store);
    assert_eq!(within("the first list", cache.current()).await.unwrap().objects.len(), 1);
    let writer = |store: Shared, cache: Arc<Cache<Record>>, name: usize| async move {
        for round in 0..30 {
            let key = format!("/t/{name}");
            let revision = put(&*store, &key, &round.to_string()).await;
            put(&*store, "/other", "noise").await;
            let snapshot = within("the view", cache.current()).await.unwrap();
            assert!(snapshot.objects[&Key::from(key.as_str())].modified >= revision);
            assert!(within("the write", cache.wait_for(revision)).await.revision >= revision);
        }
    };
    let writers = (0..8).map(|name| tokio::spawn(writer(store.clone(), cache.clone(), name)));
    join_all(writers).await.into_iter().for_each(|end| end.unwrap());
    let snapshot = within("the end", cache.current()).await.unwrap();
    let view: BTreeMap<_, _> =
        snapshot.objects.iter().map(|(key, record)| (key.to_string(), (**record).clone())).collect();
    assert_eq!(view, present(&store).await);
}

pub async fn cache_watchers_see_every_change_once_in_order(store: Shared) {
    let from = put(&*store, "/t/early", "1").await;
    put(&*store, "/t/early", "2").await;
    let cache = cache_of(&store);
    within("the first list", cache.current()).await.unwrap();
    let watchers: Vec<_> = (0..4).map(|_| cache.watch_from(from).unwrap()).collect();
    churn(&store, 40).await;
    let last = put(&*store, "/t/last", "").await;
    let expected = collect_until(store.watch("/t/", from).await.unwrap(), last).await;
    for mut watcher in watchers {
        let mut seen = Vec::new();
        while seen.last().is_none_or(|(revision, _)| *revision < last) {
            match within("an event", watcher.next()).await.unwrap().unwrap() {
                CacheEvent::Bookmark(_) => {}
                event => seen.push((event.revision(), event)),
            }
        }
        assert_eq!(seen.len(), expected.len());
        for ((_, seen), expected) in seen.into_iter().zip(&expected) {
            assert!(same(&seen, expected), "{seen:?} {expected:?}");
        }
    }
}

fn same(seen: &CacheEvent<Record>, expected: &Event) -> bool {
    match (seen, expected) {
        (CacheEvent::Added { object, .. }, Event::Put { record, previous: None }) => **object == *record,
        (CacheEvent::Modified { object, previous, .. }, Event::Put { record, previous: Some(before) }) => {
            **object == *record && previous.as_deref() == Some(before)
        }
        (CacheEvent::Deleted { object, .. }, Event::Delete { record }) => **object == *record,
        _ => false,
    }
}
