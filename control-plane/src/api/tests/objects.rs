//! Objects made, read in pages, changed and named.

use super::*;

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
