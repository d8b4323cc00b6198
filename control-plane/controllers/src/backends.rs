//! The pods behind a Service, as both `endpoints` and `endpointslice` publish them.

use std::sync::Arc;

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod, Service, ServicePort},
        discovery::v1::EndpointPort,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Resource, ResourceExt};

use crate::{
    informer::{Informers, ObjectKey},
    objects::{contains, is_deleting},
    pods,
    queue::Queue,
};

pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// One pod that a Service selects and that has an address.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub address: String,
    pub pod: ObjectReference,
    pub node: Option<String>,
    pub hostname: Option<String>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// The Service's ports as this pod has them.
    pub ports: Vec<EndpointPort>,
}

/// `None`: the Service has no selector and somebody else writes its endpoints.
pub fn backends(service: &Service, pods: &[Arc<Pod>]) -> Option<Vec<Backend>> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty())?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let mut backends: Vec<_> =
        pods.iter().filter(|pod| contains(pod.labels(), selector)).filter_map(|pod| backend(service, pod)).collect();
    backends.sort_by(|a, b| a.pod.name.cmp(&b.pod.name));
    Some(backends)
}

fn backend(service: &Service, pod: &Pod) -> Option<Backend> {
    let spec = service.spec.as_ref()?;
    let address = pod.status.as_ref()?.pod_ip.clone().filter(|address| !address.is_empty())?;
    if pods::is_terminal(pod) {
        return None;
    }
    let (serving, terminating) = (pods::is_ready(pod), is_deleting(pod));
    let pod_spec = pod.spec.as_ref()?;
    let in_domain = pod_spec.subdomain.is_some() && pod_spec.subdomain == service.meta().name;
    Some(Backend {
        address,
        pod: ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.namespace(),
            name: Some(pod.name_any()),
            uid: pod.uid(),
            ..ObjectReference::default()
        },
        node: pods::node(pod).map(str::to_owned),
        hostname: pod_spec.hostname.clone().filter(|name| in_domain && !name.is_empty()),
        ready: (serving && !terminating) || spec.publish_not_ready_addresses == Some(true),
        serving,
        terminating,
        ports: spec.ports.iter().flatten().filter_map(|port| resolve(port, pod)).collect(),
    })
}

/// A named target port is each pod's own matter; a pod without that name does not have the port.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<EndpointPort> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => named_port(pod, name, protocol)?,
    };
    Some(EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(number),
        protocol: Some(protocol.into()),
        app_protocol: port.app_protocol.clone(),
    })
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let found =
        ports.find(|p| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)?;
    Some(found.container_port)
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// Wakes the Services that select a pod now or did before it changed.
pub fn wake_services(
    informers: Arc<Informers>,
    queue: Arc<Queue<ObjectKey>>,
) -> impl Fn(Option<&Arc<Pod>>, Option<&Arc<Pod>>) {
    move |before, after| {
        let Some(pod) = after.or(before) else { return };
        let selected = |service: &Service| {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            selector.is_some_and(|s| [before, after].into_iter().flatten().any(|pod| contains(pod.labels(), s)))
        };
        for service in informers.services.in_namespace(&pod.namespace().unwrap_or_default()) {
            if selected(&service) {
                queue.add(ObjectKey::of(service.as_ref()));
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default", "uid": "s"}, "spec": spec}))
            .unwrap()
    }

    pub fn pod(name: &str, ip: &str, extra: Value) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]}
        });
        json_patch_merge(&mut value, &extra);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn json_patch_merge(target: &mut Value, patch: &Value) {
        match (target, patch) {
            (Value::Object(target), Value::Object(patch)) => {
                for (key, value) in patch {
                    json_patch_merge(target.entry(key).or_insert(Value::Null), value);
                }
            }
            (target, patch) => *target = patch.clone(),
        }
    }

    #[test]
    fn a_backend_is_ready_serving_and_terminating_as_its_pod_is() {
        let service = service(json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}));
        let pods = [
            pod("a", "10.0.0.1", json!({})),
            pod("b", "10.0.0.2", json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})),
            pod("c", "10.0.0.3", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
            pod("d", "10.0.0.4", json!({"status": {"phase": "Succeeded"}})),
            pod("e", "", json!({})),
            pod("f", "10.0.0.6", json!({"metadata": {"labels": {"app": "other"}}})),
        ];
        let found: Vec<_> = backends(&service, &pods)
            .unwrap()
            .into_iter()
            .map(|b| (b.pod.name.unwrap(), b.ready, b.serving, b.terminating, b.ports[0].port))
            .collect();
        assert_eq!(
            found,
            [
                ("a".into(), true, true, false, Some(8080)),
                ("b".into(), false, false, false, Some(8080)),
                ("c".into(), false, true, true, Some(8080)),
            ]
        );
    }

    #[test]
    fn a_service_without_selector_is_not_ours() {
        assert_eq!(backends(&service(json!({"ports": [{"port": 80}]})), &[]), None);
        let external = json!({"type": "ExternalName", "selector": {"app": "web"}});
        assert_eq!(backends(&service(external), &[]), None);
    }
}
