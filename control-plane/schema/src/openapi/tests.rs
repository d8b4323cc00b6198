use super::*;
use crate::discovery::SubRow;

fn rows() -> Vec<Row<'static>> {
    let deployments = Row {
        group: "apps",
        version: "v1",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short: &["deploy"],
        categories: &["all"],
        namespaced: true,
        verbs: &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        subresources: vec![SubRow {
            name: "scale",
            kind: ("autoscaling", "v1", "Scale"),
            verbs: &["get", "patch", "update"],
        }],
    };
    let nodes =
        Row { group: "", kind: "Node", plural: "nodes", singular: "node", namespaced: false, ..deployments.clone() };
    vec![nodes, deployments]
}

fn v3_apps() -> Value {
    serde_json::from_slice(&v3(&rows(), "apps", "v1").expect("it is served").bytes).expect("it is JSON")
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    for document in [v3_apps(), serde_json::from_slice(&v2(&rows()).bytes).expect("it is JSON")] {
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100);
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("references are local");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}

#[test]
fn paths_carry_action_and_kind() {
    let document = v3_apps();
    let item = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
    assert_eq!(item["patch"]["x-kubernetes-action"], "patch");
    assert_eq!(item["patch"]["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    let names: Vec<&str> =
        item["patch"]["parameters"].as_array().expect("a list").iter().filter_map(|one| one["name"].as_str()).collect();
    assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"));
    let scale = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["get"];
    assert_eq!(scale["operationId"], "readAppsV1NamespacedDeploymentScale");
    assert!(document["paths"].get("/apis/apps/v1/deployments").is_some());
}

#[test]
fn schemas_carry_texts_kinds_and_merge_keys() {
    let schemas = &v3_apps()["components"]["schemas"];
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
    assert!(deployment["properties"]["spec"]["allOf"][0]["$ref"].is_string());
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-type"], "map");
    assert!(containers["description"].as_str().is_some_and(|text| text.contains("containers")));
    assert!(schemas.get("io.k8s.api.apps.v1.DeploymentList").is_some());
    assert!(schemas.get("io.k8s.api.core.v1.Node").is_none());
}

#[test]
fn the_index_names_documents_by_their_hash() {
    let index = index(&rows(), |group, version| v3(&rows(), group, version).map(|one| one.hash).unwrap_or_default());
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("a url");
    assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash=") && url.len() > 60);
    assert!(index["paths"].get("api/v1").is_some());
}
