//! Discovery documents: which groups, versions and resources there are, in the old and the aggregated form.
//!
//! The API describes its resource table as [`Row`]s, once; everything here is a pure function of them.

use base64::Engine;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// One resource of one group and version.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// "" for the core group.
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub plural: &'a str,
    pub singular: &'a str,
    pub short: &'a [&'a str],
    pub categories: &'a [&'a str],
    pub namespaced: bool,
    pub verbs: &'a [&'a str],
    pub subresources: Vec<SubRow<'a>>,
}

/// One subresource: `status`, `scale`, `log`.
#[derive(Clone, Debug)]
pub struct SubRow<'a> {
    pub name: &'a str,
    /// Group, version and kind of what it takes and answers: `("autoscaling", "v1", "Scale")`.
    pub kind: (&'a str, &'a str, &'a str),
    pub verbs: &'a [&'a str],
}

impl Row<'_> {
    /// `v1`, `apps/v1`
    pub fn group_version(&self) -> String {
        group_version(self.group, self.version)
    }
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// `/api`. `address` is `host:port`.
pub fn api_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`
pub fn api_group_list(rows: &[Row<'_>]) -> Value {
    let groups: Vec<Value> =
        groups(rows).into_iter().filter(|name| !name.is_empty()).map(|name| group(rows, name)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`; `None` if there is none of that name.
pub fn api_group(rows: &[Row<'_>], name: &str) -> Option<Value> {
    let known = !name.is_empty() && rows.iter().any(|row| row.group == name);
    known.then(|| {
        let mut group = group(rows, name);
        group["kind"] = json!("APIGroup");
        group["apiVersion"] = json!("v1");
        group
    })
}

fn group(rows: &[Row<'_>], name: &str) -> Value {
    let versions: Vec<Value> = versions(rows, name)
        .into_iter()
        .map(|version| json!({"groupVersion": group_version(name, version), "version": version}))
        .collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions[0]})
}

/// `/api/v1`, `/apis/<group>/<version>`; `None` if nothing is served there.
pub fn api_resource_list(rows: &[Row<'_>], group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for row in rows.iter().filter(|row| row.group == group && row.version == version) {
        resources.push(resource(row));
        resources.extend(row.subresources.iter().map(|sub| subresource(row, sub)));
    }
    if resources.is_empty() {
        return None;
    }
    let mut list =
        json!({"kind": "APIResourceList", "groupVersion": group_version(group, version), "resources": resources});
    if !group.is_empty() {
        list["apiVersion"] = json!("v1");
    }
    Some(list)
}

fn resource(row: &Row<'_>) -> Value {
    let mut resource = json!({
        "name": row.plural,
        "singularName": row.singular,
        "namespaced": row.namespaced,
        "kind": row.kind,
        "verbs": row.verbs,
    });
    if !row.short.is_empty() {
        resource["shortNames"] = json!(row.short);
    }
    if !row.categories.is_empty() {
        resource["categories"] = json!(row.categories);
    }
    if row.verbs.contains(&"get") {
        resource["storageVersionHash"] = json!(storage_version_hash(row));
    }
    resource
}

fn subresource(row: &Row<'_>, sub: &SubRow<'_>) -> Value {
    let (group, version, kind) = sub.kind;
    let mut resource = json!({
        "name": format!("{}/{}", row.plural, sub.name),
        "singularName": "",
        "namespaced": row.namespaced,
        "kind": kind,
        "verbs": sub.verbs,
    });
    if (group, version) != (row.group, row.version) {
        resource["group"] = json!(group);
        resource["version"] = json!(version);
    }
    resource
}

/// Upstream's: the start of a hash of the stored kind's name.
fn storage_version_hash(row: &Row<'_>) -> String {
    let hash = Sha256::digest(format!("{}/{}/{}", row.group, row.version, row.kind));
    base64::engine::general_purpose::STANDARD.encode(&hash[..8])
}

/// Aggregated discovery, `apidiscovery.k8s.io/v2`: of the core group for `/api`, of all others for `/apis`.
pub fn aggregated(rows: &[Row<'_>], core: bool) -> Value {
    let items: Vec<Value> = groups(rows)
        .into_iter()
        .filter(|name| name.is_empty() == core)
        .map(|name| {
            let versions: Vec<Value> =
                versions(rows, name).into_iter().map(|version| aggregated_version(rows, name, version)).collect();
            let metadata = if core { json!({}) } else { json!({"name": name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_version(rows: &[Row<'_>], group: &str, version: &str) -> Value {
    let resources: Vec<Value> =
        rows.iter().filter(|row| row.group == group && row.version == version).map(aggregated_resource).collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated_resource(row: &Row<'_>) -> Value {
    let mut resource = Map::new();
    resource.insert("resource".to_owned(), json!(row.plural));
    resource.insert("responseKind".to_owned(), response_kind((row.group, row.version, row.kind)));
    resource.insert("scope".to_owned(), json!(if row.namespaced { "Namespaced" } else { "Cluster" }));
    resource.insert("singularResource".to_owned(), json!(row.singular));
    resource.insert("verbs".to_owned(), json!(row.verbs));
    for (key, names) in [("shortNames", row.short), ("categories", row.categories)] {
        if !names.is_empty() {
            resource.insert(key.to_owned(), json!(names));
        }
    }
    let subresources: Vec<Value> = row
        .subresources
        .iter()
        .map(|sub| json!({"subresource": sub.name, "responseKind": response_kind(sub.kind), "verbs": sub.verbs}))
        .collect();
    if !subresources.is_empty() {
        resource.insert("subresources".to_owned(), Value::Array(subresources));
    }
    Value::Object(resource)
}

fn response_kind((group, version, kind): (&str, &str, &str)) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// In the order of their first row.
fn groups<'a>(rows: &[Row<'a>]) -> Vec<&'a str> {
    let mut groups: Vec<&str> = Vec::new();
    for row in rows {
        if !groups.contains(&row.group) {
            groups.push(row.group);
        }
    }
    groups
}

/// The preferred one first: that of the group's first row.
fn versions<'a>(rows: &[Row<'a>], group: &str) -> Vec<&'a str> {
    let mut versions: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| row.group == group) {
        if !versions.contains(&row.version) {
            versions.push(row.version);
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row<'static>> {
        let pods = Row {
            group: "",
            version: "v1",
            kind: "Pod",
            plural: "pods",
            singular: "pod",
            short: &["po"],
            categories: &["all"],
            namespaced: true,
            verbs: &["create", "get", "list"],
            subresources: vec![SubRow { name: "eviction", kind: ("policy", "v1", "Eviction"), verbs: &["create"] }],
        };
        let autoscalers = |version| Row {
            group: "autoscaling",
            version,
            kind: "HorizontalPodAutoscaler",
            plural: "horizontalpodautoscalers",
            singular: "horizontalpodautoscaler",
            subresources: Vec::new(),
            ..pods.clone()
        };
        vec![pods.clone(), autoscalers("v2"), autoscalers("v1")]
    }

    #[test]
    fn the_first_version_of_a_group_is_preferred() {
        let group = api_group(&rows(), "autoscaling").expect("a group");
        assert_eq!(group["preferredVersion"]["groupVersion"], "autoscaling/v2");
        assert_eq!(group["versions"].as_array().map(Vec::len), Some(2));
        assert_eq!(api_group(&rows(), "nothing"), None);
        assert_eq!(api_group_list(&rows())["groups"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn subresources_of_another_group_say_so() {
        let list = api_resource_list(&rows(), "", "v1").expect("a version");
        assert_eq!(list["resources"][1]["name"], "pods/eviction");
        assert_eq!(list["resources"][1]["group"], "policy");
        assert_eq!(list["resources"][0]["storageVersionHash"], "xPOwRZ+Yhw8=");
    }

    #[test]
    fn aggregated_discovery_separates_the_core_group() {
        let core = aggregated(&rows(), true);
        assert_eq!(
            core["items"][0]["versions"][0]["resources"][0]["subresources"][0]["responseKind"]["kind"],
            "Eviction"
        );
        let others = aggregated(&rows(), false);
        assert_eq!(others["items"][0]["metadata"]["name"], "autoscaling");
        assert_eq!(others["items"][0]["versions"][1]["version"], "v1");
    }
}
