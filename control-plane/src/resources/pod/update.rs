//! A pod's spec stays as it was made, but for a few fields. The check restores those in the new spec; whatever
//! differs after that may not be changed.

use serde_json::Value;

use super::super::{
    FieldError,
    field::{At, items, restore},
};
use super::{scheduling::validate_tolerations, validation::validate_spec};

const ALLOWED: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn validate(object: &Value, old: &Value) -> Vec<FieldError> {
    let spec = At::root(object).at("spec");
    let before = &old["spec"];
    let mut errors = validate_spec(&spec);
    for field in ["containers", "initContainers"] {
        if items(spec.value, &format!("/{field}")).len() != items(before, &format!("/{field}")).len() {
            let what = if field == "containers" { "containers" } else { "init containers" };
            return vec![spec.at(field).forbidden(format!("pod updates may not add or remove {what}"))];
        }
    }
    errors.extend(validate_deadline(&spec, before));
    errors.extend(validate_added_tolerations(&spec.at("tolerations"), before));
    let mut munged = spec.value.clone();
    restore_allowed(&mut munged, before);
    if munged != *before {
        errors.push(spec.forbidden(ALLOWED));
    }
    errors
}

fn restore_allowed(munged: &mut Value, before: &Value) {
    for field in ["containers", "initContainers"] {
        let containers = munged.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, old) in containers.zip(items(before, &format!("/{field}"))) {
            restore(container, old, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations"] {
        restore(munged, before, field);
    }
    let negative = before["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0);
    if negative && munged["terminationGracePeriodSeconds"] == 1 {
        restore(munged, before, "terminationGracePeriodSeconds");
    }
    lift_gates(munged, before);
}

/// Gates may be lifted, never added; while there were some, the node selector may still be narrowed.
fn lift_gates(munged: &mut Value, before: &Value) {
    let gates = items(before, "/schedulingGates");
    if gates.is_empty() {
        return;
    }
    if items(munged, "/schedulingGates").iter().all(|gate| gates.contains(gate)) {
        restore(munged, before, "schedulingGates");
    }
    let kept = |(key, value): (&String, &Value)| munged["nodeSelector"].get(key) == Some(value);
    if before["nodeSelector"].as_object().is_none_or(|old| old.iter().all(kept)) {
        restore(munged, before, "nodeSelector");
    }
}

fn validate_deadline(spec: &At<'_>, before: &Value) -> Option<FieldError> {
    let deadline = spec.at("activeDeadlineSeconds");
    match (deadline.int(), before["activeDeadlineSeconds"].as_i64()) {
        (Some(now), Some(old)) if now > old => Some(deadline.invalid("must be less than or equal to previous value")),
        (None, Some(_)) => {
            Some(deadline.invalid_value(&Value::Null, "must not update from a positive integer to nil value"))
        }
        _ => None,
    }
}

fn validate_added_tolerations(tolerations: &At<'_>, before: &Value) -> Vec<FieldError> {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        toleration.as_object_mut().map(|t| t.remove("tolerationSeconds"));
        toleration
    };
    let now: Vec<Value> = tolerations.items().map(|t| without_seconds(t.value)).collect();
    let kept = items(before, "/tolerations").iter().all(|old| now.contains(&without_seconds(old)));
    match kept {
        true => validate_tolerations(tolerations),
        false => {
            vec![tolerations.forbidden("existing toleration can not be modified except its tolerationSeconds")]
        }
    }
}

/// A container that will not be restarted cannot come back from its end.
pub(super) fn validate_status(object: &Value, old: &Value) -> Vec<FieldError> {
    let policy = old["spec"]["restartPolicy"].as_str().unwrap_or_default();
    if policy == "Always" || policy.is_empty() {
        return Vec::new();
    }
    let statuses = At::root(object).down(&["status", "containerStatuses"]);
    let mut errors = Vec::new();
    for before in items(old, "/status/containerStatuses") {
        let ended = &before["state"]["terminated"];
        let final_end = ended.is_object() && !(policy == "OnFailure" && ended["exitCode"] != 0);
        let same = statuses.items().find(|now| now.value["name"] == before["name"]);
        if let Some(now) = same.filter(|now| final_end && !now.value["state"]["terminated"].is_object()) {
            errors.push(now.at("state").forbidden("may not be transitioned to non-terminated state"));
        }
    }
    errors
}
