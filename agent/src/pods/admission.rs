//! The node's last word on a pod that the scheduler sent: does it fit? Pure, with upstream's reasons and messages.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;

use super::plan::{self, Role};
use super::resources::{Kind, milli};
use super::sandbox::is_host_network;
use super::status::Failure;

/// What the node has to give.
#[derive(Clone, Debug, Default)]
pub struct Capacity {
    pub milli_cpu: i64,
    pub memory: i64,
    pub pods: i64,
}

pub fn admit<'a>(
    pod: &core::Pod,
    others: impl Iterator<Item = &'a core::Pod> + Clone,
    capacity: &Capacity,
    labels: Option<&BTreeMap<String, String>>,
) -> Result<(), Failure> {
    let running = others.filter(|other| !is_over(other));
    let count = running.clone().count() as i64;
    enough("pods", 1, count, capacity.pods)?;
    for (name, total, divisor) in [("cpu", capacity.milli_cpu, 1), ("memory", capacity.memory, 1000)] {
        let requested = request(pod, name) / divisor;
        if requested > 0 {
            enough(name, requested, running.clone().map(|other| request(other, name) / divisor).sum(), total)?;
        }
    }
    if let Some(labels) = labels
        && !selects(pod, labels)
    {
        return Err(predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    let wanted = host_ports(pod);
    let taken: Vec<_> = running.flat_map(host_ports).collect();
    if wanted.iter().any(|port| taken.iter().any(|other| conflicts(port, other))) {
        return Err(predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
    }
    Ok(())
}

fn is_over(pod: &core::Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn enough(name: &str, requested: i64, used: i64, capacity: i64) -> Result<(), Failure> {
    if requested + used <= capacity {
        return Ok(());
    }
    let message =
        format!("Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}");
    Err(Failure { reason: format!("OutOf{name}"), message: format!("Pod was rejected: {message}") })
}

fn predicate(name: &str, why: &str) -> Failure {
    Failure { reason: name.into(), message: format!("Pod was rejected: Predicate {name} failed: {why}") }
}

/// The containers that run together, or the hungriest init container, whichever asks for more.
fn request(pod: &core::Pod, name: &str) -> i64 {
    let of = |container| milli(container, Kind::Request, name);
    let together: i64 =
        plan::containers(pod).filter(|(role, _)| *role != Role::Init).map(|(_, container)| of(container)).sum();
    let init = plan::containers(pod).filter(|(role, _)| *role == Role::Init).map(|(_, container)| of(container)).max();
    let overhead = pod.spec.as_ref().and_then(|spec| spec.overhead.as_ref()).and_then(|overhead| overhead.get(name));
    let overhead = overhead.and_then(|value| super::quantity::milli(&value.0)).unwrap_or(0) as i64;
    together.max(init.unwrap_or(0)) + overhead
}

type HostPort = (String, String, i32);

fn host_ports(pod: &core::Pod) -> Vec<HostPort> {
    let host_network = is_host_network(pod);
    let ports = plan::containers(pod).flat_map(|(_, container)| container.ports.iter().flatten());
    let port = |port: &core::ContainerPort| {
        let number = port.host_port.or(host_network.then_some(port.container_port)).filter(|&number| number > 0)?;
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        Some((protocol, port.host_ip.clone().unwrap_or_default(), number))
    };
    ports.filter_map(port).collect()
}

fn conflicts(a: &HostPort, b: &HostPort) -> bool {
    let any = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || any(&a.1) || any(&b.1))
}

fn selects(pod: &core::Pod, labels: &BTreeMap<String, String>) -> bool {
    let spec = pod.spec.as_ref();
    let mut selector = spec.iter().flat_map(|spec| spec.node_selector.iter().flatten());
    let affinity = spec.and_then(|spec| spec.affinity.as_ref()).and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let term = |term: &core::NodeSelectorTerm| {
        let fields_only = term.match_expressions.as_ref().is_none_or(Vec::is_empty);
        // Fields name the node itself, which the binding has settled.
        fields_only || term.match_expressions.iter().flatten().all(|requirement| meets(requirement, labels))
    };
    selector.all(|(key, value)| labels.get(key) == Some(value))
        && required.is_none_or(|required| required.node_selector_terms.iter().any(term))
}

fn meets(requirement: &core::NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    let listed = || requirement.values.iter().flatten().any(|other| Some(other) == value);
    let number = |text: Option<&String>| text.and_then(|text| text.parse::<i64>().ok());
    let bound = || number(requirement.values.iter().flatten().next());
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value).zip(bound()).is_some_and(|(value, bound)| value > bound),
        "Lt" => number(value).zip(bound()).is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> core::Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn asks(cpu: &str) -> core::Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
    }

    #[test]
    fn a_pod_that_does_not_fit_is_refused_with_the_reason() {
        let capacity = Capacity { milli_cpu: 2000, memory: 1 << 30, pods: 3 };
        let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
        let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
        let others = [asks("1500m"), pod(port.clone())];
        let judge =
            |pod: &core::Pod| admit(pod, others.iter(), &capacity, Some(&labels)).map_err(|failure| failure.reason);
        assert_eq!(judge(&asks("500m")), Ok(()));
        assert_eq!(judge(&asks("501m")), Err("OutOfcpu".into()));
        assert_eq!(judge(&pod(port)), Err("NodePorts".into()));
        let selector = |value| pod(json!({"containers": [], "nodeSelector": {"disk": value}}));
        assert_eq!(judge(&selector("ssd")), Ok(()));
        assert_eq!(judge(&selector("hdd")), Err("NodeAffinity".into()));
    }
}
