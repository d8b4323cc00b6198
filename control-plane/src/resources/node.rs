//! Nodes: new ones are tainted until they are ready; what `kubectl get nodes` shows.

use jiff::Timestamp;
use leme_schema::names;
use serde_json::{Value, json};

use super::{
    Context, FieldError, Strategy, age,
    field::{At, items, or_none, restore, split_status, text},
};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Labels of Kubernetes' own that an agent may give to its node, and whole domains of them.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];
const OWN_DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
const OTHERS_DOMAINS: &[&str] = &["kubernetes.io", "k8s.io"];

/// Whether an agent may set this label on its own node: of Kubernetes' labels only those that cannot draw other people's
/// pods to it. `node-role.kubernetes.io/…` is for administrators.
pub fn may_label_itself(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let within = |of: &&str| domain == *of || domain.strip_suffix(*of).is_some_and(|rest| rest.ends_with('.'));
    !OTHERS_DOMAINS.iter().any(&within) || OWN_LABELS.contains(&key) || OWN_DOMAINS.iter().any(within)
}

pub(super) struct Node;

impl Strategy for Node {
    /// The taint keeps pods away until the node has said that it is ready (upstream: TaintNodesByCondition).
    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        if !object["spec"].is_object() {
            object["spec"] = json!({});
        }
        let tainted =
            items(object, "/spec/taints").iter().any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule");
        if !tainted {
            let mut taints = items(object, "/spec/taints").to_vec();
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
            object["spec"]["taints"] = taints.into();
        }
    }

    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        // A status writer may also set labels and annotations (the kubelet does), never the spec.
        match context.subresource {
            Some("status") => restore(object, old, "spec"),
            other => split_status(other, object, old),
        }
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let spec = At::root(object).at("spec");
        let mut errors = validate_taints(&spec.at("taints"));
        errors.extend(validate_pod_cidrs(&spec));
        errors
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let spec = At::root(object).at("spec");
        let mut errors = self.validate_create(context, object);
        if old["spec"].get("podCIDR").is_some() && spec.value.get("podCIDRs") != old["spec"].get("podCIDRs") {
            errors.push(spec.at("podCIDRs").forbidden("node updates may not change podCIDR except from \"\" to valid"));
        }
        if !text(old, "/spec/providerID").is_empty() && spec.at("providerID").text() != text(old, "/spec/providerID") {
            errors.push(
                spec.at("providerID").forbidden("node updates may not change providerID except from \"\" to valid"),
            );
        }
        errors
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let metadata = &object["metadata"];
        let info = |field: &str| match text(object, &format!("/status/nodeInfo/{field}")) {
            "" => json!("<unknown>"),
            known => json!(known),
        };
        vec![
            metadata["name"].clone(),
            json!(status(object)),
            json!(roles(object)),
            json!(age(metadata.get("creationTimestamp"), now)),
            json!(text(object, "/status/nodeInfo/kubeletVersion")),
            address(object, "InternalIP"),
            address(object, "ExternalIP"),
            info("osImage"),
            info("kernelVersion"),
            info("containerRuntimeVersion"),
        ]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "spec.unschedulable")
            .then(|| object["spec"]["unschedulable"].as_bool().unwrap_or_default().to_string())
    }
}

fn validate_taints(taints: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for taint in taints.items() {
        let (key, value, effect) = (taint.at("key"), taint.at("value"), taint.at("effect"));
        errors.extend(key.check(names::qualified_name));
        errors.extend(value.check(names::label_value));
        errors.extend(effect.one_of(EFFECTS));
        if seen.contains(&(key.text(), effect.text())) {
            errors.push(taint.duplicate());
        }
        seen.push((key.text(), effect.text()));
    }
    errors
}

fn validate_pod_cidrs(spec: &At<'_>) -> Vec<FieldError> {
    let cidrs = spec.at("podCIDRs");
    let mut errors: Vec<FieldError> = cidrs.items().flat_map(|cidr| cidr.check(names::cidr)).collect();
    let count = cidrs.items().count();
    if count > 2 {
        errors.push(cidrs.invalid("may specify no more than one CIDR for each IP family"));
    }
    errors
}

fn status(object: &Value) -> String {
    let ready = items(object, "/status/conditions").iter().find(|c| c["type"] == "Ready");
    let word = match ready.map(|c| &c["status"]) {
        Some(status) if status == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let cordoned = object["spec"]["unschedulable"].as_bool().unwrap_or_default();
    if cordoned { format!("{word},SchedulingDisabled") } else { word.to_owned() }
}

fn roles(object: &Value) -> String {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    let role = |(key, value): (&String, &Value)| match key.strip_prefix(ROLE_PREFIX) {
        Some(role) if !role.is_empty() => Some(role.to_owned()),
        _ if key == ROLE_LABEL => value.as_str().filter(|role| !role.is_empty()).map(str::to_owned),
        _ => None,
    };
    let mut roles: Vec<String> = labels.filter_map(role).collect();
    roles.sort();
    roles.dedup();
    if roles.is_empty() { "<none>".into() } else { roles.join(",") }
}

fn address(object: &Value, kind: &str) -> Value {
    let found = items(object, "/status/addresses").iter().find(|a| a["type"] == kind);
    or_none(found.and_then(|a| a["address"].as_str()).unwrap_or_default())
}
