//! Endpoints: the older form of EndpointSlices, still read by many clients.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use tokio_util::sync::CancellationToken;

use crate::{
    backends::{Backend, HEADLESS, backends, is_headless, wake_services},
    informer::{Informers, ObjectKey, wake_self},
    objects::{Labels, is_deleting},
    queue::{Next, Outcome, Queue, is_conflict, unless_gone},
};

const WORKERS: usize = 5;
/// Upstream's limit for one object; readers of more use slices.
const CAPACITY: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";

struct Controller {
    client: Client,
    informers: Arc<Informers>,
}

pub fn start(client: Client, informers: Arc<Informers>, shutdown: CancellationToken) -> impl Future<Output = ()> {
    let queue = Queue::new();
    informers.services.on_change(wake_self(queue.adder()));
    informers.endpoints.on_change(wake_self(queue.adder()));
    informers.pods.on_change(wake_services(informers.clone(), queue.clone()));
    let controller = Arc::new(Controller { client, informers: informers.clone() });
    async move {
        informers.services.wait_until_synced().await;
        informers.pods.wait_until_synced().await;
        informers.endpoints.wait_until_synced().await;
        let reconcile = move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(key).await }
        };
        queue.run("endpoints", WORKERS, shutdown, reconcile).await;
    }
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Outcome {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let current = self.informers.endpoints.get(&key);
        let service = self.informers.services.get(&key).filter(|service| !is_deleting(service.as_ref()));
        let Some(service) = service else {
            if current.is_some_and(|endpoints| endpoints.labels().contains_key(MANAGED_BY)) {
                unless_gone(api.delete(&key.name, &Default::default()).await)?;
            }
            return Ok(Next::Wait);
        };
        let pods = self.informers.pods.in_namespace(&key.namespace);
        let Some(backends) = backends(&service, &pods) else { return Ok(Next::Wait) };
        let wanted = endpoints(&service, &backends);
        match current {
            Some(current) if current.subsets == wanted.subsets && current.labels() == wanted.labels() => {}
            Some(current) => {
                let mut updated = wanted;
                updated.metadata.resource_version = current.resource_version();
                api.replace(&key.name, &PostParams::default(), &updated).await?;
            }
            None => match api.create(&PostParams::default(), &wanted).await {
                // The watch is behind: it will bring us back.
                Err(error) if is_conflict(&error) => {}
                created => drop(created?),
            },
        }
        Ok(Next::Wait)
    }
}

fn endpoints(service: &Service, backends: &[Backend]) -> Endpoints {
    let mut serving: Vec<_> = backends.iter().filter(|b| !b.terminating || b.ready).collect();
    // As upstream: whoever compares two states sees what has changed, and nothing else is written.
    serving.sort_by(|a, b| a.address.cmp(&b.address));
    let annotations = (serving.len() > CAPACITY).then(|| BTreeMap::from([(OVER_CAPACITY.into(), "truncated".into())]));
    let subsets = subsets(&serving[..serving.len().min(CAPACITY)]);
    Endpoints {
        metadata: ObjectMeta {
            name: service.meta().name.clone(),
            namespace: service.namespace(),
            labels: Some(labels(service)),
            annotations,
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
    labels
}

/// Addresses with the same ports share a subset, ready ones and others in their own lists.
fn subsets(backends: &[&Backend]) -> Vec<EndpointSubset> {
    let mut subsets: Vec<EndpointSubset> = Vec::new();
    for backend in backends {
        let ports: Vec<_> = backend.ports.iter().map(port).collect();
        let ports = (!ports.is_empty()).then_some(ports);
        let subset = match subsets.iter_mut().position(|subset| subset.ports == ports) {
            Some(found) => &mut subsets[found],
            None => {
                subsets.push(EndpointSubset { ports, ..EndpointSubset::default() });
                subsets.last_mut().expect("just pushed")
            }
        };
        let list = if backend.ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address(backend));
    }
    subsets
}

fn address(backend: &Backend) -> EndpointAddress {
    EndpointAddress {
        ip: backend.address.clone(),
        hostname: backend.hostname.clone(),
        node_name: backend.node.clone(),
        target_ref: Some(backend.pod.clone()),
    }
}

fn port(port: &k8s_openapi::api::discovery::v1::EndpointPort) -> EndpointPort {
    EndpointPort {
        name: port.name.clone().filter(|name| !name.is_empty()),
        port: port.port.unwrap_or(0),
        protocol: port.protocol.clone(),
        app_protocol: port.app_protocol.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::backends::tests::{pod, service};

    #[test]
    fn ready_and_other_addresses_share_a_subset() {
        let service = service(json!({"selector": {"app": "web"}, "ports": [{"port": 80}]}));
        let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let pods = [pod("a", "10.0.0.1", json!({})), pod("b", "10.0.0.2", unready)];
        let found = endpoints(&service, &backends(&service, &pods).unwrap());
        let subsets = serde_json::to_value(found.subsets).unwrap();
        assert_eq!(subsets[0]["addresses"][0]["ip"], "10.0.0.1");
        assert_eq!(subsets[0]["notReadyAddresses"][0]["ip"], "10.0.0.2");
        assert_eq!(subsets[0]["ports"], json!([{"port": 80, "protocol": "TCP"}]));
    }

    #[test]
    fn addresses_are_sorted_whatever_order_pods_come_in() {
        let service = service(json!({"selector": {"app": "web"}, "ports": [{"port": 80}]}));
        let pods = [pod("a", "10.0.0.2", json!({})), pod("b", "10.0.0.1", json!({}))];
        let found = endpoints(&service, &backends(&service, &pods).unwrap());
        let subsets = serde_json::to_value(found.subsets).unwrap();
        assert_eq!(subsets[0]["addresses"][0]["ip"], "10.0.0.1");
    }
}
