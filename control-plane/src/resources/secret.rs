//! Secrets: plain text becomes data, the type fixes which keys must be there.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    Context, FieldError, Strategy, age,
    configmap::{SIZE_LIMIT, validate_immutable, validate_keys},
    field::{At, text},
};

/// Keys that a type demands.
const REQUIRED_KEYS: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

pub(super) struct Secret;

impl Strategy for Secret {
    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        encode_plain_text(object);
        if text(object, "/type").is_empty() {
            object["type"] = "Opaque".into();
        }
    }

    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        if text(object, "/type").is_empty() {
            object["type"] = old["type"].clone();
        }
        self.prepare_create(context, object);
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let root = At::root(object);
        let data = root.at("data");
        let mut errors = validate_keys(&data);
        let size: usize = data.entries().map(|(_, v)| v.text().len() / 4 * 3).sum();
        if size > SIZE_LIMIT {
            errors.push(data.too_long(SIZE_LIMIT));
        }
        errors.extend(validate_type(&root));
        errors
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors: Vec<FieldError> = At::root(object).at("type").immutable(old).into_iter().collect();
        errors.extend(validate_immutable(object, old, &["data"]));
        errors.extend(self.validate_create(context, object));
        errors
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let metadata = &object["metadata"];
        let keys = object["data"].as_object().map_or(0, Map::len);
        let created = metadata.get("creationTimestamp");
        vec![metadata["name"].clone(), object["type"].clone(), json!(keys.to_string()), json!(age(created, now))]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "type").then(|| text(object, "/type").to_owned())
    }
}

/// `stringData` is for writers only: it ends up in `data`.
fn encode_plain_text(object: &mut Value) {
    let Some(Value::Object(plain)) = object.as_object_mut().and_then(|o| o.remove("stringData")) else { return };
    if plain.is_empty() {
        return;
    }
    if !object["data"].is_object() {
        object["data"] = json!({});
    }
    for (key, value) in plain {
        object["data"][key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
    }
}

fn validate_type(root: &At<'_>) -> Vec<FieldError> {
    let (kind, data) = (root.at("type"), root.at("data"));
    let absent = |key: &str| data.value.get(key).is_none();
    let mut errors = Vec::new();
    match kind.text() {
        "kubernetes.io/service-account-token" => {
            let annotations = root.down(&["metadata", "annotations"]);
            let at =
                At { path: format!("{}[kubernetes.io/service-account.name]", annotations.path), value: &Value::Null };
            if annotations.at("kubernetes.io/service-account.name").is_empty() {
                errors.push(at.required(""));
            }
        }
        "kubernetes.io/basic-auth" if absent("username") && absent("password") => {
            for key in ["username", "password"] {
                errors.push(At { path: format!("data[{key}]"), value: &Value::Null }.required(""));
            }
        }
        other => {
            let keys = REQUIRED_KEYS.iter().find(|(kind, _)| *kind == other).map_or(&[][..], |(_, keys)| keys);
            for key in keys.iter().filter(|key| absent(key)) {
                errors.push(At { path: format!("data[{key}]"), value: &Value::Null }.required(""));
            }
        }
    }
    errors
}
