//! What holds for `metadata` of every kind, and the two entry points for validation: the API calls
//! [`validate_create`] and [`validate_update`], which add the kind's own complaints.

use leme_schema::names;
use serde_json::Value;

use super::{Context, FieldError, field::At};

/// The alphabet of a kind's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain: most kinds.
    Subdomain,
    /// RFC 1123 label: namespaces.
    Label,
    /// RFC 1035 label: Services.
    ServiceLabel,
    /// Anything that can be part of a path: RBAC.
    PathSegment,
    /// An IP address in its canonical form.
    Address,
}

const ANNOTATIONS_LIMIT: usize = 256 << 10;
const STANDARD_FINALIZERS: &[&str] = &["kubernetes", "orphan", "foregroundDeletion"];

impl NameRule {
    fn complaints(self, name: &str) -> Vec<String> {
        match self {
            Self::Subdomain => names::dns1123_subdomain(name),
            Self::Label => names::dns1123_label(name),
            Self::ServiceLabel => names::dns1035_label(name),
            Self::PathSegment => path_segment(name),
            Self::Address => names::ip(name),
        }
    }

    /// A prefix may end where a name may not: it is checked as if a letter followed.
    fn prefix_complaints(self, prefix: &str) -> Vec<String> {
        match (self, prefix.strip_suffix('-')) {
            (Self::Subdomain | Self::Label | Self::ServiceLabel, Some(start)) => self.complaints(&format!("{start}a")),
            (Self::Address, _) => Vec::new(),
            _ => self.complaints(prefix),
        }
    }
}

fn path_segment(name: &str) -> Vec<String> {
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"].iter().filter(|c| name.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// Everything that is wrong with a new object. Its name is set: `generateName` has been used.
pub fn validate_create(context: &Context<'_>, object: &Value) -> Vec<FieldError> {
    let mut errors = validate_metadata(context, object);
    errors.extend(context.resource.strategy.validate_create(context, object));
    errors
}

/// Everything that is wrong with a changed object.
pub fn validate_update(context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate_metadata(context, object);
    let metadata = At::root(object).at("metadata");
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        errors.extend(metadata.at(field).immutable(old));
    }
    errors.extend(new_finalizers(&metadata, old));
    errors.extend(context.resource.strategy.validate_update(context, object, old));
    errors
}

fn validate_metadata(context: &Context<'_>, object: &Value) -> Vec<FieldError> {
    let metadata = At::root(object).at("metadata");
    let rule = context.resource.strategy.name_rule();
    let mut errors = validate_name(&metadata, rule);
    errors.extend(validate_namespace(&metadata, context.resource.namespaced));
    errors.extend(validate_labels(&metadata.at("labels")));
    errors.extend(validate_annotations(&metadata.at("annotations")));
    errors.extend(validate_owners(&metadata.at("ownerReferences")));
    errors.extend(validate_finalizers(&metadata.at("finalizers")));
    errors
}

fn validate_name(metadata: &At<'_>, rule: NameRule) -> Vec<FieldError> {
    let (prefix, name) = (metadata.at("generateName"), metadata.at("name"));
    let mut errors = Vec::new();
    if !prefix.is_empty() {
        errors.extend(prefix.check(|text| rule.prefix_complaints(text)));
    }
    match name.text() {
        "" => errors.push(name.required("name or generateName is required")),
        _ => errors.extend(name.check(|text| rule.complaints(text))),
    }
    errors
}

fn validate_namespace(metadata: &At<'_>, namespaced: bool) -> Vec<FieldError> {
    let namespace = metadata.at("namespace");
    match (namespaced, namespace.is_empty()) {
        (true, true) => vec![namespace.required("")],
        (true, false) => namespace.check(names::dns1123_label),
        (false, true) => Vec::new(),
        (false, false) => vec![namespace.forbidden("not allowed on this type")],
    }
}

/// Keys and values of a label map, at `labels` itself as upstream reports them.
pub(super) fn validate_labels(labels: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.entries() {
        errors.extend(names::qualified_name(key).iter().map(|m| labels.invalid_value(&key.into(), m)));
        errors.extend(names::label_value(value.text()).iter().map(|m| labels.invalid_value(value.value, m)));
    }
    errors
}

pub(super) fn validate_annotations(annotations: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in annotations.entries() {
        let complaints = names::qualified_name(&key.to_lowercase());
        errors.extend(complaints.iter().map(|m| annotations.invalid_value(&key.into(), m)));
        size += key.len() + value.text().len();
    }
    if size > ANNOTATIONS_LIMIT {
        errors.push(annotations.too_long(ANNOTATIONS_LIMIT));
    }
    errors
}

fn validate_owners(owners: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut controllers: Vec<&str> = Vec::new();
    for owner in owners.items() {
        let version = owner.at("apiVersion");
        if version.is_empty() {
            errors.push(version.invalid_value(&"".into(), "version must not be empty"));
        }
        for field in ["kind", "name", "uid"] {
            let at = owner.at(field);
            if at.is_empty() {
                errors.push(at.invalid_value(&"".into(), "must not be empty"));
            }
        }
        if owner.at("kind").text() == "Event" && matches!(version.text(), "v1" | "events.k8s.io/v1") {
            errors.push(owner.at("kind").invalid("is disallowed from being an owner"));
        }
        if owner.at("controller").flag() {
            controllers.push(owner.value["kind"].as_str().unwrap_or_default());
        }
    }
    if let [first, second, ..] = controllers[..] {
        errors.push(owners.invalid(format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        )));
    }
    errors
}

fn validate_finalizers(finalizers: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for finalizer in finalizers.items() {
        let complaints = names::qualified_name(finalizer.text());
        errors.extend(complaints.iter().map(|m| finalizers.invalid_value(finalizer.value, m)));
        if complaints.is_empty() && !finalizer.text().contains('/') && !STANDARD_FINALIZERS.contains(&finalizer.text())
        {
            errors.push(finalizer.invalid("name is neither a standard finalizer name nor is it fully qualified"));
        }
    }
    let has = |name: &str| finalizers.items().any(|f| f.text() == name);
    if has("orphan") && has("foregroundDeletion") {
        errors.push(finalizers.invalid("finalizer orphan and foregroundDeletion cannot be both set"));
    }
    errors
}

fn new_finalizers(metadata: &At<'_>, old: &Value) -> Option<FieldError> {
    let before = &old["metadata"];
    if before.get("deletionTimestamp").is_none_or(Value::is_null) {
        return None;
    }
    let finalizers = metadata.at("finalizers");
    let had = |text: &str| before["finalizers"].as_array().is_some_and(|all| all.iter().any(|f| f == text));
    let new: Vec<String> = finalizers.items().filter(|f| !had(f.text())).map(|f| f.value.to_string()).collect();
    (!new.is_empty()).then(|| {
        finalizers.forbidden(format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            new.join(", ")
        ))
    })
}
