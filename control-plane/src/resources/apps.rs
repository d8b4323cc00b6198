//! Deployments and ReplicaSets: selector and template must agree, the spec's changes are counted, and both scale.

use jiff::Timestamp;
use leme_schema::{names, selectors::LabelSelector};
use serde_json::{Value, json};

use super::{
    Context, FieldError, Strategy, age,
    field::{At, bump_generation, int, items, set_generation, split_status, text},
    metadata::{validate_annotations, validate_labels, validate_selector},
    pod,
};

pub(super) struct Deployment;
pub(super) struct ReplicaSet;

impl Strategy for Deployment {
    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({});
        set_generation(object, 1);
    }

    /// Annotations count too: a rollback is written there.
    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        split_status(context.subresource, object, old);
        if context.subresource != Some("status") {
            bump_generation(object, old, &["spec"]);
            let annotations = "/metadata/annotations";
            if object["spec"] == old["spec"] && object.pointer(annotations) != old.pointer(annotations) {
                set_generation(object, int(old, "/metadata/generation") + 1);
            }
        }
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let spec = At::root(object).at("spec");
        let mut errors = validate_pods(&spec);
        errors.extend(validate_rollout(&spec.at("strategy")));
        for field in ["minReadySeconds", "revisionHistoryLimit"] {
            errors.extend(spec.at(field).not_negative());
        }
        errors.extend(validate_deadline(&spec));
        errors
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        validate_change(self, context, object, old)
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let metadata = &object["metadata"];
        let status = |field: &str| int(object, &format!("/status/{field}"));
        let mut cells = vec![
            metadata["name"].clone(),
            json!(format!("{}/{}", status("readyReplicas"), int(object, "/spec/replicas"))),
            json!(status("updatedReplicas")),
            json!(status("availableReplicas")),
            json!(age(metadata.get("creationTimestamp"), now)),
        ];
        cells.extend(template_cells(object));
        cells
    }
}

impl Strategy for ReplicaSet {
    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"replicas": 0});
        set_generation(object, 1);
    }

    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        split_status(context.subresource, object, old);
        if context.subresource != Some("status") {
            bump_generation(object, old, &["spec"]);
        }
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let spec = At::root(object).at("spec");
        let mut errors = validate_pods(&spec);
        errors.extend(spec.at("minReadySeconds").not_negative());
        errors
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        validate_change(self, context, object, old)
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let metadata = &object["metadata"];
        let mut cells = vec![
            metadata["name"].clone(),
            json!(int(object, "/spec/replicas")),
            json!(int(object, "/status/replicas")),
            json!(int(object, "/status/readyReplicas")),
            json!(age(metadata.get("creationTimestamp"), now)),
        ];
        cells.extend(template_cells(object));
        cells
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "status.replicas").then(|| int(object, "/status/replicas").to_string())
    }
}

/// `autoscaling/v1 Scale` of a Deployment or ReplicaSet.
pub fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let kept = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"];
    let kept: serde_json::Map<String, Value> =
        kept.iter().filter_map(|f| metadata.get(*f).map(|v| ((*f).to_owned(), v.clone()))).collect();
    let mut spec = json!({});
    match int(object, "/spec/replicas") {
        0 => {}
        replicas => spec["replicas"] = replicas.into(),
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": kept,
        "spec": spec,
        "status": {"replicas": int(object, "/status/replicas"), "selector": selector_text(&object["spec"]["selector"])},
    })
}

/// Puts a Scale's wish into the object it speaks of.
pub fn apply_scale(object: &mut Value, scale: &Value) -> Result<(), Vec<FieldError>> {
    let replicas = int(scale, "/spec/replicas");
    if replicas < 0 {
        return Err(At::root(scale).down(&["spec", "replicas"]).not_negative().into_iter().collect());
    }
    object["spec"]["replicas"] = replicas.into();
    Ok(())
}

fn validate_pods(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = spec.at("replicas").not_negative().into_iter().collect();
    let selector = spec.at("selector");
    if !selector.is_set() {
        errors.push(selector.required(""));
    } else {
        errors.extend(validate_selector(&selector));
        if selector.at("matchLabels").is_empty() && selector.at("matchExpressions").is_empty() {
            errors.push(selector.invalid("empty selector is invalid for deployment"));
        }
    }
    errors.extend(validate_template(&spec.at("template"), &selector));
    errors
}

fn validate_template(template: &At<'_>, selector: &At<'_>) -> Vec<FieldError> {
    if !template.is_set() {
        return vec![template.required("")];
    }
    let labels = template.down(&["metadata", "labels"]);
    let mut errors = Vec::new();
    if let Ok(Some(selector)) = LabelSelector::from_object(selector.value)
        && !selector.is_everything()
        && !selector.matches_object(template.value)
    {
        let shown = if labels.is_set() { labels.value.clone() } else { Value::Null };
        errors.push(labels.invalid_value(&shown, "`selector` does not match template `labels`"));
    }
    errors.extend(validate_labels(&labels));
    errors.extend(validate_annotations(&template.down(&["metadata", "annotations"])));
    let spec = template.at("spec");
    errors.extend(pod::validate_spec(&spec));
    if matches!(spec.at("restartPolicy").text(), "OnFailure" | "Never") {
        errors.push(spec.at("restartPolicy").unsupported(&["Always"]));
    }
    if spec.at("activeDeadlineSeconds").is_set() {
        errors.push(spec.at("activeDeadlineSeconds").forbidden("activeDeadlineSeconds in ReplicaSet is not Supported"));
    }
    errors
}

fn validate_rollout(strategy: &At<'_>) -> Vec<FieldError> {
    let rolling = strategy.at("rollingUpdate");
    match strategy.at("type").text() {
        "Recreate" if rolling.is_set() => {
            vec![rolling.forbidden("may not be specified when strategy `type` is 'Recreate'")]
        }
        "Recreate" => Vec::new(),
        "RollingUpdate" if rolling.is_set() => validate_rolling(&rolling),
        "RollingUpdate" => vec![rolling.required("this should be defaulted and never be nil")],
        _ => vec![strategy.at("type").unsupported(&["Recreate", "RollingUpdate"])],
    }
}

fn validate_rolling(rolling: &At<'_>) -> Vec<FieldError> {
    let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
    let mut errors = validate_share(&unavailable);
    errors.extend(validate_share(&surge));
    if share(unavailable.value) == Some(0) && share(surge.value) == Some(0) {
        errors.push(unavailable.invalid("may not be 0 when `maxSurge` is 0"));
    }
    if unavailable.value.is_string() && share(unavailable.value).is_some_and(|percent| percent > 100) {
        errors.push(unavailable.invalid("must not be greater than 100%"));
    }
    errors
}

/// A number or a percentage.
fn validate_share(at: &At<'_>) -> Vec<FieldError> {
    match at.value {
        Value::String(_) => at.check(names::percent),
        _ => at.not_negative().into_iter().collect(),
    }
}

fn share(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.strip_suffix('%')?.parse().ok())
}

fn validate_deadline(spec: &At<'_>) -> Vec<FieldError> {
    let deadline = spec.at("progressDeadlineSeconds");
    let mut errors: Vec<FieldError> = deadline.not_negative().into_iter().collect();
    let ready = spec.at("minReadySeconds").int().unwrap_or_default();
    if deadline.int().is_some_and(|seconds| seconds <= ready) {
        errors.push(deadline.invalid("must be greater than minReadySeconds"));
    }
    errors
}

/// As a new one, and whose pods are whose never changes.
fn validate_change(kind: &impl Strategy, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
    if context.subresource == Some("status") {
        return validate_status(object);
    }
    let mut errors = kind.validate_create(context, object);
    errors.extend(At::root(object).down(&["spec", "selector"]).immutable(old));
    errors
}

fn validate_status(object: &Value) -> Vec<FieldError> {
    let status = At::root(object).at("status");
    let counts = ["replicas", "fullyLabeledReplicas", "updatedReplicas", "readyReplicas", "availableReplicas"];
    let mut errors: Vec<FieldError> = counts.iter().filter_map(|field| status.at(field).not_negative()).collect();
    let count = |field: &str| status.at(field).int().unwrap_or_default();
    for field in ["readyReplicas", "availableReplicas", "updatedReplicas", "fullyLabeledReplicas"] {
        if count(field) > count("replicas") {
            let shown = count(field).into();
            errors.push(status.at(field).invalid_value(&shown, "cannot be greater than status.replicas"));
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let shown = count("availableReplicas").into();
        errors.push(status.at("availableReplicas").invalid_value(&shown, "cannot be greater than readyReplicas"));
    }
    errors
}

fn template_cells(object: &Value) -> [Value; 3] {
    let containers = items(object, "/spec/template/spec/containers");
    let of = |field: &str| json!(containers.iter().map(|c| text(c, field)).collect::<Vec<_>>().join(","));
    let selector = match selector_text(&object["spec"]["selector"]) {
        empty if empty.is_empty() => "<none>".to_owned(),
        selector => selector,
    };
    [of("/name"), of("/image"), json!(selector)]
}

/// A label selector as `kubectl get -l` reads it, in key order.
fn selector_text(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut terms: Vec<(String, String)> =
        labels.map(|(key, value)| (key.clone(), format!("{key}={}", value.as_str().unwrap_or_default()))).collect();
    for expression in items(selector, "/matchExpressions") {
        let key = text(expression, "/key");
        let mut values: Vec<&str> = items(expression, "/values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match text(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        terms.push((key.to_owned(), term));
    }
    terms.sort();
    terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(",")
}
