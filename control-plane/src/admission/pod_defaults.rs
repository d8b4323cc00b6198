//! DefaultTolerationSeconds and Priority: five minutes on a node that fails, and a priority for every pod.

use serde_json::{Value, json};

use crate::api::{
    object::text,
    status::{Failure, Outcome},
};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const SECONDS: u32 = 300;
/// Priority classes that always exist.
const CLASSES: &[(&str, i64)] = &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

pub fn create(pod: &mut Value) -> Outcome<()> {
    tolerate(pod);
    prioritize(pod)
}

/// A pod keeps its priority, and its tolerations when the writer left them out.
pub fn update(pod: &mut Value, old: &Value) {
    tolerate(pod);
    for key in ["priority", "preemptionPolicy"] {
        if pod["spec"].get(key).is_none()
            && let Some(value) = old["spec"].get(key)
        {
            pod["spec"][key] = value.clone();
        }
    }
}

fn tolerate(pod: &mut Value) {
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for key in [NOT_READY, UNREACHABLE] {
        let covered = |t: &Value| {
            let (own, effect) = (text(t, &["key"]), text(t, &["effect"]));
            (own == key || own.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        };
        if !tolerations.iter().any(covered) {
            tolerations.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
            }));
        }
    }
    pod["spec"]["tolerations"] = tolerations.into();
}

fn prioritize(pod: &mut Value) -> Outcome<()> {
    let class = text(pod, &["spec", "priorityClassName"]);
    let priority = match CLASSES.iter().find(|(name, _)| *name == class) {
        Some((_, priority)) => *priority,
        None if class.is_empty() => 0,
        None => {
            let why = format!("no PriorityClass with name {class} was found");
            return Err(Failure::forbidden("", "pods", text(pod, &["metadata", "name"]), why));
        }
    };
    let said = pod["spec"]["priority"].as_i64();
    if said.is_some_and(|said| said != priority) {
        let why =
            "the integer value of priority must not be provided in pod spec; priority admission controller computed ";
        let why = format!("{why}{priority} from the given PriorityClass name");
        return Err(Failure::forbidden("", "pods", text(pod, &["metadata", "name"]), why));
    }
    pod["spec"]["priority"] = priority.into();
    if !pod["spec"]["preemptionPolicy"].is_string() {
        pod["spec"]["preemptionPolicy"] = "PreemptLowerPriority".into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_tolerations_are_kept_and_missing_ones_added() {
        let mut pod =
            json!({"spec": {"tolerations": [{"key": NOT_READY, "operator": "Exists", "effect": "NoExecute"}]}});
        create(&mut pod).unwrap();
        let keys: Vec<_> = pod["spec"]["tolerations"].as_array().unwrap().iter().map(|t| text(t, &["key"])).collect();
        assert_eq!(keys, [NOT_READY, UNREACHABLE]);
        assert_eq!(pod["spec"]["priority"], 0);
    }
}
