//! The operations: which methods each path has, for which kind, with which parameters.

use serde_json::{Map, Value, json};

use super::Edition;
use crate::definition::definition_of;
use crate::discovery::{Row, SubRow};

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const PATCHES: [&str; 5] = [
    "application/apply-patch+cbor",
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// A verb of the table as an operation: HTTP method, `x-kubernetes-action`, start of the operation's id, where it stands.
struct Verb {
    name: &'static str,
    method: &'static str,
    action: &'static str,
    id: &'static str,
    on_item: bool,
    query: &'static [&'static str],
}

const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const DELETE: &[&str] = &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"];
const PATCH: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];

const VERBS: [Verb; 7] = [
    Verb { name: "list", method: "get", action: "list", id: "list", on_item: false, query: LIST },
    Verb { name: "create", method: "post", action: "post", id: "create", on_item: false, query: WRITE },
    Verb {
        name: "deletecollection",
        method: "delete",
        action: "deletecollection",
        id: "deleteCollection",
        on_item: false,
        query: DELETE,
    },
    Verb { name: "get", method: "get", action: "get", id: "read", on_item: true, query: &[] },
    Verb { name: "update", method: "put", action: "put", id: "replace", on_item: true, query: WRITE },
    Verb { name: "patch", method: "patch", action: "patch", id: "patch", on_item: true, query: PATCH },
    Verb { name: "delete", method: "delete", action: "delete", id: "delete", on_item: true, query: DELETE },
];

/// What an operation is about.
struct Subject<'a> {
    row: &'a Row<'a>,
    kind: (&'a str, &'a str, &'a str),
    sub: Option<&'a str>,
}

pub(super) fn of(rows: &[&Row<'_>], edition: Edition) -> Map<String, Value> {
    let mut paths = Map::new();
    for row in rows {
        let subject = Subject { row, kind: (row.group, row.version, row.kind), sub: None };
        for verb in VERBS.iter().filter(|verb| row.verbs.contains(&verb.name)) {
            let collection = collection(row, row.namespaced);
            let path = if verb.on_item { format!("{collection}/{{name}}") } else { collection };
            add(&mut paths, &path, verb, &subject, edition);
        }
        if row.namespaced && row.verbs.contains(&"list") {
            add(&mut paths, &collection(row, false), &VERBS[0], &subject, edition);
        }
        for sub in &row.subresources {
            add_subresource(&mut paths, row, sub, edition);
        }
    }
    paths
}

fn add_subresource(paths: &mut Map<String, Value>, row: &Row<'_>, sub: &SubRow<'_>, edition: Edition) {
    let path = format!("{}/{{name}}/{}", collection(row, row.namespaced), sub.name);
    let subject = Subject { row, kind: sub.kind, sub: Some(sub.name) };
    for verb in VERBS.iter().filter(|verb| verb.name != "list" && sub.verbs.contains(&verb.name)) {
        add(paths, &path, verb, &subject, edition);
    }
}

/// `/apis/apps/v1/namespaces/{namespace}/deployments`
fn collection(row: &Row<'_>, namespaced: bool) -> String {
    let namespace = if namespaced { "/namespaces/{namespace}" } else { "" };
    format!("/{}{namespace}/{}", super::document_path(row.group, row.version), row.plural)
}

fn add(paths: &mut Map<String, Value>, path: &str, verb: &Verb, subject: &Subject<'_>, edition: Edition) {
    let item = paths.entry(path).or_insert_with(|| json!({"parameters": path_parameters(path, edition)}));
    item[verb.method] = operation(path, verb, subject, edition);
}

fn operation(path: &str, verb: &Verb, subject: &Subject<'_>, edition: Edition) -> Value {
    let (group, version, kind) = subject.kind;
    let mut parameters: Vec<Value> = verb.query.iter().map(|name| parameter(name, "query", edition)).collect();
    let answer = match verb.action {
        "delete" | "deletecollection" => STATUS.to_owned(),
        "list" => format!("{}List", schema_name(subject)),
        _ => schema_name(subject),
    };
    let mut operation = json!({
        "operationId": operation_id(path, verb, subject),
        "description": describe(verb, subject),
        "tags": [tag(subject.row)],
        "responses": {"200": response(&answer, edition)},
        "x-kubernetes-action": verb.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    if let Some(body) = body(verb, subject) {
        add_body(&mut operation, &mut parameters, verb, &body, edition);
    }
    operation["parameters"] = Value::Array(parameters);
    operation
}

/// The schema that a request's body has.
fn body(verb: &Verb, subject: &Subject<'_>) -> Option<String> {
    match verb.action {
        "post" | "put" => Some(schema_name(subject)),
        "patch" => Some("io.k8s.apimachinery.pkg.apis.meta.v1.Patch".to_owned()),
        "delete" | "deletecollection" => Some(DELETE_OPTIONS.to_owned()),
        _ => None,
    }
}

fn add_body(operation: &mut Value, parameters: &mut Vec<Value>, verb: &Verb, name: &str, edition: Edition) {
    let patch = verb.action == "patch";
    let schema = if patch { json!({"type": "object"}) } else { edition.reference(name) };
    let required = verb.method != "delete";
    match edition {
        Edition::V2 => {
            let mut body = json!({"name": "body", "in": "body", "schema": schema});
            if required {
                body["required"] = json!(true);
            }
            parameters.push(body);
            operation["consumes"] = if patch { json!(PATCHES) } else { json!(["*/*"]) };
        }
        Edition::V3 => {
            let types: &[&str] = if patch { &PATCHES } else { &["*/*"] };
            let content: Map<String, Value> =
                types.iter().map(|name| ((*name).to_owned(), json!({"schema": schema}))).collect();
            operation["requestBody"] = json!({"content": content});
            if required {
                operation["requestBody"]["required"] = json!(true);
            }
        }
    }
}

fn response(name: &str, edition: Edition) -> Value {
    let schema = edition.reference(name);
    match edition {
        Edition::V2 => json!({"description": "OK", "schema": schema}),
        Edition::V3 => json!({"description": "OK", "content": {"application/json": {"schema": schema}}}),
    }
}

fn path_parameters(path: &str, edition: Edition) -> Vec<Value> {
    let named = ["name", "namespace"].into_iter().filter(|name| path.contains(&format!("{{{name}}}")));
    let mut parameters: Vec<Value> = named
        .map(|name| {
            let mut parameter = parameter(name, "path", edition);
            parameter["required"] = json!(true);
            parameter
        })
        .collect();
    parameters.push(parameter("pretty", "query", edition));
    parameters
}

fn parameter(name: &str, place: &str, edition: Edition) -> Value {
    let kind = match name {
        "allowWatchBookmarks" | "force" | "orphanDependents" | "sendInitialEvents" | "watch" => "boolean",
        "gracePeriodSeconds" | "limit" | "timeoutSeconds" => "integer",
        _ => "string",
    };
    match edition {
        Edition::V2 => json!({"name": name, "in": place, "type": kind, "uniqueItems": true}),
        Edition::V3 => json!({"name": name, "in": place, "schema": {"type": kind, "uniqueItems": true}}),
    }
}

/// Kinds without a type of their own (a log, an exec) are answered as text: their schema is the row's.
fn schema_name(subject: &Subject<'_>) -> String {
    let (group, version, kind) = subject.kind;
    let row = subject.row;
    let found = definition_of(group, version, kind).or_else(|| definition_of(row.group, row.version, row.kind));
    found.map_or_else(|| STATUS.to_owned(), |definition| definition.name())
}

/// `readAppsV1NamespacedDeploymentStatus`
fn operation_id(path: &str, verb: &Verb, subject: &Subject<'_>) -> String {
    let row = subject.row;
    let namespaced = if path.contains("{namespace}") { "Namespaced" } else { "" };
    let everywhere = if row.namespaced && namespaced.is_empty() { "ForAllNamespaces" } else { "" };
    let group = if row.group.is_empty() { "core" } else { row.group };
    let sub = subject.sub.map(camel).unwrap_or_default();
    format!("{}{}{}{namespaced}{}{sub}{everywhere}", verb.id, camel(first(group)), camel(row.version), row.kind)
}

fn tag(row: &Row<'_>) -> String {
    let group = if row.group.is_empty() { "core" } else { first(row.group) };
    format!("{group}_{}", row.version)
}

fn first(group: &str) -> &str {
    group.split('.').next().unwrap_or(group)
}

fn describe(verb: &Verb, subject: &Subject<'_>) -> String {
    let kind = subject.row.kind;
    let sub = subject.sub.map(|sub| format!("{sub} of ")).unwrap_or_default();
    match verb.action {
        "list" => format!("list or watch objects of kind {kind}"),
        "deletecollection" => format!("delete collection of {kind}"),
        "post" if subject.sub.is_none() => format!("create a {kind}"),
        "post" => format!("create {sub}a {kind}"),
        "get" => format!("read {sub}the specified {kind}"),
        "put" => format!("replace {sub}the specified {kind}"),
        "patch" => format!("partially update {sub}the specified {kind}"),
        _ => format!("delete a {kind}"),
    }
}

fn camel(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|head| head.to_uppercase().collect::<String>() + letters.as_str()).unwrap_or_default()
}
