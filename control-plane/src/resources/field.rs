//! Where validation stands in an object and what it says there: a value with its path, and upstream's words for what
//! is wrong with it. Every strategy's validation is written with [`At`]; nothing here knows a kind.

use serde_json::Value;

use super::FieldError;

static NULL: Value = Value::Null;

/// A value and how one gets to it: `spec.containers[0].image`. Absent fields are null.
#[derive(Clone)]
pub(super) struct At<'a> {
    pub path: String,
    pub value: &'a Value,
}

impl<'a> At<'a> {
    pub fn root(value: &'a Value) -> Self {
        Self { path: String::new(), value }
    }

    pub fn at(&self, field: &str) -> At<'a> {
        let value = self.value.get(field).unwrap_or(&NULL);
        let path = if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) };
        At { path, value }
    }

    /// `spec.template.spec`: several steps at once.
    pub fn down(&self, fields: &[&str]) -> At<'a> {
        fields.iter().fold(self.clone(), |at, field| at.at(field))
    }

    pub fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let items = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().enumerate().map(move |(i, value)| At { path: format!("{path}[{i}]"), value })
    }

    /// A map's entries, each at `path[key]`.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let path = self.path.clone();
        let entries = self.value.as_object().into_iter().flatten();
        entries.map(move |(key, value)| (key.as_str(), At { path: format!("{path}[{key}]"), value }))
    }

    pub fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub fn flag(&self) -> bool {
        self.value.as_bool().unwrap_or_default()
    }

    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    pub fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            _ => false,
        }
    }

    pub fn invalid(&self, detail: impl AsRef<str>) -> FieldError {
        self.invalid_value(self.value, detail)
    }

    /// Upstream sometimes shows another value than the field's own.
    pub fn invalid_value(&self, value: &Value, detail: impl AsRef<str>) -> FieldError {
        self.error("FieldValueInvalid", tail(format!("Invalid value: {value}"), detail.as_ref()))
    }

    pub fn required(&self, detail: impl AsRef<str>) -> FieldError {
        self.error("FieldValueRequired", tail("Required value".into(), detail.as_ref()))
    }

    pub fn forbidden(&self, detail: impl AsRef<str>) -> FieldError {
        self.error("FieldValueForbidden", tail("Forbidden".into(), detail.as_ref()))
    }

    pub fn unsupported(&self, supported: &[&str]) -> FieldError {
        let mut message = format!("Unsupported value: {}", self.value);
        if !supported.is_empty() {
            let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
            message += &format!(": supported values: {}", quoted.join(", "));
        }
        self.error("FieldValueNotSupported", message)
    }

    pub fn duplicate(&self) -> FieldError {
        self.error("FieldValueDuplicate", format!("Duplicate value: {}", self.value))
    }

    pub fn duplicate_value(&self, value: &Value) -> FieldError {
        self.error("FieldValueDuplicate", format!("Duplicate value: {value}"))
    }

    pub fn not_found(&self) -> FieldError {
        self.error("FieldValueNotFound", format!("Not found: {}", self.value))
    }

    pub fn too_long(&self, max: usize) -> FieldError {
        self.error("FieldValueTooLong", format!("Too long: may not be more than {max} bytes"))
    }

    pub fn too_many(&self, actual: usize, max: usize) -> FieldError {
        self.error("FieldValueTooMany", format!("Too many: {actual}: must have at most {max} items"))
    }

    fn error(&self, reason: &'static str, message: String) -> FieldError {
        FieldError { reason, field: self.path.clone(), message }
    }

    /// Each of a validator's complaints about this text.
    pub fn check(&self, validator: impl Fn(&str) -> Vec<String>) -> Vec<FieldError> {
        validator(self.text()).iter().map(|message| self.invalid(message)).collect()
    }

    /// A text that must be one of a few; empty is `Required value`.
    pub fn one_of(&self, supported: &[&str]) -> Option<FieldError> {
        match self.text() {
            "" => Some(self.required("")),
            text => (!supported.contains(&text)).then(|| self.unsupported(supported)),
        }
    }

    /// Like [`At::one_of`], but the field may be absent.
    pub fn one_of_if_set(&self, supported: &[&str]) -> Option<FieldError> {
        (self.is_set() && !supported.contains(&self.text())).then(|| self.unsupported(supported))
    }

    pub fn port(&self) -> Option<FieldError> {
        let valid = self.int().is_some_and(|port| (1..=65535).contains(&port));
        (!valid).then(|| self.invalid_value(&self.int().unwrap_or(0).into(), "must be between 1 and 65535, inclusive"))
    }

    pub fn not_negative(&self) -> Option<FieldError> {
        self.int().is_some_and(|n| n < 0).then(|| self.invalid("must be greater than or equal to 0"))
    }

    /// An update must leave this as it was.
    pub fn immutable(&self, old: &Value) -> Option<FieldError> {
        (self.value != old.pointer(&pointer(&self.path)).unwrap_or(&NULL)).then(|| self.invalid("field is immutable"))
    }
}

fn tail(head: String, detail: &str) -> String {
    if detail.is_empty() { head } else { format!("{head}: {detail}") }
}

fn pointer(path: &str) -> String {
    format!("/{}", path.replace('.', "/"))
}

/// The text at a JSON pointer, or "".
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn int(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

pub(super) fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The text, or kubectl's way to say that there is none.
pub(super) fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// `a=b,c=d` in key order, or `<none>`.
pub(super) fn labels_text(labels: Option<&Value>) -> String {
    let pairs: Vec<String> = labels
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",") }
}

/// Puts `old`'s field into `object`, or removes it there.
pub(super) fn restore(object: &mut Value, old: &Value, field: &str) {
    let Some(target) = object.as_object_mut() else { return };
    match old.get(field) {
        Some(value) => target.insert(field.to_owned(), value.clone()),
        None => target.remove(field),
    };
}

/// A write through `status` keeps everything but the status; any other write keeps the status.
pub(super) fn split_status(subresource: Option<&str>, object: &mut Value, old: &Value) {
    if subresource == Some("status") {
        let keys = |value: &Value| value.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        for key in keys(object).into_iter().chain(keys(old)) {
            if !matches!(key.as_str(), "status" | "metadata" | "kind" | "apiVersion") {
                restore(object, old, &key);
            }
        }
        restore_metadata(object, old);
    } else {
        restore(object, old, "status");
    }
}

/// Status writers may not move labels and the like of most kinds; upstream lets them change annotations and
/// finalizers only where a controller needs it, and ignores the rest.
fn restore_metadata(object: &mut Value, old: &Value) {
    for field in ["generation", "deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences"] {
        if let (Some(metadata), Some(before)) = (object.get_mut("metadata"), old.get("metadata")) {
            restore(metadata, before, field);
        }
    }
}

pub(super) fn set_generation(object: &mut Value, generation: i64) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("generation".into(), generation.into());
    }
}

/// The next generation if what the writer wants has changed, else the same one.
pub(super) fn bump_generation(object: &mut Value, old: &Value, wanted: &[&str]) {
    let generation = int(old, "/metadata/generation");
    let changed = wanted.iter().any(|field| object.get(*field) != old.get(*field));
    set_generation(object, generation + i64::from(changed));
}
