//! What a pod needs of a node: computed once per pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use super::quantity::milli;

/// Thousandths of each requested resource.
pub type Resources = BTreeMap<String, i64>;

/// What scoring assumes of a container that requests nothing: upstream's 100m and 200 MB.
const USUAL_CPU: i64 = 100;
const USUAL_MEMORY: i64 = 200 * 1024 * 1024 * 1000;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    pub requests: Resources,
    /// For scoring: cpu and memory as if nobody had forgotten to say.
    pub usual: [i64; 2],
    /// Protocol, host address ("" for all), port.
    pub ports: Vec<(String, String, i32)>,
}

pub fn demand(pod: &Pod) -> Demand {
    let Some(spec) = pod.spec.as_ref() else { return Demand::default() };
    let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let running = || spec.containers.iter().chain(init.iter().filter(is_sidecar));

    let mut requests = Resources::new();
    running().for_each(|container| add(&mut requests, &requested(container.resources.as_ref())));
    let mut sidecars = Resources::new();
    for container in init {
        let mut peak = requested(container.resources.as_ref());
        if is_sidecar(&container) {
            add(&mut sidecars, &peak);
        } else {
            add(&mut peak, &sidecars);
            raise(&mut requests, &peak);
        }
    }
    requests.extend(requested(spec.resources.as_ref()));
    if let Some(overhead) = &spec.overhead {
        add(&mut requests, &overhead.iter().map(|(name, quantity)| (name.clone(), milli(quantity))).collect());
    }
    let usual = running().map(|container| requested(container.resources.as_ref())).fold([0, 0], |[cpu, memory], r| {
        [cpu + r.get("cpu").unwrap_or(&USUAL_CPU), memory + r.get("memory").unwrap_or(&USUAL_MEMORY)]
    });
    Demand { requests, usual, ports: running().flat_map(host_ports).collect() }
}

fn requested(resources: Option<&ResourceRequirements>) -> Resources {
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    requests.into_iter().flatten().map(|(name, quantity)| (name.clone(), milli(quantity))).collect()
}

fn host_ports(container: &Container) -> impl Iterator<Item = (String, String, i32)> + '_ {
    container.ports.iter().flatten().filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let address = port.host_ip.clone().filter(|address| address != "0.0.0.0").unwrap_or_default();
        Some((port.protocol.clone().unwrap_or_else(|| "TCP".into()), address, number))
    })
}

pub fn add(total: &mut Resources, more: &Resources) {
    for (name, amount) in more {
        let entry = total.entry(name.clone()).or_default();
        *entry = entry.saturating_add(*amount);
    }
}

pub fn subtract(total: &mut Resources, less: &Resources) {
    for (name, amount) in less {
        let entry = total.entry(name.clone()).or_default();
        *entry = entry.saturating_sub(*amount);
    }
}

fn raise(total: &mut Resources, to: &Resources) {
    for (name, amount) in to {
        let entry = total.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn init_containers_count_by_their_peak_and_sidecars_always() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}, {"name": "b"}],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "2"}}}
            ],
            "overhead": {"cpu": "100m"}
        }}))
        .unwrap();
        assert_eq!(demand(&pod).requests["cpu"], 2600, "max(1 + 0.5, 2 + 0.5) + 0.1");
        assert_eq!(demand(&pod).usual[0], 1000 + 100 + 500);
    }
}
