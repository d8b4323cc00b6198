//! What a watch tells, and in what shape.

use super::*;

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
