//! Roles and bindings. Escalation is authorization's business, not this one's.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Context, FieldError, NameRule, Strategy, age,
    field::{At, text},
};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) struct Role;
pub(super) struct ClusterRole;
pub(super) struct RoleBinding;
pub(super) struct ClusterRoleBinding;

impl Strategy for Role {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        At::root(object).at("rules").items().flat_map(|rule| validate_rule(&rule, true)).collect()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        self.validate_create(context, object)
    }

    fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        role_cells(object)
    }
}

impl Strategy for ClusterRole {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let root = At::root(object);
        let mut errors: Vec<FieldError> =
            root.at("rules").items().flat_map(|rule| validate_rule(&rule, false)).collect();
        let selectors = root.down(&["aggregationRule", "clusterRoleSelectors"]);
        if root.at("aggregationRule").is_set() && selectors.is_empty() {
            errors.push(selectors.required("at least one clusterRoleSelector required if aggregationRule is non-nil"));
        }
        errors
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        self.validate_create(context, object)
    }

    fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        role_cells(object)
    }
}

impl Strategy for RoleBinding {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        validate_binding(object, &["Role", "ClusterRole"], true)
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let errors = self.validate_create(context, object);
        errors.into_iter().chain(role_change(object, old)).collect()
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        binding_cells(object, now)
    }
}

impl Strategy for ClusterRoleBinding {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        validate_binding(object, &["ClusterRole"], false)
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let errors = self.validate_create(context, object);
        errors.into_iter().chain(role_change(object, old)).collect()
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        binding_cells(object, now)
    }
}

fn validate_rule(rule: &At<'_>, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (verbs, urls) = (rule.at("verbs"), rule.at("nonResourceURLs"));
    if verbs.is_empty() {
        errors.push(verbs.required("verbs must contain at least one value"));
    }
    if !urls.is_empty() {
        if namespaced {
            errors.push(urls.invalid("namespaced rules cannot apply to non-resource URLs"));
        }
        if ["apiGroups", "resources", "resourceNames"].iter().any(|field| !rule.at(field).is_empty()) {
            errors.push(urls.invalid("rules cannot apply to both regular resources and non-resource URLs"));
        }
        return errors;
    }
    if rule.at("apiGroups").is_empty() {
        errors.push(rule.at("apiGroups").required("resource rules must supply at least one api group"));
    }
    if rule.at("resources").is_empty() {
        errors.push(rule.at("resources").required("resource rules must supply at least one resource"));
    }
    errors
}

fn validate_binding(object: &Value, kinds: &[&str], namespaced: bool) -> Vec<FieldError> {
    let role = At::root(object).at("roleRef");
    let mut errors = Vec::new();
    if role.at("apiGroup").text() != GROUP {
        errors.push(role.at("apiGroup").unsupported(&[GROUP]));
    }
    if !kinds.contains(&role.at("kind").text()) {
        errors.push(role.at("kind").unsupported(kinds));
    }
    if role.at("name").is_empty() {
        errors.push(role.at("name").required(""));
    }
    let subjects = At::root(object).at("subjects");
    errors.extend(subjects.items().flat_map(|subject| validate_subject(&subject, namespaced)));
    errors
}

fn validate_subject(subject: &At<'_>, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if subject.at("name").is_empty() {
        errors.push(subject.at("name").required(""));
    }
    match subject.at("kind").text() {
        "ServiceAccount" => {
            if !subject.at("name").is_empty() {
                errors.extend(subject.at("name").check(leme_schema::names::dns1123_subdomain));
            }
            if !subject.at("apiGroup").is_empty() {
                errors.push(subject.at("apiGroup").unsupported(&[""]));
            }
            if !namespaced && subject.at("namespace").is_empty() {
                errors.push(subject.at("namespace").required(""));
            }
        }
        "User" | "Group" => {
            if subject.at("apiGroup").text() != GROUP {
                errors.push(subject.at("apiGroup").unsupported(&[GROUP]));
            }
        }
        _ => errors.push(subject.at("kind").unsupported(&["ServiceAccount", "User", "Group"])),
    }
    errors
}

/// What a binding grants is decided once; to change it, make another.
fn role_change(object: &Value, old: &Value) -> Option<FieldError> {
    let role = At::root(object).at("roleRef");
    (role.value != &old["roleRef"]).then(|| role.invalid("cannot change roleRef"))
}

fn role_cells(object: &Value) -> Vec<Value> {
    let metadata = &object["metadata"];
    vec![metadata["name"].clone(), metadata["creationTimestamp"].clone()]
}

fn binding_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let metadata = &object["metadata"];
    let of_kind = |kind: &str| {
        let subjects = object["subjects"].as_array().into_iter().flatten();
        let named = subjects.filter(|s| s["kind"] == kind).map(|s| match kind {
            "ServiceAccount" => format!("{}/{}", text(s, "/namespace"), text(s, "/name")),
            _ => text(s, "/name").to_owned(),
        });
        json!(named.collect::<Vec<_>>().join(", "))
    };
    vec![
        metadata["name"].clone(),
        json!(format!("{}/{}", text(object, "/roleRef/kind"), text(object, "/roleRef/name"))),
        json!(age(metadata.get("creationTimestamp"), now)),
        of_kind("User"),
        of_kind("Group"),
        of_kind("ServiceAccount"),
    ]
}
