//! Namespaces: they go only when `spec.finalizers` is empty, which only `finalize` may change.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Context, FieldError, NameRule, Strategy, age,
    field::{At, restore, split_status, text},
};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) struct Namespace;

impl Strategy for Namespace {
    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"phase": "Active"});
        let mut finalizers: Vec<Value> = object["spec"]["finalizers"].as_array().cloned().unwrap_or_default();
        if !finalizers.iter().any(|f| f == "kubernetes") {
            finalizers.push("kubernetes".into());
        }
        object["spec"] = json!({"finalizers": finalizers});
        let name = object["metadata"]["name"].clone();
        if !object["metadata"]["labels"].is_object() {
            object["metadata"]["labels"] = json!({});
        }
        object["metadata"]["labels"][NAME_LABEL] = name;
    }

    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        match context.subresource {
            Some("finalize") => restore(object, old, "status"),
            subresource => {
                split_status(subresource, object, old);
                restore(object, old, "spec");
            }
        }
        if !object["metadata"]["labels"].is_object() {
            object["metadata"]["labels"] = json!({});
        }
        object["metadata"]["labels"][NAME_LABEL] = object["metadata"]["name"].clone();
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let finalizers = At::root(object).down(&["spec", "finalizers"]);
        let invalid = |f: &At<'_>| f.text() != "kubernetes" && !f.text().contains('/');
        let message = "name is neither a standard finalizer name nor is it fully qualified";
        finalizers.items().filter(invalid).map(|f| finalizers.invalid_value(f.value, message)).collect()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        let phase = At::root(object).down(&["status", "phase"]);
        let terminating = object["metadata"].get("deletionTimestamp").is_some_and(|t| !t.is_null());
        let mut errors = self.validate_create(context, object);
        if context.subresource == Some("status") {
            if terminating && phase.text() != "Terminating" {
                errors.push(phase.invalid("may only be 'Terminating' if `deletionTimestamp` is not empty"));
            } else if !terminating && phase.text() != "Active" {
                errors.push(phase.invalid("may only be 'Active' if `deletionTimestamp` is empty"));
            }
        }
        errors
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let metadata = &object["metadata"];
        let created = metadata.get("creationTimestamp");
        vec![metadata["name"].clone(), object["status"]["phase"].clone(), json!(age(created, now))]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "status.phase").then(|| text(object, "/status/phase").to_owned())
    }
}
