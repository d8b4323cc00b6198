//! ConfigMaps: keys, size, immutability. [`validate_keys`] and [`validate_immutable`] serve secrets too.

use jiff::Timestamp;
use leme_schema::names;
use serde_json::{Value, json};

use super::{Context, FieldError, Strategy, age, field::At};

/// What one object may hold (upstream: 1 MiB of values).
pub(super) const SIZE_LIMIT: usize = 1 << 20;

pub(super) struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let root = At::root(object);
        let (data, binary) = (root.at("data"), root.at("binaryData"));
        let mut errors = validate_keys(&data);
        for (key, at) in data.entries() {
            if binary.value.get(key).is_some() {
                errors.push(at.invalid_value(&key.into(), "duplicate of key present in binaryData"));
            }
        }
        errors.extend(validate_keys(&binary));
        let decoded = |text: &str| text.len() / 4 * 3;
        let size: usize = data.entries().map(|(_, v)| v.text().len()).sum::<usize>()
            + binary.entries().map(|(_, v)| decoded(v.text())).sum::<usize>();
        if size > SIZE_LIMIT {
            errors.push(FieldError { field: "[]".into(), ..root.too_long(SIZE_LIMIT) });
        }
        errors
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = validate_immutable(object, old, &["data", "binaryData"]);
        errors.extend(self.validate_create(context, object));
        errors
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let count = |field: &str| object[field].as_object().map_or(0, |map| map.len());
        let metadata = &object["metadata"];
        let keys = count("data") + count("binaryData");
        vec![metadata["name"].clone(), json!(keys.to_string()), json!(age(metadata.get("creationTimestamp"), now))]
    }
}

pub(super) fn validate_keys(data: &At<'_>) -> Vec<FieldError> {
    let complaints = |(key, at): (&str, At<'_>)| {
        names::config_map_key(key).iter().map(|m| at.invalid_value(&key.into(), m)).collect::<Vec<_>>()
    };
    data.entries().flat_map(complaints).collect()
}

/// Once `immutable` is set, it and the data stay as they are.
pub(super) fn validate_immutable(object: &Value, old: &Value, fields: &[&str]) -> Vec<FieldError> {
    if !old["immutable"].as_bool().unwrap_or_default() {
        return Vec::new();
    }
    let root = At::root(object);
    let mut errors = Vec::new();
    if !root.at("immutable").flag() {
        errors.push(root.at("immutable").forbidden("field is immutable when `immutable` is set"));
    }
    for field in fields {
        if object.get(*field) != old.get(*field) {
            errors.push(root.at(field).forbidden("field is immutable when `immutable` is set"));
        }
    }
    errors
}
