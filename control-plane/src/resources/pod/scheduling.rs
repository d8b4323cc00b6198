//! What a pod asks of the nodes that it may come to: tolerations, affinity, spreading.

use leme_schema::names;

use super::super::{FieldError, field::At, metadata::validate_selector};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn validate_tolerations(tolerations: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for toleration in tolerations.items() {
        let part = |field: &str| toleration.at(field);
        let (key, operator, value, effect) = (part("key"), part("operator"), part("value"), part("effect"));
        if !key.is_empty() {
            errors.extend(key.check(names::qualified_name));
        } else if operator.text() != "Exists" {
            errors.push(operator.invalid_value(
                &operator.text().into(),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if part("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
            let shown = effect.text().into();
            errors.push(effect.invalid_value(&shown, "effect must be 'NoExecute' when `tolerationSeconds` is set"));
        }
        match operator.text() {
            "" | "Equal" => errors.extend(value.check(names::label_value)),
            "Exists" if !value.is_empty() => {
                errors.push(operator.invalid_value(value.value, "value must be empty when `operator` is 'Exists'"));
            }
            "Exists" => {}
            _ => errors.push(operator.unsupported(&["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            errors.extend(effect.one_of(EFFECTS));
        }
    }
    errors
}

pub(super) fn validate_affinity(affinity: &At<'_>) -> Vec<FieldError> {
    let node = affinity.at("nodeAffinity");
    let required = node.at("requiredDuringSchedulingIgnoredDuringExecution");
    let terms = required.at("nodeSelectorTerms");
    let mut errors = Vec::new();
    if required.is_set() && terms.is_empty() {
        errors.push(terms.required("must have at least one node selector term"));
    }
    errors.extend(terms.items().flat_map(|term| validate_node_term(&term)));
    for preferred in node.at("preferredDuringSchedulingIgnoredDuringExecution").items() {
        errors.extend(validate_weight(&preferred.at("weight")));
        errors.extend(validate_node_term(&preferred.at("preference")));
    }
    for kind in ["podAffinity", "podAntiAffinity"].map(|kind| affinity.at(kind)) {
        for term in kind.at("requiredDuringSchedulingIgnoredDuringExecution").items() {
            errors.extend(validate_pod_term(&term));
        }
        for preferred in kind.at("preferredDuringSchedulingIgnoredDuringExecution").items() {
            errors.extend(validate_weight(&preferred.at("weight")));
            errors.extend(validate_pod_term(&preferred.at("podAffinityTerm")));
        }
    }
    errors
}

fn validate_weight(weight: &At<'_>) -> Option<FieldError> {
    let fine = weight.int().is_some_and(|w| (1..=100).contains(&w));
    (!fine).then(|| weight.invalid_value(&weight.int().unwrap_or_default().into(), "must be in the range 1-100"))
}

fn validate_pod_term(term: &At<'_>) -> Vec<FieldError> {
    let key = term.at("topologyKey");
    let mut errors = validate_selector(&term.at("labelSelector"));
    match key.text() {
        "" => errors.push(key.required("can not be empty")),
        _ => errors.extend(key.check(names::qualified_name)),
    }
    errors
}

fn validate_node_term(term: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for expression in term.at("matchExpressions").items() {
        let (operator, values) = (expression.at("operator"), expression.at("values"));
        let count = values.items().count();
        match operator.text() {
            "In" | "NotIn" if count == 0 => {
                errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if count > 0 => {
                errors.push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "Gt" | "Lt" if count != 1 => {
                errors.push(values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => errors.push(operator.invalid("not a valid selector operator")),
        }
        errors.extend(expression.at("key").check(names::qualified_name));
    }
    errors
}

pub(super) fn validate_spread(constraints: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for constraint in constraints.items() {
        let (skew, key) = (constraint.at("maxSkew"), constraint.at("topologyKey"));
        if skew.int().unwrap_or_default() <= 0 {
            errors.push(skew.invalid_value(&skew.int().unwrap_or_default().into(), "must be greater than zero"));
        }
        if key.is_empty() {
            errors.push(key.required("can not be empty"));
        }
        errors.extend(constraint.at("whenUnsatisfiable").one_of(&["DoNotSchedule", "ScheduleAnyway"]));
        errors.extend(validate_selector(&constraint.at("labelSelector")));
    }
    errors
}
