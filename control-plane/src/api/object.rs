//! Objects as they are kept, cached and served.
//!
//! In the store an object is JSON without a resource version, kind and version first, as upstream keeps it. The cache
//! holds one [`Item`] per revision: the very bytes that gets, lists and watches send, and the few facts that selectors
//! ask for. Nothing is serialized twice.

use std::sync::Arc;

use bytes::Bytes;
use leme_store::{Record, Revision};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use crate::resources::Resource;

/// One object at one revision.
#[derive(Debug)]
pub struct Item {
    pub bytes: Bytes,
    /// Where `kind` and `apiVersion` end: items in lists do without them.
    head: usize,
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the resource's selectable fields, in its order.
    pub fields: Box<[Option<Box<str>>]>,
    pub revision: Revision,
}

#[derive(Deserialize, Default)]
struct Head<'a> {
    #[serde(borrow, default)]
    metadata: Meta<'a>,
}

#[derive(Deserialize, Default)]
struct Meta<'a> {
    #[serde(borrow, default)]
    name: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: std::borrow::Cow<'a, str>,
    #[serde(default)]
    labels: std::collections::BTreeMap<Box<str>, Box<str>>,
    #[serde(rename = "deletionTimestamp", default)]
    deletion_timestamp: Option<std::borrow::Cow<'a, str>>,
}

#[derive(Deserialize)]
struct OnlyMetadata<'a> {
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

impl Item {
    /// What the cache makes of a record. A record that is no object at all is kept, unselectable, so that nothing is
    /// hidden from a person who has to repair it.
    pub fn decode(resource: &Resource, record: &Record) -> Self {
        if resource.fields.is_empty() {
            return Self::new(with_version(&record.value, record.modified), record.modified, Box::default());
        }
        let mut value: Value = serde_json::from_slice(&record.value).unwrap_or_default();
        let bytes = match resource.strategy.served(&value) {
            None => with_version(&record.value, record.modified),
            Some(served) => {
                value = served;
                with_version(&encode(&value), record.modified)
            }
        };
        Self::new(bytes, record.modified, fields(resource, &value))
    }

    /// An object that was not written (dry run): its version, if any, is that of its base.
    pub fn unsaved(resource: &Resource, object: &Value) -> Self {
        let revision = text(object, &["metadata", "resourceVersion"]).parse().map(Revision).unwrap_or_default();
        let stored = encode(object);
        let bytes = match revision {
            Revision(0) => {
                let head = head_length(&stored).unwrap_or(1);
                (stored, head)
            }
            revision => with_version(&stored, revision),
        };
        Self::new(bytes, revision, fields(resource, object))
    }

    /// The same state at another revision.
    pub fn at(&self, resource: &Resource, revision: Revision) -> Self {
        let value = self.value();
        Self::new(with_version(&encode(&value), revision), revision, fields(resource, &value))
    }

    fn new((bytes, head): (Bytes, usize), revision: Revision, fields: Box<[Option<Box<str>>]>) -> Self {
        let meta = serde_json::from_slice::<Head<'_>>(&bytes).unwrap_or_default().metadata;
        let (namespace, name) = (meta.namespace.into(), meta.name.into());
        Self { head, namespace, name, labels: meta.labels.into_iter().collect(), fields, revision, bytes }
    }

    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    pub fn is_terminating(&self) -> bool {
        serde_json::from_slice::<Head<'_>>(&self.bytes).is_ok_and(|head| head.metadata.deletion_timestamp.is_some())
    }

    /// The object without its opening brace, kind and version.
    pub fn tail(&self) -> Bytes {
        self.bytes.slice(self.head..)
    }

    /// `PartialObjectMetadata`
    pub fn partial(&self, v1: bool) -> String {
        let only: Option<OnlyMetadata<'_>> = serde_json::from_slice(&self.bytes).ok();
        let metadata = only.and_then(|o| o.metadata).map_or("{}", RawValue::get);
        let version = if v1 { "v1" } else { "v1beta1" };
        format!(r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/{version}","metadata":{metadata}}}"#)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| **k == *key).map(|(_, v)| &**v)
    }
}

fn fields(resource: &Resource, object: &Value) -> Box<[Option<Box<str>>]> {
    let text = |path: &&str| resource.strategy.field(object, path).map(String::into_boxed_str);
    resource.fields.iter().map(text).collect()
}

/// Serializes for the store: `kind`, `apiVersion` and `metadata` first, without the resource version.
pub fn encode(object: &Value) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    let mut first = true;
    let mut put = |out: &mut Vec<u8>, key: &str, value: &Value| {
        out.push(if std::mem::take(&mut first) { b'{' } else { b',' });
        serde_json::to_writer(&mut *out, key).expect("a string serializes into memory");
        out.push(b':');
        serde_json::to_writer(&mut *out, value).expect("a value serializes into memory");
    };
    for key in ["kind", "apiVersion"] {
        if let Some(value) = fields.get(key) {
            put(&mut out, key, value);
        }
    }
    if let Some(Value::Object(metadata)) = fields.get("metadata") {
        if metadata.contains_key("resourceVersion") {
            let mut metadata = metadata.clone();
            metadata.remove("resourceVersion");
            put(&mut out, "metadata", &Value::Object(metadata));
        } else {
            put(&mut out, "metadata", &fields["metadata"]);
        }
    }
    for (key, value) in fields.iter().filter(|(k, _)| !matches!(k.as_str(), "kind" | "apiVersion" | "metadata")) {
        put(&mut out, key, value);
    }
    if first {
        out.push(b'{');
    }
    out.push(b'}');
    out.into()
}

/// The bytes with `metadata.resourceVersion` set, and where the kind and version end.
fn with_version(stored: &[u8], revision: Revision) -> (Bytes, usize) {
    const MARK: &[u8] = b"\"metadata\":{";
    let Some(head) = head_length(stored) else { return with_version_slowly(stored, revision) };
    if !stored[head..].starts_with(MARK) {
        return with_version_slowly(stored, revision);
    }
    let at = head + MARK.len();
    let version = format!("\"resourceVersion\":\"{revision}\"");
    let mut out = Vec::with_capacity(stored.len() + version.len() + 1);
    out.extend_from_slice(&stored[..at]);
    out.extend_from_slice(version.as_bytes());
    if stored.get(at) != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(&stored[at..]);
    (out.into(), head)
}

/// `{"kind":"X","apiVersion":"Y",` as [`encode`] and upstream write it. Neither string can hold a quote.
fn head_length(stored: &[u8]) -> Option<usize> {
    let mut at = 0;
    for mark in [b"{\"kind\":\"".as_slice(), b",\"apiVersion\":\"".as_slice()] {
        at += stored.get(at..)?.starts_with(mark).then_some(mark.len())?;
        at += stored.get(at..)?.iter().position(|b| *b == b'"')? + 1;
    }
    (stored.get(at) == Some(&b',')).then_some(at + 1)
}

/// For what others wrote in another order.
fn with_version_slowly(stored: &[u8], revision: Revision) -> (Bytes, usize) {
    let mut object: Value = serde_json::from_slice(stored).unwrap_or_default();
    if !object["metadata"].is_object() {
        return (Bytes::copy_from_slice(stored), 1.min(stored.len()));
    }
    object["metadata"]["resourceVersion"] = revision.to_string().into();
    let mut out = encode(&object).to_vec();
    let head = head_length(&out).unwrap_or(1);
    // `encode` leaves the version out: put it back behind the head.
    const MARK: &[u8] = b"\"metadata\":{";
    if let Some(at) = out[head..].starts_with(MARK).then_some(head + MARK.len()) {
        let comma = if out.get(at) == Some(&b'}') { "" } else { "," };
        out.splice(at..at, format!("\"resourceVersion\":\"{revision}\"{comma}").into_bytes());
    }
    (out.into(), head)
}

/// The string at a path of keys, or "".
pub fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    path.iter().try_fold(object, |value, key| value.get(key)).and_then(Value::as_str).unwrap_or_default()
}

/// Sets a field of `metadata`.
pub fn set_meta(object: &mut Value, key: &str, value: Value) {
    object["metadata"][key] = value;
}

pub fn remove_meta(object: &mut Value, key: &str) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove(key);
    }
}

pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = object["metadata"]["finalizers"].as_array();
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Shared by everything that holds items.
pub type Shared = Arc<Item>;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_version_is_spliced_into_stored_bytes() {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "\"metadata\":{"}, "metadata": {"name": "x"}});
        let (bytes, head) = with_version(&encode(&object), Revision(7));
        assert_eq!(&bytes[..head], br#"{"kind":"ConfigMap","apiVersion":"v1","#);
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["metadata"], json!({"name": "x", "resourceVersion": "7"}));
        assert_eq!(value["data"], object["data"]);
    }

    #[test]
    fn records_that_others_wrote_in_another_order_are_read_too() {
        let stored = br#"{"data":{},"metadata":{"name":"x"},"apiVersion":"v1","kind":"ConfigMap"}"#;
        let (bytes, head) = with_version(stored, Revision(9));
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["metadata"]["resourceVersion"], "9");
        assert!(bytes[head..].starts_with(b"\"metadata\""));
    }

    #[test]
    fn the_stored_form_has_no_version() {
        let object = json!({"kind": "A", "apiVersion": "v1", "metadata": {"name": "x", "resourceVersion": "3"}});
        assert_eq!(&encode(&object)[..], br#"{"kind":"A","apiVersion":"v1","metadata":{"name":"x"}}"#);
    }
}
