//! Which rule counts for which request, and what becomes of the file.

use super::{policy::*, *};
use crate::auth::NOBODY;

const HEAD: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";

fn level(policy: &Policy, user: &User, verb: &'static str, path: &str) -> Level {
    let method = if verb == "create" { Method::POST } else { Method::GET };
    let target = crate::api::path::parse(&method, path, verb == "watch");
    let request = match &target {
        Some(target) => Attributes::resource(user, target),
        None => Attributes::path(user, &method, path),
    };
    policy.wish(&request).level
}

#[test]
fn the_first_rule_that_matches_counts() {
    let text = format!(
        r#"{HEAD}rules:
- level: None
  users: [system:kube-scheduler]
  verbs: [get, list, watch]
- level: None
  nonResourceURLs: [/healthz*, /version]
- level: Metadata
  resources:
  - group: ""
    resources: [secrets, "serviceaccounts/token"]
- level: RequestResponse
  userGroups: [auditors]
  namespaces: [default]
- level: Request
  resources:
  - group: apps
    resources: ["*/scale", "deployments/*"]
  - resources: [configmaps]
    resourceNames: [one]
"#
    );
    let policy = Policy::parse(&text).unwrap();
    let scheduler = User::authenticated("system:kube-scheduler", []);
    let auditor = User::authenticated("jane", ["auditors".to_owned()]);
    for (user, verb, path, expected) in [
        (&scheduler, "list", "/api/v1/pods", Level::None),
        (&scheduler, "list", "/api/v1/secrets", Level::None),
        (&scheduler, "create", "/api/v1/namespaces/a/secrets", Level::Metadata),
        (&NOBODY, "get", "/healthz/etcd", Level::None),
        (&NOBODY, "get", "/version", Level::None),
        (&NOBODY, "create", "/api/v1/namespaces/a/serviceaccounts/b/token", Level::Metadata),
        (&NOBODY, "get", "/api/v1/namespaces/a/serviceaccounts/b", Level::None),
        (&auditor, "get", "/api/v1/namespaces/default/pods/x", Level::RequestResponse),
        (&auditor, "get", "/api/v1/namespaces/other/pods/x", Level::None),
        (&auditor, "get", "/metrics", Level::None),
        (&NOBODY, "get", "/apis/apps/v1/namespaces/a/replicasets/b/scale", Level::Request),
        (&NOBODY, "get", "/apis/apps/v1/namespaces/a/deployments/b/status", Level::Request),
        (&NOBODY, "get", "/apis/apps/v1/namespaces/a/replicasets/b", Level::None),
        (&NOBODY, "get", "/api/v1/namespaces/a/configmaps/one", Level::Request),
        (&NOBODY, "get", "/api/v1/namespaces/a/configmaps/two", Level::None),
    ] {
        assert_eq!(level(&policy, user, verb, path), expected, "{} {verb} {path}", user.name);
    }
}

#[test]
fn stages_add_up_and_a_rule_has_the_last_word_on_managed_fields() {
    let text = format!(
        "{HEAD}omitStages: [RequestReceived]\nomitManagedFields: true\nrules:\n- level: Metadata\n  verbs: [get]\n  \
         omitStages: [ResponseStarted]\n  omitManagedFields: false\n- level: Request\n"
    );
    let policy = Policy::parse(&text).unwrap();
    let wish = |verb| policy.wish(&Attributes { user: &NOBODY, verb, ..Attributes::path(&NOBODY, &Method::GET, "/") });
    let stages = vec![Stage::RequestReceived, Stage::ResponseStarted];
    assert_eq!(wish("get"), Wish { level: Level::Metadata, omit_stages: stages, omit_managed_fields: false });
    assert!(wish("put").omit_managed_fields);
}

#[test]
fn a_wrong_policy_is_refused_with_the_place() {
    for (rest, expected) in [
        ("rules: []\n", "has no rules"),
        ("rules:\n- level: Loud\n", "unknown variant `Loud`"),
        ("rules:\n- level: None\n  user: [a]\n", "unknown field `user`"),
        ("rules:\n- level: None\n- level: None\n  nonResourceURLs: [healthz]\n", "rules[1]: \"healthz\" is no path"),
        ("rules:\n- level: None\n  nonResourceURLs: [/a]\n  namespaces: [b]\n", "rules[0]: is about nonResourceURLs"),
        ("rules:\n- level: None\n  resources: [{group: '', resourceNames: [a]}]\n", "resourceNames without resources"),
    ] {
        let error = format!("{:#}", Policy::parse(&format!("{HEAD}{rest}")).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
    let other = Policy::parse("apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: [{level: None}]\n").unwrap_err();
    assert!(other.to_string().contains("audit.k8s.io/v1"), "{other}");
}

#[tokio::test]
async fn a_full_file_is_turned_over_and_the_oldest_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    std::fs::write(directory.path().join("audit-notes.log"), "not ours").unwrap();
    let limits = Limits { size: 25, files: 2, days: 0 };
    let log = Log::open(&path, limits, Counter::default()).unwrap();
    for n in 0..10 {
        log.write(format!("a line of ten {n}\n").into_bytes()).await;
    }
    log.flush().await;
    let mut names: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.contains(&"audit-notes.log".to_owned()));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a line of ten 9\n");
    let turned: Vec<_> = names.iter().filter(|name| name.starts_with("audit-2")).collect();
    assert_eq!(std::fs::read_to_string(directory.path().join(turned[0])).unwrap(), "a line of ten 7\n");
}

#[tokio::test]
async fn what_cannot_be_written_is_counted_and_stops_nobody() {
    let lost = Counter::default();
    let log = Log::open("/dev/full".as_ref(), Limits { size: 1 << 20, files: 0, days: 0 }, lost.clone()).unwrap();
    log.write(b"gone\n".to_vec()).await;
    log.flush().await;
    assert_eq!(lost.get(), 1);
}
