//! Events. One object, two versions: it is stored as core/v1 and renamed for events.k8s.io/v1, whose fields are the
//! same ones under other names.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    Context, FieldError, Strategy, age,
    field::{At, int, text},
};

/// What `kubectl get events --field-selector` may ask for, in both versions.
pub(super) const FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reportingController",
];

/// core/v1's name of a field beside events.k8s.io/v1's.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

pub(super) struct CoreEvent;
pub(super) struct EventsEvent;

impl Strategy for CoreEvent {
    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let involved = |field: &str| text(object, &format!("/involvedObject/{field}"));
        vec![
            json!(last_seen(object, now)),
            object["type"].clone(),
            object["reason"].clone(),
            json!(format!("{}/{}", involved("kind").to_lowercase(), involved("name"))),
            json!(involved("fieldPath")),
            json!(source(object)),
            json!(text(object, "/message").trim()),
            json!(first_seen(object, now)),
            json!(count(object).to_string()),
            object["metadata"]["name"].clone(),
        ]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        let path = path.replacen("regarding.", "involvedObject.", 1);
        let found = match path.as_str() {
            "source" => match text(object, "/source/component") {
                "" => text(object, "/reportingComponent"),
                component => component,
            },
            "reportingController" => text(object, "/reportingComponent"),
            other => text(object, &format!("/{}", other.replace('.', "/"))),
        };
        FIELDS.contains(&path.as_str()).then(|| found.to_owned())
    }
}

impl Strategy for EventsEvent {
    fn stored(&self, object: Value) -> Value {
        rename(object, "v1", NAMES.iter().map(|(core, events)| (*events, *core)))
    }

    fn served(&self, stored: &Value) -> Option<Value> {
        Some(rename(stored.clone(), "events.k8s.io/v1", NAMES.iter().copied()))
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let root = At::root(object);
        let required = ["eventTime", "reportingController", "reportingInstance", "action", "reason"];
        let mut errors: Vec<FieldError> =
            required.iter().map(|field| root.at(field)).filter(At::is_empty).map(|at| at.required("")).collect();
        if root.at("type").one_of(&["Normal", "Warning"]).is_some() {
            errors.push(root.at("type").invalid_value(&text(object, "/type").into(), "has invalid value: "));
        }
        errors.extend(validate(&self.stored(object.clone())));
        errors
    }

    /// What the recorder of the new version has written once stays; only the series grows.
    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let root = At::root(object);
        let fixed = ["regarding", "related", "reason", "action", "type", "reportingController", "reportingInstance"];
        fixed.iter().filter_map(|field| root.at(field).immutable(old)).collect()
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        CoreEvent.cells(&self.stored(object.clone()), now)
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        CoreEvent.field(&self.stored(object.clone()), path)
    }
}

fn rename<'a>(mut object: Value, version: &str, names: impl Iterator<Item = (&'a str, &'a str)>) -> Value {
    if let Some(fields) = object.as_object_mut() {
        let moved: Vec<(&str, Value)> =
            names.filter_map(|(from, to)| fields.remove(from).map(|value| (to, value))).collect();
        let moved: Map<String, Value> = moved.into_iter().map(|(to, value)| (to.to_owned(), value)).collect();
        fields.extend(moved);
        fields.insert("apiVersion".into(), version.into());
    }
    object
}

/// An event lives in the namespace of what it speaks of; of what has none, in `default`.
fn validate(object: &Value) -> Vec<FieldError> {
    let root = At::root(object);
    let (own, involved) = (text(object, "/metadata/namespace"), root.down(&["involvedObject", "namespace"]));
    let mismatch = match involved.text() {
        "" => !matches!(own, "default" | "kube-system" | ""),
        namespace => namespace != own,
    };
    mismatch
        .then(|| involved.invalid_value(&involved.text().into(), "does not match event.namespace"))
        .into_iter()
        .collect()
}

fn last_seen(object: &Value, now: Timestamp) -> String {
    let moments = ["/series/lastObservedTime", "/lastTimestamp"];
    match moments.iter().find_map(|p| object.pointer(p).filter(|t| t.is_string())) {
        Some(moment) => age(Some(moment), now),
        None => first_seen(object, now),
    }
}

fn first_seen(object: &Value, now: Timestamp) -> String {
    let moment = ["/firstTimestamp", "/eventTime"].iter().find_map(|p| object.pointer(p).filter(|t| t.is_string()));
    age(moment, now)
}

fn count(object: &Value) -> i64 {
    match (int(object, "/series/count"), int(object, "/count")) {
        (0, 0) => 1,
        (0, count) => count,
        (series, _) => series,
    }
}

fn source(object: &Value) -> String {
    let or = |first: &'static str, second: &'static str| match text(object, first) {
        "" => text(object, second),
        found => found,
    };
    let component = or("/source/component", "/reportingComponent");
    let host = or("/source/host", "/reportingInstance");
    [component, host].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}
