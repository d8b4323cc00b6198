//! How objects go: finalizers, preconditions, collections, pods, namespaces.

use super::*;

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
