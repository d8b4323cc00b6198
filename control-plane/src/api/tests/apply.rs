//! Server-side apply, and who owns which field.

use super::*;

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
