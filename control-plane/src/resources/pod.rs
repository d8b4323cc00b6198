//! Pods: what a writer may set and change, how long one may take to go, and how it is bound to a node.

mod cells;
mod containers;
mod scheduling;
mod update;
mod validation;
mod volumes;

use jiff::Timestamp;
use leme_schema::quantity::Quantity;
use serde_json::{Value, json};

use super::{
    Context, FieldError, Strategy,
    field::{At, bump_generation, items, restore, set_generation, split_status, text},
};

pub(super) use validation::validate_spec;

pub(super) const FIELDS: &[&str] = &[
    "spec.hostNetwork",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.nominatedNodeName",
    "status.phase",
    "status.podIP",
    "status.podIPs",
];

pub(super) struct Pod;

/// Why a Binding was refused.
#[derive(Clone, Debug, PartialEq)]
pub enum BindError {
    /// The Binding itself is wrong: answered with 422.
    Invalid(Vec<FieldError>),
    /// The pod cannot be bound now: answered as a conflict on `pods/binding`.
    Conflict(String),
}

impl Strategy for Pod {
    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        set_generation(object, 1);
        object["status"] = json!({"phase": "Pending", "qosClass": quality(object)});
        if !items(object, "/spec/schedulingGates").is_empty() {
            object["status"]["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "lastProbeTime": null,
                "lastTransitionTime": null, "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
    }

    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        split_status(context.subresource, object, old);
        match context.subresource {
            Some("status") => restore(&mut object["status"], &old["status"], "qosClass"),
            _ => bump_generation(object, old, &["spec"]),
        }
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let spec = At::root(object).at("spec");
        let mut errors = validate_spec(&spec);
        if !items(object, "/spec/ephemeralContainers").is_empty() {
            errors.push(spec.at("ephemeralContainers").forbidden("cannot be set on create"));
        }
        if !spec.at("nodeName").is_empty() && !spec.at("schedulingGates").is_empty() {
            errors.push(spec.at("nodeName").forbidden("cannot be set until all schedulingGates have been cleared"));
        }
        errors
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        match context.subresource {
            Some("status") => update::validate_status(object, old),
            _ => update::validate(object, old),
        }
    }

    fn grace_period(&self, object: &Value, asked: Option<i64>) -> i64 {
        let own = object["spec"]["terminationGracePeriodSeconds"].as_i64();
        let over = matches!(text(object, "/status/phase"), "Succeeded" | "Failed");
        match asked.or(own).unwrap_or_default() {
            _ if over || text(object, "/spec/nodeName").is_empty() => 0,
            ..0 => 1,
            seconds => seconds,
        }
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        cells::cells(object, now)
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        match path {
            "spec.hostNetwork" => Some(object["spec"]["hostNetwork"].as_bool().unwrap_or_default().to_string()),
            "status.podIPs" => {
                let all: Vec<&str> = items(object, "/status/podIPs").iter().map(|ip| text(ip, "/ip")).collect();
                Some(all.join(","))
            }
            path if FIELDS.contains(&path) => Some(text(object, &format!("/{}", path.replace('.', "/"))).to_owned()),
            _ => None,
        }
    }
}

/// Assigns the pod to the node that the Binding names; its annotations and labels go to the pod.
pub fn bind(pod: &mut Value, binding: &Value, now: Timestamp) -> Result<(), BindError> {
    let target = At::root(binding).at("target");
    let (kind, node) = (target.at("kind"), target.at("name"));
    if !matches!(kind.text(), "" | "Node") {
        return Err(BindError::Invalid(vec![kind.unsupported(&["Node", "<empty>"])]));
    }
    if node.is_empty() {
        return Err(BindError::Invalid(vec![node.required("")]));
    }
    refuse_binding(pod).map_err(BindError::Conflict)?;
    pod["spec"]["nodeName"] = node.value.clone();
    for field in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][field].as_object().into_iter().flatten() {
            pod["metadata"][field][key] = value.clone();
        }
    }
    mark_scheduled(pod, now);
    Ok(())
}

fn refuse_binding(pod: &Value) -> Result<(), String> {
    let name = text(pod, "/metadata/name");
    if pod["metadata"].get("deletionTimestamp").is_some_and(|t| !t.is_null()) {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    match text(pod, "/spec/nodeName") {
        "" => {}
        node => return Err(format!("pod {name} is already assigned to node {node:?}")),
    }
    if !items(pod, "/spec/schedulingGates").is_empty() {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    Ok(())
}

fn mark_scheduled(pod: &mut Value, now: Timestamp) {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let mut conditions = items(pod, "/status/conditions").to_vec();
    conditions.retain(|c| c["type"] != "PodScheduled");
    conditions.push(condition);
    pod["status"]["conditions"] = conditions.into();
}

/// The quality-of-service class: by what its containers ask of cpu and memory.
fn quality(object: &Value) -> &'static str {
    const COUNTED: [&str; 2] = ["cpu", "memory"];
    let containers = || items(object, "/spec/containers").iter().chain(items(object, "/spec/initContainers"));
    let amount = |container: &Value, list: &str, name: &str| {
        let text = container["resources"][list][name].as_str()?;
        Quantity::parse(text).ok().map(Quantity::nano_value).filter(|nano| *nano != 0)
    };
    let asks = |c: &Value| {
        COUNTED.iter().any(|name| amount(c, "requests", name).is_some() || amount(c, "limits", name).is_some())
    };
    let fixed = |c: &Value| {
        COUNTED.iter().all(|name| {
            let limit = amount(c, "limits", name);
            limit.is_some() && amount(c, "requests", name).is_none_or(|request| Some(request) == limit)
        })
    };
    match (containers().any(asks), containers().all(fixed)) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests;
