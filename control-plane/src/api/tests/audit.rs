//! What the audit log says of requests, as the policy wants it.

use std::path::Path;

use super::*;
use crate::audit::{Limits, Options};

const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  users: [system:apiserver]
- level: Metadata
  resources: [{group: '', resources: [secrets]}]
- level: RequestResponse
  verbs: [create, patch, delete]
- level: Metadata
";

/// A cluster whose log is kept beside its store.
async fn recorded() -> Cluster {
    Cluster::with(|config| {
        let policy = config.data_dir.join("policy.yaml");
        std::fs::write(&policy, POLICY).unwrap();
        let limits = Limits { size: 1 << 20, files: 0, days: 0 };
        config.audit = Some(Options { policy, log: config.data_dir.join("audit.log"), limits });
    })
    .await
}

async fn events(cluster: &Cluster, user: &str) -> Vec<Value> {
    cluster.app.audit.as_ref().unwrap().flush().await;
    let text = std::fs::read_to_string(cluster.app.config.data_dir.join("audit.log")).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["user"]["username"] == user).collect()
}

#[tokio::test]
async fn a_write_is_recorded_with_what_was_sent_and_what_came_back() {
    let cluster = recorded().await;
    let made = cluster.send("admin", Method::POST, CONFIGMAPS, "application/json", configmap("a")).await;
    assert_eq!(made.status, 201);
    let events = events(&cluster, "admin").await;
    let event = events.last().unwrap();
    assert_eq!((&event["kind"], &event["apiVersion"]), (&json!("Event"), &json!("audit.k8s.io/v1")));
    assert_eq!((&event["stage"], &event["level"]), (&json!("ResponseComplete"), &json!("RequestResponse")));
    assert_eq!((&event["verb"], &event["requestURI"]), (&json!("create"), &json!(CONFIGMAPS)));
    let reference = json!({"resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1"});
    assert_eq!(event["objectRef"], reference);
    assert_eq!(event["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(event["requestObject"]["metadata"]["name"], "a");
    assert_eq!(event["responseObject"]["metadata"]["uid"], made.body["metadata"]["uid"]);
    assert!(event["responseObject"]["metadata"].get("managedFields").is_none());
    assert!(!made.body["metadata"]["managedFields"].is_null(), "only the record is without them");
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "allow");
    assert!(event["requestReceivedTimestamp"].as_str() <= event["stageTimestamp"].as_str());
}

#[tokio::test]
async fn a_secret_leaves_its_name_and_not_its_data() {
    let cluster = recorded().await;
    let secret =
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}, "stringData": {"a": "sesame"}});
    assert_eq!(cluster.post("/api/v1/namespaces/default/secrets", secret).await.status, 201);
    let events = events(&cluster, "admin").await;
    let event = events.last().unwrap();
    assert_eq!((&event["level"], &event["objectRef"]["name"]), (&json!("Metadata"), &json!("s")));
    let text = std::fs::read_to_string(cluster.app.config.data_dir.join("audit.log")).unwrap();
    assert!(!text.contains("sesame") && !text.contains("c2VzYW1l"));
}

#[tokio::test]
async fn refusals_are_recorded_with_their_words() {
    let cluster = recorded().await;
    let refused = cluster.send("jane", Method::GET, "/api/v1/nodes", "application/json", Value::Null).await;
    assert_eq!(refused.status, 403);
    let events = events(&cluster, "jane").await;
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(
        (&event["responseStatus"]["code"], &event["responseStatus"]["reason"]),
        (&json!(403), &json!("Forbidden"))
    );
    assert_eq!(event["responseStatus"]["message"], refused.body["message"]);
}

#[tokio::test]
async fn who_cannot_say_who_they_are_is_recorded_too() {
    let cluster = recorded().await;
    let request = Request::builder().uri("/api/v1/nodes").header("authorization", "Bearer wrong");
    let answer = cluster.app.router().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 401);
    let events = events(&cluster, "").await;
    assert_eq!(events.last().unwrap()["responseStatus"]["code"], 401);
    let text = std::fs::read_to_string(cluster.app.config.data_dir.join("audit.log")).unwrap();
    assert!(!text.contains("wrong"), "a credential, even a bad one, is nobody's business");
}

#[tokio::test]
async fn both_who_asks_and_as_whom_are_recorded_and_the_binding_that_allowed_it() {
    let cluster = recorded().await;
    let headers = [("impersonate-user", "system:kube-scheduler")];
    let answer = cluster.request("admin", Method::GET, "/api/v1/pods", &headers, Body::empty()).await;
    assert_eq!(answer.status(), 200);
    let events = events(&cluster, "admin").await;
    let event = events.last().unwrap();
    assert_eq!(event["impersonatedUser"]["username"], "system:kube-scheduler");
    let reason = "RBAC: allowed by ClusterRoleBinding \"system:kube-scheduler\" of ClusterRole \
                  \"system:kube-scheduler\" to User \"system:kube-scheduler\"";
    assert_eq!(event["annotations"]["authorization.k8s.io/reason"], reason);
}

#[tokio::test]
async fn a_watch_is_recorded_when_it_starts_and_when_it_ends() {
    let cluster = recorded().await;
    let path = "/api/v1/namespaces/default/configmaps?watch=true";
    let answer = cluster.request("admin", Method::GET, path, &[], Body::empty()).await;
    let stages = async || {
        let events = events(&cluster, "admin").await;
        let of_it = events.iter().filter(|event| event["verb"] == "watch");
        of_it.map(|event| event["stage"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(stages().await, ["ResponseStarted"]);
    drop(answer);
    assert_eq!(stages().await, ["ResponseStarted", "ResponseComplete"]);
}

#[tokio::test]
async fn a_policy_that_is_wrong_keeps_the_server_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let open = |policy, log: &Path| {
        let limits = Limits { size: 1 << 20, files: 0, days: 0 };
        let error =
            crate::audit::Audit::open(&Options { policy, log: log.to_owned(), limits }, Default::default()).err();
        format!("{:#}", error.unwrap())
    };
    let bad = open(write("bad.yaml", "kind: Policy\n"), &directory.path().join("audit.log"));
    assert!(bad.contains("bad.yaml"), "{bad}");
    let nowhere = open(write("good.yaml", POLICY), &directory.path().join("no/such/audit.log"));
    assert!(nowhere.contains("no/such/audit.log"), "{nowhere}");
}
