//! What holds for `metadata` of every kind. The API calls [`validate_create`] and [`validate_update`] and adds what
//! the kind's strategy says; nothing here looks beyond `metadata`.

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

/// What is wrong with a new object's metadata. Its name is set: `generateName` has been used.
pub fn validate_create(context: &Context<'_>, object: &Value) -> Vec<FieldError> {
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

/// What is wrong with a changed object's metadata.
pub fn validate_update(context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate_create(context, object);
    let metadata = At::root(object).at("metadata");
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        errors.extend(metadata.at(field).immutable(old));
    }
    errors.extend(new_finalizers(&metadata, old));
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

/// `metav1.LabelSelector`
pub(super) fn validate_selector(selector: &At<'_>) -> Vec<FieldError> {
    let mut errors = validate_labels(&selector.at("matchLabels"));
    for expression in selector.at("matchExpressions").items() {
        let (key, operator, values) = (expression.at("key"), expression.at("operator"), expression.at("values"));
        match operator.text() {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.push(operator.invalid("not a valid selector operator")),
        }
        errors.extend(key.check(names::qualified_name));
        errors.extend(values.items().flat_map(|value| value.check(names::label_value)));
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

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::{auth::NOBODY, resources::by_plural};

    fn complaints(plural: &str, metadata: Value) -> Vec<String> {
        let resource = by_plural("", "v1", plural).unwrap();
        let context = Context { resource, user: &NOBODY, now: Timestamp::UNIX_EPOCH, subresource: None };
        let errors = validate_create(&context, &json!({"metadata": metadata}));
        errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    #[test]
    fn metadata_is_judged_in_upstreams_words() {
        for (plural, metadata, want) in [
            ("pods", json!({"name": "a", "namespace": "b"}), ""),
            ("pods", json!({"namespace": "b"}), "metadata.name: Required value: name or generateName is required"),
            ("pods", json!({"name": "a"}), "metadata.namespace: Required value"),
            (
                "nodes",
                json!({"name": "a", "namespace": "b"}),
                "metadata.namespace: Forbidden: not allowed on this type",
            ),
            ("namespaces", json!({"generateName": "a-", "name": "a-x"}), ""),
            (
                "nodes",
                json!({"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}]}),
                "metadata.ownerReferences[0].uid: Invalid value: \"\": must not be empty",
            ),
            (
                "nodes",
                json!({"name": "a", "finalizers": ["mine"]}),
                "metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it \
                 fully qualified",
            ),
            (
                "nodes",
                json!({"name": "a", "annotations": {"k": "v".repeat(ANNOTATIONS_LIMIT)}}),
                "metadata.annotations: Too long: may not be more than 262144 bytes",
            ),
        ] {
            let found = complaints(plural, metadata.clone());
            assert_eq!(found.join("\n"), want, "{metadata}");
        }
    }

    #[test]
    fn a_service_must_be_a_dns_label_that_starts_with_a_letter() {
        let found = complaints("services", json!({"name": "1a", "namespace": "b"}));
        assert!(
            found[0].starts_with("metadata.name: Invalid value: \"1a\": a DNS-1035 label must consist of"),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_being_deleted_gets_no_new_finalizers() {
        let resource = by_plural("", "v1", "nodes").unwrap();
        let context = Context { resource, user: &NOBODY, now: Timestamp::UNIX_EPOCH, subresource: None };
        let old = json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["a.b/c"]);
        let errors = validate_update(&context, &new, &old);
        assert_eq!(
            errors[0].message,
            "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"a.b/c\"}"
        );
    }
}
