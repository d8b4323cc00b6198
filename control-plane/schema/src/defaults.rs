//! Defaults: what upstream's API server fills in before admission and validation sees an object.
//!
//! A walk over the schema: constants from `defaults.txt`, then the type's function where a default depends on something,
//! then the fields, so that a parent's default is completed by its children. Called on decoded objects; idempotent.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::definition::{Definition, Field, Shape};
use crate::quantity::Quantity;

type Object = Map<String, Value>;

static CONSTANTS: LazyLock<HashMap<&'static str, Vec<(&'static str, Value)>>> = LazyLock::new(|| {
    let mut constants: HashMap<_, Vec<_>> = HashMap::new();
    for line in include_str!("defaults.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().expect("a line of defaults.txt has three words");
        let (name, field) = (word(), word());
        let value = serde_json::from_str(word()).expect("a default is JSON");
        constants.entry(name).or_default().push((field, value));
    }
    constants
});

/// Sets the defaults of a decoded object.
pub fn set_defaults(definition: &Definition, value: &mut Value) {
    if let Value::Object(object) = value {
        default_object(definition, object);
    }
}

/// The constant that a field gets when it is absent: list keys may rely on it.
pub(crate) fn constant(definition: &Definition, field: &str) -> Option<&'static Value> {
    CONSTANTS.get(definition.short())?.iter().find(|(name, _)| *name == field).map(|(_, value)| value)
}

fn default_object(definition: &Definition, object: &mut Object) {
    for (name, value) in CONSTANTS.get(definition.short()).into_iter().flatten() {
        if definition.field(name).is_some_and(|field| is_absent(field, object.get(*name))) {
            object.insert((*name).to_owned(), value.clone());
        }
    }
    default_by_type(definition.short(), object);
    for field in definition.fields() {
        if let Some(value) = object.get_mut(field.name) {
            default_shape(&field.shape, value);
        }
    }
}

fn default_shape(shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(id), Value::Object(object)) => default_object(id.definition(), object),
        (Shape::List(item), Value::Array(items)) => items.iter_mut().for_each(|value| default_shape(item, value)),
        (Shape::Map(inner), Value::Object(map)) => map.values_mut().for_each(|value| default_shape(inner, value)),
        (Shape::Quantity, Value::String(text)) => round_to_milli(text),
        _ => {}
    }
}

/// Zero values of what is no pointer count as absent.
fn is_absent(field: &Field, value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty() && !field.pointer,
        Some(Value::Number(number)) => number.as_i64() == Some(0) && !field.pointer,
        Some(Value::Array(items)) => items.is_empty(),
        _ => false,
    }
}

fn default_by_type(name: &str, object: &mut Object) {
    match name {
        "apiextensions.v1.CustomResourceDefinitionSpec" => default_custom_resource(object),
        "apps.v1.DaemonSetSpec" => default_update_strategy(object, "updateStrategy"),
        "apps.v1.DeploymentSpec" => default_update_strategy(object, "strategy"),
        "apps.v1.StatefulSetSpec" => default_stateful_set(object),
        "autoscaling.v2.HorizontalPodAutoscalerSpec" => default_autoscaler(object),
        "batch.v1.Job" => default_job(object),
        "core.v1.Container" | "core.v1.EphemeralContainer" => default_pull_policy(object, "image", "imagePullPolicy"),
        "core.v1.ImageVolumeSource" => default_pull_policy(object, "reference", "pullPolicy"),
        "core.v1.LimitRangeItem" => default_limit_range(object),
        "core.v1.Namespace" => default_namespace(object),
        "core.v1.NodeStatus" => copy_if_absent(object, "capacity", "allocatable"),
        "core.v1.Pod" => default_pod(object),
        "core.v1.PodSpec" => default_service_account(object),
        "core.v1.ReplicationController" => default_replication_controller(object),
        "core.v1.Secret" => take_string_data(object),
        "core.v1.Service" => default_service(object),
        "core.v1.Volume" => default_volume(object),
        "networking.v1.NetworkPolicySpec" => default_network_policy(object),
        "rbac.v1.Subject" => default_subject(object),
        "resource.v1.ExactDeviceRequest" | "resource.v1.DeviceSubRequest" => default_device_count(object),
        _ => {}
    }
}

fn text<'a>(object: &'a Object, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Absent, null or empty.
fn lacks(object: &Object, key: &str) -> bool {
    match object.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::String(text)) => text.is_empty(),
        _ => false,
    }
}

fn set(object: &mut Object, key: &str, value: impl Into<Value>) {
    object.insert(key.to_owned(), value.into());
}

fn set_if_null(object: &mut Object, key: &str, value: impl Into<Value>) {
    if object.get(key).is_none_or(Value::is_null) {
        set(object, key, value);
    }
}

/// The object under `key`, made if there is none.
fn inner<'a>(object: &'a mut Object, key: &str) -> &'a mut Object {
    let slot = object.entry(key).or_insert_with(|| json!({}));
    if !slot.is_object() {
        *slot = json!({});
    }
    slot.as_object_mut().expect("it was made an object above")
}

fn copy_if_absent(object: &mut Object, from: &str, to: &str) {
    if let Some(value) = object.get(from).filter(|value| !value.is_null()).cloned() {
        set_if_null(object, to, value);
    }
}

fn copy_missing(from: &Object, to: &mut Object) {
    for (key, value) in from {
        to.entry(key).or_insert_with(|| value.clone());
    }
}

/// Resources finer than a thousandth are rounded up.
fn round_to_milli(text: &mut String) {
    if let Ok(quantity) = Quantity::parse(text)
        && quantity.nano_value() % 1_000_000 != 0
    {
        *text = quantity.rounded_to_milli().canonical();
    }
}

fn default_custom_resource(spec: &mut Object) {
    if lacks(spec, "conversion") {
        set(spec, "conversion", json!({"strategy": "None"}));
    }
    let names = inner(spec, "names");
    let kind = text(names, "kind").to_owned();
    if lacks(names, "singular") {
        set(names, "singular", kind.to_lowercase());
    }
    if lacks(names, "listKind") && !kind.is_empty() {
        set(names, "listKind", format!("{kind}List"));
    }
}

fn default_update_strategy(spec: &mut Object, key: &str) {
    let strategy = inner(spec, key);
    if matches!(text(strategy, "type"), "" | "RollingUpdate") {
        set_if_null(strategy, "rollingUpdate", json!({}));
    }
}

fn default_stateful_set(spec: &mut Object) {
    default_update_strategy(spec, "updateStrategy");
    for claim in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(claim) = claim {
            set(claim, "apiVersion", "v1");
            set(claim, "kind", "PersistentVolumeClaim");
        }
    }
}

fn default_autoscaler(spec: &mut Object) {
    if lacks(spec, "metrics") {
        let target = json!({"type": "Utilization", "averageUtilization": 80});
        set(spec, "metrics", json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]));
    }
    let Some(Value::Object(behavior)) = spec.get_mut("behavior") else { return };
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    let up = inner(behavior, "scaleUp");
    set_if_null(up, "stabilizationWindowSeconds", 0);
    set_if_null(up, "selectPolicy", "Max");
    set_if_null(up, "policies", json!([pods, percent]));
    let down = inner(behavior, "scaleDown");
    set_if_null(down, "selectPolicy", "Max");
    set_if_null(down, "policies", json!([percent]));
}

/// Only of a job itself: the template of a cron job stays as it was written.
fn default_job(job: &mut Object) {
    let labels = job.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
    if let Some(labels) = labels {
        let metadata = inner(job, "metadata");
        if lacks(metadata, "labels") {
            set(metadata, "labels", labels);
        }
    }
    let spec = inner(job, "spec");
    if lacks(spec, "completions") && lacks(spec, "parallelism") {
        set(spec, "completions", 1);
    }
    set_if_null(spec, "parallelism", 1);
    let per_index = !lacks(spec, "backoffLimitPerIndex");
    set_if_null(spec, "backoffLimit", if per_index { i32::MAX } else { 6 });
    set_if_null(spec, "completionMode", "NonIndexed");
    set_if_null(spec, "suspend", false);
    set_if_null(spec, "manualSelector", false);
    let replacement = if lacks(spec, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    set_if_null(spec, "podReplacementPolicy", replacement);
}

/// `Always` for the tag `latest`, given or implied; a digest alone has no tag.
fn default_pull_policy(object: &mut Object, image: &str, policy: &str) {
    if lacks(object, policy) {
        let latest = is_latest(text(object, image));
        set(object, policy, if latest { "Always" } else { "IfNotPresent" });
    }
}

fn is_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_none() && !image.is_empty(),
    }
}

fn default_limit_range(item: &mut Object) {
    if text(item, "type") != "Container" {
        return;
    }
    for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
        if let Some(Value::Object(source)) = item.get(from).cloned() {
            copy_missing(&source, inner(item, to));
        }
    }
}

fn default_namespace(namespace: &mut Object) {
    let metadata = inner(namespace, "metadata");
    let name = text(metadata, "name").to_owned();
    if !name.is_empty() {
        set(inner(metadata, "labels"), "kubernetes.io/metadata.name", name);
    }
}

fn default_pod(pod: &mut Object) {
    let spec = inner(pod, "spec");
    set_if_null(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Value::Object(container) = container {
                request_limits(container);
                if host_network {
                    open_host_ports(container);
                }
            }
        }
    }
    if spec.contains_key("resources") {
        request_limits(spec);
    }
}

/// What is limited and not requested is requested up to its limit.
fn request_limits(holder: &mut Object) {
    let Some(Value::Object(resources)) = holder.get_mut("resources") else { return };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    copy_missing(&limits, inner(resources, "requests"));
}

fn open_host_ports(container: &mut Object) {
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(port) = port {
            copy_if_absent(port, "containerPort", "hostPort");
        }
    }
}

/// The deprecated `serviceAccount` always says the same as `serviceAccountName`.
fn default_service_account(spec: &mut Object) {
    if lacks(spec, "serviceAccountName") && !lacks(spec, "serviceAccount") {
        let name = text(spec, "serviceAccount").to_owned();
        set(spec, "serviceAccountName", name);
    }
    if !lacks(spec, "serviceAccountName") {
        let name = text(spec, "serviceAccountName").to_owned();
        set(spec, "serviceAccount", name);
    }
}

fn default_replication_controller(controller: &mut Object) {
    let labels = controller.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
    let Some(labels) = labels else { return };
    for key in ["spec/selector", "metadata/labels"] {
        let (holder, field) = key.split_once('/').expect("both keys have two parts");
        let holder = inner(controller, holder);
        if lacks(holder, field) {
            set(holder, field, labels.clone());
        }
    }
}

/// `stringData` is a convenience of writers: it overrides `data` and is never stored.
fn take_string_data(secret: &mut Object) {
    let Some(Value::Object(plain)) = secret.remove("stringData") else { return };
    let data = inner(secret, "data");
    for (key, value) in &plain {
        set(data, key, STANDARD.encode(value.as_str().unwrap_or_default()));
    }
}

fn default_service(service: &mut Object) {
    let spec = inner(service, "spec");
    default_affinity(spec);
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(port) = port
            && (lacks(port, "targetPort") || port["targetPort"] == 0)
        {
            let number = port.get("port").cloned().unwrap_or_default();
            set(port, "targetPort", number);
        }
    }
    let kind = if lacks(spec, "type") { "ClusterIP" } else { text(spec, "type") }.to_owned();
    let external =
        matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && !lacks(spec, "externalIPs"));
    if external && lacks(spec, "externalTrafficPolicy") {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        set_if_null(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set_if_null(spec, "allocateLoadBalancerNodePorts", true);
        default_ip_mode(service);
    }
}

fn default_affinity(spec: &mut Object) {
    if text(spec, "sessionAffinity") != "ClientIP" {
        spec.remove("sessionAffinityConfig");
        return;
    }
    let client = inner(inner(spec, "sessionAffinityConfig"), "clientIP");
    set_if_null(client, "timeoutSeconds", 10800);
}

fn default_ip_mode(service: &mut Object) {
    let ingress = service.get_mut("status").and_then(|status| status.pointer_mut("/loadBalancer/ingress"));
    for address in ingress.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(address) = address
            && !lacks(address, "ip")
        {
            set_if_null(address, "ipMode", "VIP");
        }
    }
}

/// A volume without a source is an empty directory.
fn default_volume(volume: &mut Object) {
    if !volume.iter().any(|(key, value)| key != "name" && !value.is_null()) {
        set(volume, "emptyDir", json!({}));
    }
}

fn default_network_policy(spec: &mut Object) {
    if lacks(spec, "policyTypes") {
        let types = if lacks(spec, "egress") { json!(["Ingress"]) } else { json!(["Ingress", "Egress"]) };
        set(spec, "policyTypes", types);
    }
}

fn default_subject(subject: &mut Object) {
    if lacks(subject, "apiGroup") && matches!(text(subject, "kind"), "User" | "Group") {
        set(subject, "apiGroup", "rbac.authorization.k8s.io");
    }
}

fn default_device_count(request: &mut Object) {
    if text(request, "allocationMode") == "ExactCount" && request.get("count").is_none_or(|count| *count == 0) {
        set(request, "count", 1);
    }
}

#[cfg(test)]
mod tests;
