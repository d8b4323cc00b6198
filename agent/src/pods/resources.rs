//! Requests and limits as the kernel takes them, and the quality of service that follows from them.

use std::collections::HashMap;

use k8s_cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{plan, quantity};

pub const CPU_PERIOD: i64 = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The API writes the class into the status when it takes the pod in; computed for pods that come otherwise.
pub fn qos(pod: &core::Pod) -> Qos {
    match pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        Some("Guaranteed") => return Qos::Guaranteed,
        Some("Burstable") => return Qos::Burstable,
        Some("BestEffort") => return Qos::BestEffort,
        _ => {}
    }
    let both = ["cpu", "memory"];
    let set = |container: &core::Container, name| {
        (milli(container, Kind::Request, name), milli(container, Kind::Limit, name))
    };
    let mut all = plan::containers(pod).map(|(_, container)| container).peekable();
    let nothing = |container: &core::Container| both.iter().all(|name| set(container, name) == (0, 0));
    if plan::containers(pod).all(|(_, container)| nothing(container)) || all.peek().is_none() {
        return Qos::BestEffort;
    }
    let equal = |container: &core::Container| {
        both.iter().all(|name| {
            let (request, limit) = set(container, name);
            limit > 0 && (request == limit || request == 0)
        })
    };
    if all.all(equal) { Qos::Guaranteed } else { Qos::Burstable }
}

#[derive(Clone, Copy)]
pub enum Kind {
    Request,
    Limit,
}

/// Thousandths; zero where nothing is set.
pub fn milli(container: &core::Container, kind: Kind, name: &str) -> i64 {
    let resources = container.resources.as_ref();
    let list = resources.and_then(|resources| match kind {
        Kind::Request => resources.requests.as_ref(),
        Kind::Limit => resources.limits.as_ref(),
    });
    let value = list.and_then(|list| list.get(name)).and_then(|Quantity(text)| quantity::milli(text));
    value.and_then(|value| i64::try_from(value).ok()).unwrap_or(0)
}

fn bytes(container: &core::Container, kind: Kind) -> i64 {
    milli(container, kind, "memory") / 1000
}

/// What runc is given for one container.
pub fn of_container(
    pod: &core::Pod,
    container: &core::Container,
    node_memory: i64,
    unified: bool,
) -> LinuxContainerResources {
    let limit = milli(container, Kind::Limit, "cpu");
    let request = milli(container, Kind::Request, "cpu");
    let memory = bytes(container, Kind::Limit);
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: cpu_quota(limit),
        cpu_shares: cpu_shares(if request == 0 { limit } else { request }),
        memory_limit_in_bytes: memory,
        memory_swap_limit_in_bytes: memory,
        oom_score_adj: oom_score_adj(pod, container, node_memory),
        // Upstream kills the whole container, where the kernel can.
        unified: if unified { HashMap::from([("memory.oom.group".into(), "1".into())]) } else { HashMap::new() },
        ..Default::default()
    }
}

pub fn cpu_shares(milli: i64) -> i64 {
    (milli * 1024 / 1000).clamp(2, 262_144)
}

/// Zero is no quota.
pub fn cpu_quota(milli: i64) -> i64 {
    if milli == 0 { 0 } else { (milli * CPU_PERIOD / 1000).max(1000) }
}

/// The less of its request a container leaves unused, the safer it is (the kubelet's policy).
fn oom_score_adj(pod: &core::Pod, container: &core::Container, node_memory: i64) -> i64 {
    let critical = pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|priority| priority >= 2_000_000_000);
    match qos(pod) {
        _ if critical => -997,
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => (1000 - 1000 * bytes(container, Kind::Request) / node_memory.max(1)).clamp(3, 999),
    }
}

/// The pod's own bounds: (shares, quota, memory limit), zero where a container sets no limit.
pub fn of_pod(pod: &core::Pod) -> (i64, i64, i64) {
    let apps = || plan::containers(pod).filter(|(role, _)| *role != plan::Role::Init).map(|(_, container)| container);
    let total = |name| {
        let limits: Vec<i64> = apps().map(|container| milli(container, Kind::Limit, name)).collect();
        let init = plan::containers(pod).map(|(_, container)| milli(container, Kind::Limit, name)).max().unwrap_or(0);
        if limits.contains(&0) { 0 } else { limits.iter().sum::<i64>().max(init) }
    };
    let requests = apps().map(|container| milli(container, Kind::Request, "cpu")).sum();
    (cpu_shares(requests), cpu_quota(total("cpu")), total("memory") / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(resources: serde_json::Value) -> core::Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})).unwrap()
    }

    #[test]
    fn requests_and_limits_become_shares_quota_and_bytes() {
        let pod = pod(json!({"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}}));
        let got = of_container(&pod, &pod.spec.as_ref().unwrap().containers[0], 10 << 30, false);
        assert_eq!((got.cpu_shares, got.cpu_quota, got.memory_limit_in_bytes), (256, 100_000, 2 << 30));
        assert_eq!(got.oom_score_adj, 900);
        assert_eq!(of_pod(&pod), (256, 100_000, 2 << 30));
    }

    #[test]
    fn the_class_follows_from_requests_and_limits() {
        for (resources, expected) in [
            (json!({}), Qos::BestEffort),
            (json!({"requests": {"cpu": "1"}}), Qos::Burstable),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), Qos::Guaranteed),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), Qos::Burstable),
        ] {
            assert_eq!(qos(&pod(resources.clone())), expected, "{resources}");
        }
    }
}
