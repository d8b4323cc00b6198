//! What is on disk, what is seen, and what a change of keys does to both.

use std::sync::Arc;

use leme_store::{cache::Cache, embedded::Embedded};
use tempfile::TempDir;

use super::*;

const KEY: &str = "/registry/secrets/default/token";
const OTHER: &str = "/registry/secrets/default/other";
const OPEN: &str = "/registry/configmaps/default/settings";
const PLAIN: &[u8] = br#"{"kind":"Secret","apiVersion":"v1","metadata":{"name":"token"},"data":{"a":"c2VjcmV0"}}"#;
const IDENTITY: &str = "- identity: {}";

/// `A…` as the secret of each key, so that keys differ by name and letter.
fn provider(kind: &str, name: &str, letter: char, bytes: usize) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let secret = BASE64_STANDARD.encode(letter.to_string().repeat(bytes));
    format!("- {kind}: {{keys: [{{name: {name}, secret: {secret}}}]}}")
}

fn keyring(providers: &[&str]) -> Keyring {
    parse("[secrets]", providers).unwrap()
}

fn parse(resources: &str, providers: &[&str]) -> Result<Keyring> {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: {resources}\n  \
         providers:\n  {}\n",
        providers.join("\n  ")
    );
    configuration::parse(&text, resources::table())
}

fn disk() -> (Arc<dyn Store>, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Arc::new(Embedded::open(directory.path().join("state.db")).unwrap()), directory)
}

async fn put(store: &dyn Store, key: &str) -> Revision {
    let operations = vec![Operation::Put { key: key.into(), value: PLAIN.into(), lease: None }];
    match store.commit(Transaction { conditions: Vec::new(), operations }).await.unwrap() {
        Outcome::Committed(revision) => revision,
        conflict => panic!("{conflict:?}"),
    }
}

async fn value(store: &dyn Store, key: &str) -> Vec<u8> {
    store.get(key).await.unwrap().0.unwrap().value.to_vec()
}

#[tokio::test]
async fn a_secret_is_sealed_on_disk_and_in_the_clear_for_every_way_of_reading() {
    let (disk, _directory) = disk();
    let store = Sealed::new(disk.clone(), keyring(&[&provider("secretbox", "one", 'a', 32)])).await.unwrap();
    let before = store.revision().await.unwrap();
    let revision = put(&store, KEY).await;
    put(&store, OPEN).await;
    let stored = value(&*disk, KEY).await;
    assert!(stored.starts_with(b"k8s:enc:secretbox:v1:one:"));
    assert!(!stored.windows(8).any(|bytes| bytes == b"c2VjcmV0"));
    assert_eq!(value(&*disk, OPEN).await, PLAIN, "no rule covers it");

    assert_eq!(value(&store, KEY).await, PLAIN);
    let page = store.list("/registry/secrets/", None, 0, None).await.unwrap();
    assert_eq!(page.records[0].value, PLAIN);
    let mut watch = store.watch("/registry/secrets/", before).await.unwrap();
    let Some(Ok(Event::Put { record, .. })) = watch.next().await else { panic!("no event") };
    assert_eq!(record.value, PLAIN);
    let conditions = vec![Condition::Absent(KEY.into())];
    let conflict = store.commit(Transaction { conditions, operations: Vec::new() }).await.unwrap();
    let Outcome::Conflict { current, .. } = conflict else { panic!("{conflict:?}") };
    assert_eq!(current[0].as_ref().map(|record| (&record.value[..], record.modified)), Some((PLAIN, revision)));
}

#[tokio::test]
async fn every_cipher_opens_what_it_sealed_and_nothing_that_was_moved_or_changed() {
    for (kind, bytes) in
        [("secretbox", 32), ("aesgcm", 16), ("aesgcm", 24), ("aesgcm", 32), ("aescbc", 16), ("aescbc", 32)]
    {
        let cipher = Cipher::new(kind, "one", &vec![7; bytes]).unwrap();
        let stored = cipher.seal(KEY, PLAIN).unwrap();
        assert!(cipher.made(&stored));
        assert_eq!(cipher.open(KEY, &stored).unwrap(), PLAIN, "{kind} {bytes}");
        assert_ne!(stored, cipher.seal(KEY, PLAIN).unwrap(), "{kind}: the same twice");
        assert!(cipher.open(KEY, &stored[..cipher.prefix.len() + 3]).is_err(), "{kind}: cut");
        let stranger = Cipher::new(kind, "one", &vec![8; bytes]).unwrap().open(KEY, &stored);
        assert!(stranger.is_err() || kind == "aescbc", "{kind}: another key");
        if kind == "aesgcm" {
            assert!(cipher.open(OTHER, &stored).is_err(), "bound to its name");
        }
    }
}

#[tokio::test]
async fn a_new_first_key_seals_everything_again_and_the_old_one_can_go() {
    let (disk, _directory) = disk();
    let (old, new) = (provider("aescbc", "old", 'a', 32), provider("secretbox", "new", 'b', 32));
    put(&*disk, KEY).await;
    let store = Sealed::new(disk.clone(), keyring(&[&old, IDENTITY])).await.unwrap();
    assert_eq!(store.renew().await.unwrap(), 1, "it was in the clear");
    assert!(value(&*disk, KEY).await.starts_with(b"k8s:enc:aescbc:v1:old:"));

    let refused = store.exchange(keyring(&[&new])).await.unwrap_err();
    assert!(format!("{refused:#}").contains("no configured key is k8s:enc:aescbc:v1:old:"), "{refused:#}");
    store.exchange(keyring(&[&new, &old])).await.unwrap();
    assert_eq!(value(&store, KEY).await, PLAIN);
    assert_eq!((store.renew().await.unwrap(), store.renew().await.unwrap()), (1, 0));
    store.exchange(keyring(&[&new])).await.unwrap();
    assert_eq!(value(&store, KEY).await, PLAIN);
}

/// The caches read the past at their start: what only a forgotten key opens must not keep them from the present.
#[tokio::test]
async fn a_past_that_no_key_opens_is_forgotten_like_a_compacted_one() {
    let (disk, _directory) = disk();
    let (old, new) = (provider("secretbox", "old", 'a', 32), provider("secretbox", "new", 'b', 32));
    let first = Sealed::new(disk.clone(), keyring(&[&old])).await.unwrap();
    put(&first, KEY).await;
    put(&first, OTHER).await;
    first.exchange(keyring(&[&new, &old])).await.unwrap();
    first.renew().await.unwrap();
    let store: Arc<dyn Store> = Arc::new(Sealed::new(disk, keyring(&[&new])).await.unwrap());
    let cache = Cache::start(store, "/registry/secrets/", |record| record.value.clone());
    let snapshot = cache.current().await.unwrap();
    assert_eq!(snapshot.objects.values().map(|value| value.to_vec()).collect::<Vec<_>>(), [PLAIN, PLAIN]);
}

#[tokio::test]
async fn a_key_of_the_same_name_that_is_another_one_is_refused_at_the_start() {
    let (disk, _directory) = disk();
    let first = Sealed::new(disk.clone(), keyring(&[&provider("secretbox", "key1", 'a', 32)])).await.unwrap();
    put(&first, KEY).await;
    let other = Sealed::new(disk, keyring(&[&provider("secretbox", "key1", 'b', 32), IDENTITY])).await.err().unwrap();
    let text = format!("{other:#}");
    assert!(text.contains("1 records cannot be read") && text.contains(KEY), "{text}");
}

#[test]
fn what_is_wrong_in_a_configuration_is_named_and_no_secret_is() {
    let key = |name, secret| format!("- secretbox: {{keys: [{{name: {name}, secret: {secret}}}]}}");
    for (resources, provider, expected) in [
        ("[secrets]", "- kms: {name: a}".to_owned(), "providers[0]: kms is not supported"),
        ("[secrets]", "- rot13: {}".to_owned(), "unknown field `rot13`"),
        ("[secrets]", "- secretbox: {keys: []}".to_owned(), "secretbox has no keys"),
        ("[secrets]", "- {}".to_owned(), "expected one of secretbox, aesgcm, aescbc and identity"),
        ("[secrets]", key("a", "c2hvcnQ="), "a key of secretbox has 32 bytes, this one has 5"),
        ("[secrets]", key("a", "not*base64"), "the secret of key \"a\" is not base64"),
        ("[secrets]", key("\"a:b\"", "c2hvcnQ="), "\"a:b\" cannot be a key's name"),
        ("[unicorns]", IDENTITY.to_owned(), "serves no resource \"unicorns\""),
        ("[]", IDENTITY.to_owned(), "names no resources"),
    ] {
        let error = format!("{:#}", parse(resources, &[&provider]).unwrap_err());
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("c2hvcnQ") && !error.contains("not*"), "{error}");
    }
}

#[test]
fn wildcards_cover_groups() {
    let covered = |resources: &str, key: &str| parse(resources, &[IDENTITY]).unwrap().rule(key).is_some();
    assert!(covered("['*.apps']", "/registry/deployments/a/b") && !covered("['*.apps']", KEY));
    assert!(covered("['*.']", KEY) && !covered("['*.']", "/registry/deployments/a/b"));
    assert!(covered("['*.*']", KEY) && covered("[deployments.apps]", "/registry/deployments/a/b"));
}

#[test]
fn the_file_that_a_server_makes_is_a_configuration() {
    let text = configuration::generate();
    let made = configuration::parse(&text, resources::table()).unwrap();
    assert!(made.rule(KEY).is_some() && made.rule(OPEN).is_none());
    assert_ne!(text, configuration::generate(), "another key for another cluster");
}
