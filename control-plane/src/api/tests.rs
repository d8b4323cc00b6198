//! The handlers' behaviour, through the router, with real authentication, authorization, admission and store.

mod audit;
mod certificates;
mod joining;
mod node_restriction;

use std::sync::Arc;

use axum::body::Body;
use futures::StreamExt;
use http::{Method, Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::App;
use crate::{
    Config,
    auth::{MASTERS, User, authenticate::InProcess},
    bootstrap,
    pki::{Authority, Pki, apiserver_names},
};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
const MERGE: &str = "application/merge-patch+json";

/// A server without a socket.
pub struct Cluster {
    pub app: Arc<App>,
    _directory: TempDir,
}

/// One answer, read whole.
pub struct Answer {
    pub status: u16,
    pub warning: Option<String>,
    pub body: Value,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// With another configuration than the usual one.
    async fn with(adjust: impl FnOnce(&mut Config)) -> Self {
        Self::with_authority(adjust).await.0
    }

    /// With the controllers beside it, which end with the test's runtime.
    async fn start_with_controllers() -> Self {
        let (cluster, authority) = Self::with_authority(|_| ()).await;
        let (app, config) = (cluster.app.clone(), cluster.app.config.clone());
        tokio::spawn(async move { crate::run_controllers(&app, &config, authority, CancellationToken::new()).await });
        cluster
    }

    async fn with_authority(adjust: impl FnOnce(&mut Config)) -> (Self, Authority) {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::new([192, 0, 2, 10].into(), directory.path());
        adjust(&mut config);
        let names = apiserver_names("cluster.local", config.kubernetes_address(), config.advertise, &[]);
        let pki = Pki::open(&directory.path().join("pki"), &names).unwrap();
        let store = Arc::new(leme_store::embedded::Embedded::open(directory.path().join("state.db")).unwrap());
        let app = App::start(config, &pki, store).await.unwrap();
        bootstrap::run(&app, 6443).await.unwrap();
        let cluster = Self { app, _directory: directory };
        let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}});
        assert_eq!(cluster.post("/api/v1/namespaces/default/serviceaccounts", account).await.status, 201);
        (cluster, pki.cluster)
    }

    /// A request as somebody; the admin's groups come with the name.
    pub async fn request(
        &self,
        user: &str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> http::Response<Body> {
        let groups = match user {
            "admin" => vec![MASTERS.to_owned()],
            name if name.starts_with("system:node:") => vec!["system:nodes".to_owned()],
            _ => Vec::new(),
        };
        let mut request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        for (name, value) in headers {
            request.headers_mut().append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        request.extensions_mut().insert(InProcess(Arc::new(User::authenticated(user, groups))));
        self.app.router().oneshot(request).await.unwrap()
    }

    pub async fn send(&self, user: &str, method: Method, path: &str, media: &str, body: Value) -> Answer {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        Answer::read(self.request(user, method, path, &[("content-type", media)], body).await).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("admin", Method::POST, path, "application/json", body).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.send("admin", Method::PUT, path, "application/json", body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("admin", Method::GET, path, "application/json", Value::Null).await
    }

    async fn delete(&self, path: &str, options: Value) -> Answer {
        self.send("admin", Method::DELETE, path, "application/json", options).await
    }

    async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send("admin", Method::PATCH, path, MERGE, body).await
    }

    async fn configmap(&self, name: &str) -> Value {
        let answer = self.post(CONFIGMAPS, configmap(name)).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body
    }

    /// An open watch; [`Events::next`] yields its events.
    async fn watch(&self, path: &str) -> Events {
        let response = self.request("admin", Method::GET, path, &[], Body::empty()).await;
        assert_eq!(response.status(), 200);
        Events { body: response.into_body(), rest: Vec::new() }
    }
}

impl Answer {
    pub async fn read(response: http::Response<Body>) -> Self {
        let status = response.status().as_u16();
        let warning = response.headers().get(header::WARNING).map(|v| v.to_str().unwrap().to_owned());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        Self { status, warning, body: serde_json::from_slice(&bytes).unwrap_or_else(|_| text()) }
    }

    fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    fn names(&self) -> Vec<&str> {
        self.body["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].as_str().unwrap()).collect()
    }
}

struct Events {
    body: Body,
    rest: Vec<u8>,
}

impl Events {
    /// The next event: its type and object; `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let mut event: Value = serde_json::from_slice(&line).unwrap();
                return Some((event["type"].as_str().unwrap().to_owned(), event["object"].take()));
            }
            let frame = (&mut self.body).into_data_stream().next().await?.unwrap();
            self.rest.extend_from_slice(&frame);
        }
    }

    async fn expect(&mut self, kind: &str) -> Value {
        let (found, object) = self.next().await.unwrap();
        assert_eq!(found, kind, "{object}");
        object
    }
}

fn configmap(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"a": "b"}})
}

fn pod(name: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_object_is_created_read_changed_and_deleted() {
    let cluster = Cluster::start().await;
    let created = cluster.configmap("x").await;
    let path = format!("{CONFIGMAPS}/x");
    assert_eq!(cluster.get(&path).await.body, created);
    let mut changed = created.clone();
    changed["data"]["a"] = "c".into();
    let answer = cluster.put(&path, changed).await;
    assert_eq!(answer.status, 200);
    assert!(version(&answer.body) > version(&created));
    assert_eq!(cluster.delete(&path, Value::Null).await.status, 200);
    assert_eq!(cluster.get(&path).await.message(), "configmaps \"x\" not found");
}

#[tokio::test]
async fn a_change_that_changes_nothing_keeps_the_version() {
    let cluster = Cluster::start().await;
    let created = cluster.configmap("x").await;
    let answer = cluster.patch(&format!("{CONFIGMAPS}/x"), json!({"data": {"a": "b"}})).await;
    assert_eq!(version(&answer.body), version(&created));
}

#[tokio::test]
async fn a_stale_update_is_a_conflict_and_a_patch_is_not() {
    let cluster = Cluster::start().await;
    let created = cluster.configmap("x").await;
    let path = format!("{CONFIGMAPS}/x");
    assert_eq!(cluster.patch(&path, json!({"data": {"b": "1"}})).await.status, 200);
    let answer = cluster.put(&path, created.clone()).await;
    assert_eq!((answer.status, answer.body["reason"].as_str().unwrap()), (409, "Conflict"));
    let stale = json!({"metadata": {"resourceVersion": created["metadata"]["resourceVersion"]}, "data": {"c": "1"}});
    assert_eq!(cluster.patch(&path, stale).await.status, 409);
}

#[tokio::test]
async fn concurrent_patches_lose_nothing() {
    let cluster = Arc::new(Cluster::start().await);
    cluster.configmap("x").await;
    let writers = (0..4).map(|n| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let answer = cluster.patch(&format!("{CONFIGMAPS}/x"), json!({"data": {format!("k{n}"): "1"}})).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
        })
    });
    futures::future::join_all(writers).await.into_iter().for_each(|r| r.unwrap());
    let data = cluster.get(&format!("{CONFIGMAPS}/x")).await.body["data"].clone();
    assert_eq!(data.as_object().unwrap().len(), 5);
}

#[tokio::test]
async fn pages_show_one_revision_whatever_is_written_between_them() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        cluster.configmap(name).await;
    }
    let first = cluster.get(&format!("{CONFIGMAPS}?limit=2")).await;
    assert_eq!(first.names(), ["a", "b"]);
    assert_eq!(first.body["metadata"]["remainingItemCount"], 3);
    cluster.configmap("cc").await;
    cluster.delete(&format!("{CONFIGMAPS}/d"), Value::Null).await;
    let token = first.body["metadata"]["continue"].as_str().unwrap();
    let second = cluster.get(&format!("{CONFIGMAPS}?limit=2&continue={token}")).await;
    assert_eq!(second.names(), ["c", "d"]);
    assert_eq!(second.body["metadata"]["resourceVersion"], first.body["metadata"]["resourceVersion"]);
    let token = second.body["metadata"]["continue"].as_str().unwrap();
    let third = cluster.get(&format!("{CONFIGMAPS}?limit=2&continue={token}")).await;
    assert_eq!(third.names(), ["e"]);
    assert!(third.body["metadata"].get("continue").is_none());
}

#[tokio::test]
async fn an_exact_revision_is_what_was_there() {
    let cluster = Cluster::start().await;
    let a = cluster.configmap("a").await;
    cluster.configmap("b").await;
    let query = format!("resourceVersion={}&resourceVersionMatch=Exact", version(&a));
    assert_eq!(cluster.get(&format!("{CONFIGMAPS}?{query}")).await.names(), ["a"]);
}

#[tokio::test]
async fn a_revision_of_another_kind_is_awaited_without_a_write_to_this_one() {
    let cluster = Cluster::start().await;
    let other = cluster.configmap("a").await;
    let answer = cluster.get(&format!("/api/v1/namespaces/default/secrets?resourceVersion={}", version(&other))).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_watch_tells_every_change_from_its_revision_on() {
    let cluster = Cluster::start().await;
    let start = version(&cluster.configmap("a").await);
    cluster.patch(&format!("{CONFIGMAPS}/a"), json!({"data": {"n": "1"}})).await;
    let mut events = cluster.watch(&format!("{CONFIGMAPS}?watch=1&resourceVersion={start}")).await;
    assert_eq!(events.expect("MODIFIED").await["data"]["n"], "1");
    let b = cluster.configmap("b").await;
    assert_eq!(events.expect("ADDED").await, b);
    cluster.delete(&format!("{CONFIGMAPS}/b"), Value::Null).await;
    assert!(version(&events.expect("DELETED").await) > version(&b));
}

#[tokio::test]
async fn objects_come_into_and_go_out_of_a_selection() {
    let cluster = Cluster::start().await;
    let start = version(&cluster.configmap("a").await);
    let query = format!("watch=1&resourceVersion={start}&labelSelector=color%3Dred");
    let mut events = cluster.watch(&format!("{CONFIGMAPS}?{query}")).await;
    let path = format!("{CONFIGMAPS}/a");
    cluster.patch(&path, json!({"metadata": {"labels": {"color": "red"}}})).await;
    events.expect("ADDED").await;
    cluster.patch(&path, json!({"data": {"x": "1"}})).await;
    events.expect("MODIFIED").await;
    let left = cluster.patch(&path, json!({"metadata": {"labels": {"color": "blue"}}})).await.body;
    let gone = events.expect("DELETED").await;
    assert_eq!(gone["metadata"]["labels"]["color"], "red");
    assert_eq!(version(&gone), version(&left));
}

#[tokio::test]
async fn a_streamed_list_ends_with_its_bookmark() {
    let cluster = Cluster::start().await;
    cluster.configmap("a").await;
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = cluster.watch(&format!("{CONFIGMAPS}?{query}")).await;
    assert_eq!(events.expect("ADDED").await["metadata"]["name"], "a");
    let end = events.expect("BOOKMARK").await;
    assert_eq!(end["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    cluster.configmap("b").await;
    events.expect("ADDED").await;
}

#[tokio::test]
async fn a_watch_in_tables_tells_its_columns_once() {
    let cluster = Cluster::start().await;
    let start = version(&cluster.configmap("a").await);
    let headers = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let path = format!("{CONFIGMAPS}?watch=1&resourceVersion={start}");
    let response = cluster.request("admin", Method::GET, &path, &headers, Body::empty()).await;
    let mut events = Events { body: response.into_body(), rest: Vec::new() };
    cluster.configmap("b").await;
    cluster.configmap("c").await;
    let first = events.expect("ADDED").await;
    assert_eq!((first["kind"].as_str(), first["columnDefinitions"].is_array()), (Some("Table"), true));
    assert_eq!(first["rows"][0]["cells"][0], "b");
    assert!(events.expect("ADDED").await["columnDefinitions"].is_null());
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_over() {
    let cluster = Cluster::start().await;
    let mut events = cluster.watch(&format!("{CONFIGMAPS}?watch=1&timeoutSeconds=1")).await;
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let cluster = Cluster::start().await;
    let mut object = configmap("x");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.post(CONFIGMAPS, object).await;
    let path = format!("{CONFIGMAPS}/x");
    let marked = cluster.delete(&path, Value::Null).await;
    assert!(marked.body["metadata"]["deletionTimestamp"].is_string(), "{}", marked.body);
    assert_eq!(cluster.get(&path).await.status, 200);
    assert_eq!(cluster.patch(&path, json!({"metadata": {"finalizers": null}})).await.status, 200);
    assert_eq!(cluster.get(&path).await.status, 404);
}

#[tokio::test]
async fn a_foreground_deletion_waits_for_the_collector() {
    let cluster = Cluster::start().await;
    cluster.configmap("x").await;
    let marked = cluster.delete(&format!("{CONFIGMAPS}/x"), json!({"propagationPolicy": "Foreground"})).await;
    assert_eq!(marked.body["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test]
async fn deletion_checks_its_preconditions() {
    let cluster = Cluster::start().await;
    cluster.configmap("x").await;
    let path = format!("{CONFIGMAPS}/x");
    assert_eq!(cluster.delete(&path, json!({"preconditions": {"uid": "other"}})).await.status, 409);
    assert_eq!(cluster.delete(&path, json!({"preconditions": {"resourceVersion": "1"}})).await.status, 409);
    assert_eq!(cluster.get(&path).await.status, 200);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let cluster = Cluster::start().await;
    for (name, color) in [("a", "red"), ("b", "blue")] {
        let mut object = configmap(name);
        object["metadata"]["labels"] = json!({"color": color});
        cluster.post(CONFIGMAPS, object).await;
    }
    assert_eq!(cluster.delete(&format!("{CONFIGMAPS}?labelSelector=color%3Dred"), Value::Null).await.status, 200);
    assert_eq!(cluster.get(CONFIGMAPS).await.names(), ["b"]);
}

#[tokio::test]
async fn a_scheduled_pod_is_deleted_gracefully_and_then_for_good() {
    let cluster = Cluster::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    cluster.post(pods, pod("p")).await;
    let binding = json!({"kind": "Binding", "apiVersion": "v1", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(cluster.post(&format!("{pods}/p/binding"), binding).await.status, 201);
    let marked = cluster.delete(&format!("{pods}/p"), Value::Null).await;
    assert_eq!(marked.body["metadata"]["deletionGracePeriodSeconds"], 30, "{}", marked.body);
    assert_eq!(cluster.get(&format!("{pods}/p")).await.status, 200);
    cluster.delete(&format!("{pods}/p"), json!({"gracePeriodSeconds": 0})).await;
    assert_eq!(cluster.get(&format!("{pods}/p")).await.status, 404);
}

#[tokio::test]
async fn a_terminating_namespace_takes_nothing_new_and_goes_when_finalized() {
    let cluster = Cluster::start().await;
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "team"}});
    cluster.post("/api/v1/namespaces", namespace).await;
    let marked = cluster.delete("/api/v1/namespaces/team", Value::Null).await.body;
    assert_eq!(marked["status"]["phase"], "Terminating");
    let refused = cluster.post("/api/v1/namespaces/team/configmaps", configmap("x")).await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut finalized = cluster.get("/api/v1/namespaces/team").await.body;
    finalized["spec"]["finalizers"] = json!([]);
    assert_eq!(cluster.put("/api/v1/namespaces/team/finalize", finalized).await.status, 200);
    assert_eq!(cluster.get("/api/v1/namespaces/team").await.status, 404);
    assert_eq!(cluster.delete("/api/v1/namespaces/default", Value::Null).await.status, 403);
}

#[tokio::test]
async fn a_dry_run_answers_and_writes_nothing() {
    let cluster = Cluster::start().await;
    let answer = cluster.post(&format!("{CONFIGMAPS}?dryRun=All"), configmap("x")).await;
    assert_eq!(answer.status, 201);
    assert!(answer.body["metadata"].get("resourceVersion").is_none());
    assert_eq!(cluster.get(&format!("{CONFIGMAPS}/x")).await.status, 404);
    let created = cluster.configmap("x").await;
    cluster
        .send("admin", Method::PATCH, &format!("{CONFIGMAPS}/x?dryRun=All"), MERGE, json!({"data": {"a": "z"}}))
        .await;
    cluster.delete(&format!("{CONFIGMAPS}/x?dryRun=All"), Value::Null).await;
    assert_eq!(cluster.get(&format!("{CONFIGMAPS}/x")).await.body, created);
}

const APPLY: &str = "application/apply-patch+yaml";

fn owners(object: &Value) -> Vec<(&str, &str, &Value)> {
    let entries = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut found = Vec::new();
    for entry in entries {
        let (manager, subresource) = (entry["manager"].as_str().unwrap(), entry["subresource"].as_str());
        found.push((manager, subresource.unwrap_or_default(), &entry["fieldsV1"]));
    }
    found
}

#[tokio::test]
async fn what_is_applied_is_owned_contested_taken_and_given_up() {
    let cluster = Cluster::start().await;
    let applied =
        |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": data});
    let apply = async |who: &str, more: &str, data: Value| {
        let path = format!("{CONFIGMAPS}/x?fieldManager={who}{more}");
        cluster.send("admin", Method::PATCH, &path, APPLY, applied(data)).await
    };
    assert_eq!(apply("alice", "&dryRun=All", json!({"a": "1"})).await.status, 201);
    let created = apply("alice", "", json!({"a": "1", "b": "2"})).await;
    assert_eq!(created.status, 201, "the dry run wrote nothing");
    assert_eq!(owners(&created.body), [("alice", "", &json!({"f:data": {"f:a": {}, "f:b": {}}}))]);
    let again = apply("alice", "", json!({"a": "1", "b": "2"})).await;
    assert_eq!((again.status, &again.body), (200, &created.body));
    let refused = apply("bob", "", json!({"a": "9"})).await;
    assert_eq!(
        (refused.status, refused.message()),
        (409, "Apply failed with 1 conflict: conflict with \"alice\": .data.a")
    );
    assert_eq!(refused.body["details"]["causes"][0]["reason"], "FieldManagerConflict");
    let forced = apply("bob", "&force=true", json!({"a": "9"})).await;
    assert_eq!(forced.body["data"], json!({"a": "9", "b": "2"}));
    let left = apply("alice", "", json!({})).await;
    assert_eq!(left.body["data"], json!({"a": "9"}));
    assert_eq!(apply("", "", json!({})).await.status, 422, "a manager is required");
}

#[tokio::test]
async fn who_applies_what_is_not_there_may_create() {
    let cluster = Cluster::start().await;
    let base = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let api = "rbac.authorization.k8s.io";
    let version = format!("{api}/v1");
    let role = json!({
        "kind": "Role", "apiVersion": version, "metadata": {"name": "patcher"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}],
    });
    assert_eq!(cluster.post(&format!("{base}/roles"), role).await.status, 201);
    let binding = json!({
        "kind": "RoleBinding", "apiVersion": version, "metadata": {"name": "jane"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": api}],
        "roleRef": {"kind": "Role", "name": "patcher", "apiGroup": api},
    });
    assert_eq!(cluster.post(&format!("{base}/rolebindings"), binding).await.status, 201);
    let path = format!("{CONFIGMAPS}/x?fieldManager=jane&force=true");
    let apply = || cluster.send("jane", Method::PATCH, &path, APPLY, configmap("x"));
    let refused = apply().await;
    assert_eq!(refused.status, 403);
    assert!(refused.message().contains("cannot create resource \"configmaps\""), "{}", refused.message());
    cluster.configmap("x").await;
    assert_eq!(apply().await.status, 200);
}

#[tokio::test]
async fn an_apply_says_what_is_wrong_with_it() {
    let cluster = Cluster::start().await;
    let path = format!("{CONFIGMAPS}/x?fieldManager=alice");
    let apply = |body: Value| cluster.send("admin", Method::PATCH, &path, APPLY, body);
    let mut unknown = configmap("x");
    unknown["dta"] = json!({});
    let words = "failed to create typed patch object (/x; /v1, Kind=ConfigMap): .dta: field not declared in schema";
    assert_eq!(apply(unknown).await.message(), words);
    let other = apply(configmap("y")).await;
    assert_eq!(other.message(), "the name of the object (y) does not match the name on the URL (x)");
    let mut owned = configmap("x");
    owned["metadata"]["managedFields"] = json!([{"manager": "m"}]);
    assert_eq!(apply(owned).await.message(), "metadata.managedFields must be nil");
    let long = cluster.patch(&format!("{CONFIGMAPS}/x?fieldManager={}", "m".repeat(129)), json!({})).await;
    assert_eq!((long.status, &long.body["details"]["causes"][0]["reason"]), (422, &json!("FieldValueTooLong")));
    let forced = cluster.patch(&format!("{path}&force=true"), json!({"data": {}})).await;
    let words = "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch";
    assert_eq!((forced.status, forced.message()), (422, words));
}

#[tokio::test]
async fn every_write_says_who_owns_what() {
    let cluster = Cluster::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let body = json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let headers = [("content-type", "application/json"), ("user-agent", "kubectl-create/v1.36")];
    let answer = cluster.request("admin", Method::POST, path, &headers, body.to_string()).await;
    let created = Answer::read(answer).await.body;
    assert_eq!(owners(&created)[0].0, "kubectl-create", "the first word of the user agent");
    assert!(owners(&created)[0].2["f:spec"]["f:replicas"].is_object(), "defaults belong to who let them be set");

    let labels = json!({"metadata": {"labels": {"x": "y"}}});
    let patched = cluster.patch(&format!("{path}/d?fieldManager=painter"), labels).await.body;
    let painted = json!({"f:metadata": {"f:labels": {".": {}, "f:x": {}}}});
    assert!(owners(&patched).contains(&("painter", "", &painted)), "{patched}");
    let scale = json!({"spec": {"replicas": 3}});
    assert_eq!(cluster.patch(&format!("{path}/d/scale?fieldManager=scaler"), scale).await.status, 200);
    let status = json!({"status": {"replicas": 3}});
    let reported = cluster.patch(&format!("{path}/d/status?fieldManager=controller"), status).await.body;
    assert!(owners(&reported).contains(&("scaler", "scale", &json!({"f:spec": {"f:replicas": {}}}))), "{reported}");
    assert!(
        owners(&reported).contains(&("controller", "status", &json!({"f:status": {"f:replicas": {}}}))),
        "{reported}"
    );

    let mut silent = reported.clone();
    silent["metadata"].as_object_mut().unwrap().remove("managedFields");
    silent.as_object_mut().unwrap().remove("status");
    let kept = cluster.put(&format!("{path}/d"), silent).await.body;
    assert_eq!(kept, reported, "who sends no owners takes nothing from them");
    let ended = cluster.patch(&format!("{path}/d"), json!({"metadata": {"managedFields": [{}]}})).await.body;
    assert_eq!(owners(&ended), []);
}

#[tokio::test]
async fn a_replica_count_is_applied_through_the_scale() {
    let cluster = Cluster::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let body = json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    assert_eq!(cluster.post(path, body).await.status, 201);
    let scale =
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "d"}, "spec": {"replicas": 4}});
    let apply = |query: &str| format!("{path}/d/scale?fieldManager=hpa{query}");
    assert_eq!(cluster.send("admin", Method::PATCH, &apply(""), APPLY, scale.clone()).await.status, 409);
    let forced = cluster.send("admin", Method::PATCH, &apply("&force=true"), APPLY, scale).await;
    assert_eq!((forced.status, &forced.body["spec"]["replicas"]), (200, &json!(4)));
}

#[tokio::test]
async fn the_second_openapi_is_served_in_protobuf_and_tagged() {
    let cluster = Cluster::start().await;
    let asked = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let get = |headers: Vec<(&'static str, String)>| {
        let cluster = &cluster;
        async move {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
            cluster.request("admin", Method::GET, "/openapi/v2", &headers, Body::empty()).await
        }
    };
    let answer = get(vec![("accept", asked.to_owned())]).await;
    let media = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    assert_eq!((answer.status().as_u16(), answer.headers()[header::CONTENT_TYPE].to_str().unwrap()), (200, media));
    let tag = answer.headers()[header::ETAG].to_str().unwrap().to_owned();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.starts_with(b"\x4a"), "the definitions come first");
    let again = get(vec![("accept", asked.to_owned()), ("if-none-match", tag)]).await;
    assert_eq!(again.status(), 304);
    assert_eq!(get(vec![("accept", "text/csv".to_owned())]).await.status(), 406);
}

#[tokio::test]
async fn too_large_a_body_is_refused() {
    let cluster = Cluster::start().await;
    let mut object = configmap("x");
    object["data"]["big"] = "x".repeat(4 * 1024 * 1024).into();
    assert_eq!(cluster.post(CONFIGMAPS, object).await.status, 413);
}

#[tokio::test]
async fn nobody_without_a_grant_gets_anything_and_roles_take_effect_at_once() {
    let cluster = Cluster::start().await;
    let list = || cluster.send("jane", Method::GET, CONFIGMAPS, "", Value::Null);
    let refused = list().await;
    assert_eq!(refused.status, 403);
    let words = "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"";
    assert_eq!(refused.message(), words);
    let base = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let binding = json!({
        "kind": "RoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "jane"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"},
    });
    assert_eq!(cluster.post(&format!("{base}/rolebindings"), binding).await.status, 201);
    assert_eq!(list().await.status, 200);
    assert_eq!(cluster.send("jane", Method::GET, "/api/v1/configmaps", "", Value::Null).await.status, 403);
    cluster.delete(&format!("{base}/rolebindings/jane"), Value::Null).await;
    assert_eq!(list().await.status, 403);
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_hold() {
    let cluster = Cluster::start().await;
    let base = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = |name: &str, verbs: Value, groups: Value, resources: Value| {
        json!({
            "kind": "Role", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name},
            "rules": [{"verbs": verbs, "apiGroups": groups, "resources": resources}],
        })
    };
    let manage = role("manage", json!(["*"]), json!(["rbac.authorization.k8s.io"]), json!(["roles"]));
    // `*` holds `escalate`, too: name the verbs.
    let manage = {
        let mut r = manage;
        r["rules"][0]["verbs"] = json!(["create", "get"]);
        r
    };
    cluster.post(&format!("{base}/roles"), manage).await;
    let binding = json!({
        "kind": "RoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "m"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "Role", "name": "manage", "apiGroup": "rbac.authorization.k8s.io"},
    });
    assert_eq!(cluster.post(&format!("{base}/rolebindings"), binding).await.status, 201);
    let create = |body| {
        cluster.send(
            "jane",
            Method::POST,
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
            "application/json",
            body,
        )
    };
    let more = role("more", json!(["get"]), json!([""]), json!(["secrets"]));
    let refused = create(more).await;
    assert_eq!(refused.status, 403);
    assert!(
        refused.message().contains("is attempting to grant RBAC permissions not currently held"),
        "{}",
        refused.message()
    );
    let same = role("same", json!(["get"]), json!(["rbac.authorization.k8s.io"]), json!(["roles"]));
    assert_eq!(create(same).await.status, 201);
}

#[tokio::test]
async fn an_agent_touches_its_own_node_and_what_its_pods_use() {
    let cluster = Cluster::start().await;
    let agent = "system:node:n1";
    let node = |name: &str| json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}});
    let send = |method, path: &'static str, body| cluster.send(agent, method, path, "application/json", body);
    assert_eq!(send(Method::POST, "/api/v1/nodes", node("n1")).await.status, 201);
    assert_eq!(send(Method::POST, "/api/v1/nodes", node("n2")).await.status, 403);
    for name in ["used", "other"] {
        let secret = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": name}});
        cluster.post("/api/v1/namespaces/default/secrets", secret).await;
    }
    let mut bound = pod("p");
    bound["spec"]["nodeName"] = "n1".into();
    bound["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "used"}}]);
    assert_eq!(cluster.post("/api/v1/namespaces/default/pods", bound).await.status, 201);
    assert_eq!(send(Method::GET, "/api/v1/namespaces/default/secrets/used", Value::Null).await.status, 200);
    assert_eq!(send(Method::GET, "/api/v1/namespaces/default/secrets/other", Value::Null).await.status, 403);
    assert_eq!(send(Method::GET, "/api/v1/namespaces/default/secrets", Value::Null).await.status, 403);
    let watched = "/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Dused";
    assert_eq!(send(Method::GET, watched, Value::Null).await.status, 200);
    assert_eq!(send(Method::GET, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", Value::Null).await.status, 200);
}

#[tokio::test]
async fn a_token_lives_as_long_as_what_it_is_bound_to() {
    let cluster = Cluster::start().await;
    cluster.post("/api/v1/namespaces/default/pods", pod("p")).await;
    let request = json!({
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "spec": {"audiences": [], "expirationSeconds": 600, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}},
    });
    let issued = cluster.post("/api/v1/namespaces/default/serviceaccounts/default/token", request).await;
    assert_eq!(issued.status, 201, "{}", issued.body);
    let token = issued.body["status"]["token"].clone();
    let review = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {"token": token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let status = cluster.post(path, review.clone()).await.body["status"].clone();
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:default");
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    cluster.delete("/api/v1/namespaces/default/pods/p", Value::Null).await;
    let status = cluster.post(path, review).await.body["status"].clone();
    assert!(status["authenticated"] != true && status["error"].is_string(), "{status}");
}

#[tokio::test]
async fn generated_names_keep_their_prefix_and_differ() {
    let cluster = Cluster::start().await;
    let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"generateName": "x-"}});
    let mut names = Vec::new();
    for _ in 0..3 {
        let answer = cluster.post(CONFIGMAPS, object.clone()).await;
        names.push(answer.body["metadata"]["name"].as_str().unwrap().to_owned());
    }
    names.dedup();
    assert_eq!(names.len(), 3);
    assert!(names.iter().all(|name| name.starts_with("x-") && name.len() == 7));
}

#[tokio::test]
async fn impersonation_takes_a_grant() {
    let cluster = Cluster::start().await;
    let headers = [("impersonate-user", "jane")];
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let body =
        || Body::from(json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}).to_string());
    let answer = Answer::read(cluster.request("admin", Method::POST, path, &headers, body()).await).await;
    assert_eq!(answer.body["status"]["userInfo"]["username"], "jane", "{}", answer.body);
    let answer = Answer::read(cluster.request("bob", Method::POST, path, &headers, body()).await).await;
    assert_eq!(answer.status, 403);
}

#[tokio::test]
async fn the_services_of_every_cluster_are_there() {
    let cluster = Cluster::start().await;
    let service = cluster.get("/api/v1/namespaces/default/services/kubernetes").await.body;
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let slice = cluster.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await.body;
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.10"]));
    let dns = cluster.get("/api/v1/namespaces/kube-system/services/kube-dns").await.body;
    assert_eq!(dns["spec"]["clusterIP"], "10.96.0.10");
}

#[tokio::test]
async fn health_needs_no_credentials_and_everything_else_does() {
    let cluster = Cluster::start().await;
    let anonymous = async |path: &str| {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        Answer::read(cluster.app.router().oneshot(request).await.unwrap()).await
    };
    for path in ["/healthz", "/livez?verbose", "/version"] {
        assert_eq!(anonymous(path).await.status, 200, "{path}");
    }
    assert_eq!(anonymous("/readyz").await.status, 500);
    cluster.app.set_ready();
    assert_eq!(anonymous("/readyz").await.status, 200);
    for path in ["/api", "/api/v1/pods", "/metrics"] {
        assert_eq!(anonymous(path).await.status, 401, "{path}");
    }
}

/// Every case of `tests/exchanges/*.json`, in order, on one fresh cluster per file.
#[tokio::test]
async fn the_recorded_exchanges_are_answered_so() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exchanges");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let cluster = Cluster::start().await;
        for case in &cases {
            exchange(&cluster, &file.display().to_string(), case).await;
        }
    }
}

async fn exchange(cluster: &Cluster, file: &str, case: &Value) {
    let of = |key: &str, default: &str| case[key].as_str().unwrap_or(default).to_owned();
    let name = format!("{file}: {}", of("name", "?"));
    let method = Method::from_bytes(of("method", "GET").as_bytes()).unwrap();
    let body = match &case["body"] {
        Value::Null => Body::empty(),
        Value::String(text) => Body::from(text.clone()),
        other => Body::from(other.to_string()),
    };
    let headers = [("content-type", of("type", "application/json")), ("accept", of("accept", "application/json"))];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let answer = cluster.request(&of("user", "admin"), method, &of("path", "/"), &headers, body).await;
    let answer = Answer::read(answer).await;
    assert_eq!(answer.status, case["status"].as_u64().unwrap() as u16, "{name}: {}", answer.body);
    if let Some(warning) = case["warning"].as_str() {
        assert_eq!(answer.warning.as_deref(), Some(warning), "{name}");
    }
    contains(&name, "", &case["want"], &answer.body);
}

/// Everything in `want` is in `got`; `null` means absent.
fn contains(name: &str, path: &str, want: &Value, got: &Value) {
    match want {
        Value::Object(fields) => {
            for (key, value) in fields {
                contains(name, &format!("{path}.{key}"), value, &got[key]);
            }
        }
        Value::Null if path.is_empty() => {}
        want => assert_eq!(want, got, "{name}: {path}"),
    }
}
