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

/// The values of a message's field, read without the tables that wrote it.
fn field(mut bytes: &[u8], wanted: u64) -> Vec<&[u8]> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let (head, rest) = bytes.split_first().expect("a varint ends");
            *bytes = rest;
            number |= u64::from(head & 0x7f) << shift;
            if *head < 0x80 {
                break;
            }
        }
        number
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let length = varint(&mut bytes);
        if tag & 7 == 2 {
            let (value, rest) = bytes.split_at(usize::try_from(length).expect("it fits"));
            bytes = rest;
            found.extend((tag >> 3 == wanted).then_some(value));
        }
    }
    found
}

/// The value of the pair with this name among the pairs under a number.
fn pair<'a>(bytes: &'a [u8], number: u64, name: &str) -> &'a [u8] {
    let pair = field(bytes, number).into_iter().find(|pair| field(pair, 1) == [name.as_bytes()]);
    field(pair.unwrap_or_else(|| panic!("no {name}")), 2)[0]
}

#[test]
fn the_protobuf_document_says_what_the_json_one_says() {
    let document = v2_protobuf(&rows());
    let definitions = field(&document.bytes, 9)[0];
    let deployment = pair(definitions, 1, "io.k8s.api.apps.v1.Deployment");
    let kind: Value = serde_json::from_slice(field(pair(deployment, 31, "x-kubernetes-group-version-kind"), 2)[0])
        .expect("the extension is JSON");
    assert_eq!(kind, json!([{"group": "apps", "version": "v1", "kind": "Deployment"}]));
    let spec = pair(field(deployment, 25)[0], 1, "spec");
    assert_eq!(field(spec, 1), [b"#/definitions/io.k8s.api.apps.v1.DeploymentSpec"]);

    let containers = pair(field(pair(definitions, 1, "io.k8s.api.core.v1.PodSpec"), 25)[0], 1, "containers");
    assert_eq!(field(field(containers, 22)[0], 1), [b"array"]);
    let item = field(field(containers, 23)[0], 1)[0];
    assert_eq!(field(item, 1), [b"#/definitions/io.k8s.api.core.v1.Container"]);

    let path = pair(field(&document.bytes, 8)[0], 2, "/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
    let patch = field(path, 8)[0];
    assert_eq!(field(patch, 5), [b"patchAppsV1NamespacedDeployment"]);
    let parameters: Vec<&[u8]> = field(patch, 8).into_iter().map(|one| field(one, 1)[0]).collect();
    let query = |one: &&[u8]| field(field(field(one, 2).first()?, 3).first()?, 4).first().map(|name| name.to_vec());
    assert!(parameters.iter().filter_map(query).any(|name| name == b"fieldValidation"));
    assert!(parameters.iter().any(|one| field(one, 1).first().is_some_and(|body| field(body, 2) == [b"body"])));
}
