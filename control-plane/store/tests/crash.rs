//! What the embedded engine keeps when its process is killed or its disk refuses, and what it refuses to open.
//!
//! The victims are this test binary again, started with `LEME_STORE_VICTIM` naming the database.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use leme_store::{
    Error, Key, Operation, Outcome, Revision, Store, Transaction,
    embedded::{Embedded, OpenError},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const VICTIM: &str = "LEME_STORE_VICTIM";

fn put(key: &str, size: usize) -> Transaction {
    let value = Bytes::from(vec![b'x'; size]);
    Transaction { conditions: vec![], operations: vec![Operation::Put { key: Key::from(key), value, lease: None }] }
}

async fn committed(store: &dyn Store, key: &str, size: usize) -> Result<Revision, Error> {
    match store.commit(put(key, size)).await? {
        Outcome::Committed(revision) => Ok(revision),
        conflict => panic!("{conflict:?}"),
    }
}

/// Runs `test` of this binary in a process of its own, which ignores SIGXFSZ so that a full "disk" is an error.
fn start_victim(test: &str, database: &Path) -> Child {
    Command::new("sh")
        .args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(VICTIM, database)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn victims_database() -> Option<PathBuf> {
    std::env::var_os(VICTIM).map(PathBuf::from)
}

/// Sixteen tasks write until killed, and print what was acknowledged.
async fn write_for_ever(database: PathBuf) {
    let store: Arc<dyn Store> = Arc::new(Embedded::open(database).unwrap());
    let start = store.revision().await.unwrap();
    let tasks = (0..16).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0_u64.. {
                let key = format!("/t/{start}/{task}/{n}");
                let revision = committed(&*store, &key, 300).await.unwrap();
                let line = format!("\nacknowledged {key} {revision}\n");
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        })
    });
    futures::future::join_all(tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_survives_kill_9() {
    if let Some(database) = victims_database() {
        return write_for_ever(database).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("state.db");
    let mut acknowledged = BTreeMap::new();
    for _ in 0..5 {
        let mut victim = start_victim("every_acknowledged_write_survives_kill_9", &database);
        let kill_after = fastrand::usize(1..3000);
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        for (count, line) in lines.map_while(Result::ok).filter(|line| line.starts_with("acknowledged ")).enumerate() {
            if count == kill_after {
                victim.kill().unwrap();
            }
            if let [_, key, revision] = line.split(' ').collect::<Vec<_>>()[..]
                && let Ok(revision) = revision.parse()
            {
                acknowledged.insert(key.to_owned(), Revision(revision));
            }
        }
        victim.wait().unwrap();
        let store = Embedded::open(&database).unwrap();
        let now = store.revision().await.unwrap();
        for (key, revision) in &acknowledged {
            let record = store.get(key).await.unwrap().0.unwrap_or_else(|| panic!("{key} is lost"));
            // The last line may have been cut short by the kill; a shorter number is a smaller one.
            assert!(record.modified >= *revision && record.modified <= now, "{key}");
        }
    }
    assert!(acknowledged.len() > 5);
}

fn limit_files(bytes: u64) {
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, bytes, hard).unwrap();
}

async fn fill_the_disk(database: PathBuf) {
    let store = Embedded::open(&database).unwrap();
    let kept = committed(&store, "/t/kept", 100).await.unwrap();
    limit_files(300_000);
    let mut written = 0;
    let failure = loop {
        match committed(&store, &format!("/t/{written}"), 10_000).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(failure, Error::Unavailable { action: "commit", .. }), "{failure}");
    let newest = store.revision().await.unwrap();
    assert_eq!(newest.0, kept.0 + written, "what failed moved nothing");
    assert_eq!(store.list("/t/", None, 0, None).await.unwrap().records.len() as u64, written + 1);
    assert_eq!(store.list("/t/", None, 0, Some(kept)).await.unwrap().records.len(), 1);
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    limit_files(hard);
    assert_eq!(committed(&store, "/t/after", 10_000).await.unwrap().0, newest.0 + 1);
    drop(store);
    let store = Embedded::open(&database).unwrap();
    assert_eq!(store.list("/t/", None, 0, None).await.unwrap().records.len() as u64, written + 2);
    std::io::stdout().write_all(b"\nrecovered\n").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_writes_keeps_reads_and_recovers() {
    if let Some(database) = victims_database() {
        return fill_the_disk(database).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let victim = start_victim("a_full_disk_fails_writes_keeps_reads_and_recovers", &directory.path().join("state.db"));
    let output = victim.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("\nrecovered\n"), "{said}");
}

#[tokio::test]
async fn state_history_and_leases_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("state.db");
    let store = Embedded::open(&database).unwrap();
    let first = committed(&store, "/t/a", 1).await.unwrap();
    let second = committed(&store, "/t/a", 2).await.unwrap();
    let mut leased = put("/t/leased", 1);
    leased.operations = vec![Operation::Put { key: Key::from("/t/leased"), value: Bytes::new(), lease: Some(1) }];
    store.commit(leased).await.unwrap();
    store.compact(first).await.unwrap();
    drop(store);
    let store = Embedded::open(&database).unwrap();
    assert_eq!(store.get("/t/a").await.unwrap().0.unwrap().modified, second);
    assert_eq!(store.list("/t/", None, 0, Some(first)).await.unwrap().records[0].value.len(), 1);
    assert!(matches!(store.watch("/t/", Revision(1)).await, Err(Error::Compacted { .. })));
    let mut watch = store.watch("/t/", first).await.unwrap();
    let expired = async {
        while !matches!(futures::StreamExt::next(&mut watch).await, Some(Ok(leme_store::Event::Delete { .. }))) {}
    };
    tokio::time::timeout(Duration::from_secs(30), expired).await.expect("the lease expires after the restart");
}

#[test]
fn a_second_process_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("state.db");
    let _first = Embedded::open(&database).unwrap();
    let refusal = Embedded::open(&database).err().unwrap();
    assert!(matches!(refusal, OpenError::Locked { .. }), "{refusal}");
}

#[test]
fn foreign_and_damaged_files_are_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("text");
    std::fs::write(&text, "not a database at all, but a long enough text to be looked at".repeat(20)).unwrap();
    assert!(matches!(Embedded::open(&text), Err(OpenError::Foreign { .. })));
    let other = directory.path().join("other.db");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(matches!(Embedded::open(&other), Err(OpenError::Foreign { .. })));

    let database = directory.path().join("state.db");
    let store = Embedded::open(&database).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for n in 0..200 {
        runtime.block_on(committed(&store, &format!("/t/{n}"), 1000)).unwrap();
    }
    drop(store);
    let mut bytes = std::fs::read(&database).unwrap();
    assert!(bytes.len() > 100_000, "the log was folded into the database on close");
    bytes[4096..80_000].fill(0xa5);
    std::fs::write(&database, &bytes).unwrap();
    let refusal = Embedded::open(&database).err().unwrap();
    assert!(matches!(refusal, OpenError::Corrupt { .. }), "{refusal}");
}
