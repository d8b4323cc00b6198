//! EndpointSlices: the pods behind each Service, a hundred to a slice, each endpoint staying in the slice it is in so
//! that one pod's change rewrites one slice.

mod trigger;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::try_join_all;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, PostParams},
};
use tokio_util::sync::CancellationToken;

use crate::{
    backends::{Backend, HEADLESS, backends, is_headless, wake_services},
    informer::{Informers, ObjectKey, wake_self},
    objects::{Labels, controlled_by, is_deleting},
    queue::{Next, Outcome, Queue, unless_gone},
};

const WORKERS: usize = 5;
/// Upstream's default for `--max-endpoints-per-slice`.
const SLICE_SIZE: usize = 100;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";
/// When the watch has not shown our own writes by then, look anyway.
const PATIENCE: Duration = Duration::from_secs(2);

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    written: Written,
}

pub fn start(client: Client, informers: Arc<Informers>, shutdown: CancellationToken) -> impl Future<Output = ()> {
    let queue = Queue::new();
    informers.services.on_change(wake_self(queue.adder()));
    informers.pods.on_change(wake_services(informers.clone(), queue.clone()));
    informers.endpointslices.on_change({
        let add = queue.adder();
        move |before, after| {
            let Some(slice) = after.or(before).filter(|slice| is_ours(slice)) else { return };
            let service = slice.labels().get(SERVICE_NAME).cloned().unwrap_or_default();
            add(ObjectKey::new(slice.namespace().unwrap_or_default(), service));
        }
    });
    informers.nodes.on_change({
        let (add, informers) = (queue.adder(), informers.clone());
        move |before, after| {
            let zone = |node: Option<&Arc<Node>>| zone(node.map(Arc::as_ref));
            if zone(before) != zone(after) {
                informers.services.all().iter().for_each(|service| add(ObjectKey::of(service.as_ref())));
            }
        }
    });
    let controller = Arc::new(Controller { client, informers: informers.clone(), written: Written::default() });
    async move {
        informers.services.wait_until_synced().await;
        informers.pods.wait_until_synced().await;
        informers.nodes.wait_until_synced().await;
        informers.endpointslices.wait_until_synced().await;
        let reconcile = move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(key).await }
        };
        queue.run("endpointslice", WORKERS, shutdown, reconcile).await;
    }
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Outcome {
        let slices: Vec<_> = self.informers.endpointslices.in_namespace(&key.namespace);
        let current: Vec<_> =
            slices.into_iter().filter(|s| is_ours(s) && s.labels().get(SERVICE_NAME) == Some(&key.name)).collect();
        if !self.written.is_visible(&key, &current) {
            return Ok(Next::After(PATIENCE));
        }
        let service = self.informers.services.get(&key).filter(|service| !is_deleting(service.as_ref()));
        let Some(service) = service else {
            // Owner references let the garbage collector take the slices.
            self.written.forget(&key);
            return Ok(Next::Wait);
        };
        let pods = self.informers.pods.in_namespace(&key.namespace);
        let Some(backends) = backends(&service, &pods) else { return Ok(Next::Wait) };
        let zones = |node: &str| zone(self.informers.nodes.get(&ObjectKey::new("", node)).as_deref());
        let wanted = group(&backends, zones, Hinting::of(&service));
        let mut changes = plan(&service, wanted, &current);
        changes.iter_mut().for_each(|change| trigger::note(change, &current, &pods));
        self.apply(&key, changes).await?;
        Ok(Next::Wait)
    }

    async fn apply(&self, key: &ObjectKey, changes: Vec<Change>) -> anyhow::Result<()> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        let writes = changes.into_iter().map(|change| self.write(&api, key, change));
        try_join_all(writes).await?;
        Ok(())
    }

    async fn write(&self, api: &Api<EndpointSlice>, key: &ObjectKey, change: Change) -> anyhow::Result<()> {
        let parameters = PostParams::default();
        let written = match change {
            Change::Create(slice) => Some(api.create(&parameters, &slice).await?),
            Change::Update(slice) => Some(api.replace(&slice.name_any(), &parameters, &slice).await?),
            Change::Delete(name) => {
                unless_gone(api.delete(&name, &DeleteParams::default()).await)?;
                self.written.note(key, name, None);
                None
            }
        };
        if let Some(slice) = written {
            self.written.note(key, slice.name_any(), version(&slice));
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Change {
    Create(EndpointSlice),
    Update(EndpointSlice),
    Delete(String),
}

type Group = (Vec<EndpointPort>, Vec<Endpoint>);

/// Endpoints that share the same ports may share a slice.
fn group(backends: &[Backend], zone_of: impl Fn(&str) -> Option<String>, hinting: Hinting) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for backend in backends {
        let endpoint = hinting.hint(endpoint(backend, &zone_of));
        match groups.iter_mut().find(|(ports, _)| *ports == backend.ports) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => groups.push((backend.ports.clone(), vec![endpoint])),
        }
    }
    groups
}

fn endpoint(backend: &Backend, zone_of: impl Fn(&str) -> Option<String>) -> Endpoint {
    Endpoint {
        addresses: vec![backend.address.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(backend.ready),
            serving: Some(backend.serving),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname.clone(),
        node_name: backend.node.clone(),
        target_ref: Some(backend.pod.clone()),
        zone: backend.node.as_deref().and_then(zone_of),
        ..Endpoint::default()
    }
}

/// What `trafficDistribution` asks proxies for: each ready endpoint says whom it is meant for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hinting {
    None,
    Zones,
    /// The node, and its zone where no endpoint is on the client's node.
    Nodes,
}

impl Hinting {
    fn of(service: &Service) -> Self {
        match service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref()) {
            Some("PreferClose" | "PreferSameZone") => Self::Zones,
            Some("PreferSameNode") => Self::Nodes,
            _ => Self::None,
        }
    }

    fn hint(self, endpoint: Endpoint) -> Endpoint {
        let ready = endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(true));
        if self == Self::None || !ready {
            return endpoint;
        }
        let for_zones = endpoint.zone.clone().map(|name| vec![ForZone { name }]);
        let for_nodes = endpoint.node_name.clone().filter(|_| self == Self::Nodes).map(|name| vec![ForNode { name }]);
        let any = for_zones.is_some() || for_nodes.is_some();
        Endpoint { hints: any.then_some(EndpointHints { for_nodes, for_zones }), ..endpoint }
    }
}

fn zone(node: Option<&Node>) -> Option<String> {
    node?.labels().get(ZONE).cloned()
}

/// The fewest writes that make `current` hold `wanted`: endpoints stay where they are, new ones fill slices with room.
fn plan(service: &Service, wanted: Vec<Group>, current: &[Arc<EndpointSlice>]) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut left: Vec<_> = current.to_vec();
    for (ports, endpoints) in wanted {
        let (same, other): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|slice| same_ports(slice.ports.as_deref().unwrap_or_default(), &ports));
        left = other;
        changes.extend(fill(service, &ports, endpoints, &same));
    }
    // A Service without endpoints keeps one empty slice, so that its readers know it was looked at.
    let empty_wanted = changes.is_empty() && left.len() == current.len();
    for slice in left {
        let (is_empty, first) = (slice.endpoints.as_deref().unwrap_or_default().is_empty(), changes.is_empty());
        if !(empty_wanted && is_empty && first && labelled(service, &slice)) {
            changes.push(Change::Delete(slice.name_any()));
        }
    }
    let deleted = changes.iter().filter(|change| matches!(change, Change::Delete(_))).count();
    if empty_wanted && deleted == current.len() {
        changes.push(Change::Create(slice(service, Vec::new(), Vec::new())));
    }
    changes
}

fn fill(
    service: &Service,
    ports: &[EndpointPort],
    wanted: Vec<Endpoint>,
    current: &[Arc<EndpointSlice>],
) -> Vec<Change> {
    let mut waiting: BTreeMap<String, Endpoint> = wanted.into_iter().map(|e| (identity(&e), e)).collect();
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in current {
        let stay = slice.endpoints.iter().flatten().filter_map(|old| waiting.remove(&identity(old))).collect();
        kept.push((slice.clone(), stay));
    }
    for (_, endpoints) in &mut kept {
        while endpoints.len() < SLICE_SIZE && !endpoints.is_empty() {
            let Some((_, endpoint)) = waiting.pop_first() else { break };
            endpoints.push(endpoint);
        }
    }
    let mut rest = waiting.into_values().collect::<Vec<_>>();
    let mut changes = Vec::new();
    for (slice, mut endpoints) in kept {
        if endpoints.is_empty() {
            endpoints = rest.split_off(rest.len().saturating_sub(SLICE_SIZE));
        }
        changes.extend(settle(service, &slice, endpoints));
    }
    let creations =
        rest.chunks(SLICE_SIZE).map(|chunk| Change::Create(self::slice(service, ports.to_vec(), chunk.to_vec())));
    changes.extend(creations);
    changes
}

fn settle(service: &Service, current: &EndpointSlice, endpoints: Vec<Endpoint>) -> Option<Change> {
    if endpoints.is_empty() {
        return Some(Change::Delete(current.name_any()));
    }
    let unchanged = current.endpoints.as_deref() == Some(&endpoints) && labelled(service, current);
    (!unchanged).then(|| {
        let mut updated = current.clone();
        updated.endpoints = Some(endpoints);
        updated.metadata.labels = Some(labels(service));
        Change::Update(updated)
    })
}

fn labelled(service: &Service, slice: &EndpointSlice) -> bool {
    *slice.labels() == labels(service)
}

/// Endpoints are the same while they stand for the same pod at the same address.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{}/{uid}", endpoint.addresses.join(","))
}

fn same_ports(a: &[EndpointPort], b: &[EndpointPort]) -> bool {
    a.len() == b.len() && a.iter().all(|port| b.contains(port))
}

fn slice(service: &Service, ports: Vec<EndpointPort>, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name_any())),
            namespace: service.namespace(),
            labels: Some(labels(service)),
            owner_references: Some(vec![controlled_by(service)]),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".into(),
        ports: Some(ports),
        endpoints: Some(endpoints),
    }
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn version(slice: &EndpointSlice) -> Option<u64> {
    slice.meta().resource_version.as_ref()?.parse().ok()
}

/// What we wrote and the watch has yet to show: planning on an older view would make a second slice for the same pods.
#[derive(Default)]
struct Written(Mutex<HashMap<ObjectKey, Pending>>);

#[derive(Default)]
struct Pending {
    /// Name → version written, or `None` for a deletion.
    slices: HashMap<String, Option<u64>>,
    since: Option<tokio::time::Instant>,
}

impl Written {
    fn note(&self, key: &ObjectKey, name: String, version: Option<u64>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = all.entry(key.clone()).or_default();
        pending.slices.insert(name, version);
        pending.since.get_or_insert_with(tokio::time::Instant::now);
    }

    fn is_visible(&self, key: &ObjectKey, current: &[Arc<EndpointSlice>]) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pending) = all.get(key) else { return true };
        let shown = |name: &String, written: &Option<u64>| {
            let found = current.iter().find(|slice| slice.name_any() == *name);
            match written {
                Some(written) => found.and_then(|slice| version(slice)).is_some_and(|seen| seen >= *written),
                None => found.is_none(),
            }
        };
        let late = pending.since.is_some_and(|since| since.elapsed() >= PATIENCE);
        let visible = late || pending.slices.iter().all(|(name, written)| shown(name, written));
        if visible {
            all.remove(key);
        }
        visible
    }

    fn forget(&self, key: &ObjectKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::backends::tests::{pod, service};

    fn web() -> Service {
        service(json!({"selector": {"app": "web"}, "ports": [{"port": 80}]}))
    }

    fn wanted(service: &Service, names: &[String]) -> Vec<Group> {
        let pods: Vec<_> = names.iter().enumerate().map(|(i, n)| pod(n, &format!("10.0.0.{i}"), json!({}))).collect();
        group(&backends(service, &pods).unwrap(), |_| None, Hinting::None)
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("p{i:03}")).collect()
    }

    fn stored(change: &Change, name: &str) -> Arc<EndpointSlice> {
        let Change::Create(slice) = change else { panic!("{change:?}") };
        let mut slice = slice.clone();
        slice.metadata.name = Some(name.into());
        Arc::new(slice)
    }

    #[test]
    fn endpoints_are_split_into_slices_of_a_hundred() {
        let service = web();
        let changes = plan(&service, wanted(&service, &names(201)), &[]);
        let sizes: Vec<_> = changes.iter().map(|c| stored(c, "s").endpoints.as_ref().map_or(0, Vec::len)).collect();
        assert_eq!(sizes, [100, 100, 1]);
    }

    #[test]
    fn one_change_rewrites_one_slice() {
        let service = web();
        let changes = plan(&service, wanted(&service, &names(150)), &[]);
        let current = [stored(&changes[0], "a"), stored(&changes[1], "b")];
        assert_eq!(plan(&service, wanted(&service, &names(150)), &current), []);
        let changes = plan(&service, wanted(&service, &names(151)), &current);
        assert!(matches!(&changes[..], [Change::Update(slice)] if slice.name_any() == "b"), "{changes:?}");
    }

    #[test]
    fn a_service_without_endpoints_keeps_one_empty_slice() {
        let service = web();
        let changes = plan(&service, vec![], &[]);
        let empty = stored(&changes[0], "empty");
        assert_eq!(changes.len(), 1);
        assert_eq!(plan(&service, vec![], std::slice::from_ref(&empty)), []);
        let changes = plan(&service, wanted(&service, &names(1)), &[empty]);
        assert!(matches!(&changes[..], [Change::Create(_), Change::Delete(name)] if name == "empty"), "{changes:?}");
    }

    #[test]
    fn pods_with_other_numbers_behind_a_port_name_get_their_own_slice() {
        let service = service(json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}));
        let other =
            json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 9090}]}]}});
        let pods = [pod("a", "10.0.0.1", json!({})), pod("b", "10.0.0.2", other)];
        let groups = group(&backends(&service, &pods).unwrap(), |_| None, Hinting::None);
        assert_eq!(plan(&service, groups, &[]).len(), 2);
    }

    fn hints_of(distribution: &str, pod_changes: serde_json::Value, zone: Option<&str>) -> Option<serde_json::Value> {
        let spec = json!({
            "selector": {"app": "web"}, "ports": [{"port": 80}], "trafficDistribution": distribution,
        });
        let service = service(spec);
        let pods = [pod("a", "10.0.0.1", pod_changes)];
        let groups = group(&backends(&service, &pods).unwrap(), |_| zone.map(str::to_owned), Hinting::of(&service));
        groups[0].1[0].hints.as_ref().map(|hints| serde_json::to_value(hints).unwrap())
    }

    #[test]
    fn traffic_distribution_says_for_whom_ready_endpoints_are_meant() {
        let zones = json!({"forZones": [{"name": "z"}]});
        let nodes = json!({"forZones": [{"name": "z"}], "forNodes": [{"name": "n1"}]});
        assert_eq!(hints_of("PreferClose", json!({}), Some("z")), Some(zones.clone()));
        assert_eq!(hints_of("PreferSameZone", json!({}), Some("z")), Some(zones));
        assert_eq!(hints_of("PreferSameNode", json!({}), Some("z")), Some(nodes));
        assert_eq!(hints_of("PreferSameNode", json!({}), None), Some(json!({"forNodes": [{"name": "n1"}]})));
        assert_eq!(hints_of("PreferSameZone", json!({}), None), None);
        let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        assert_eq!(hints_of("PreferSameNode", unready, Some("z")), None);
    }

    #[test]
    fn a_change_of_traffic_distribution_rewrites_the_slices() {
        let service_of = |distribution: serde_json::Value| {
            service(json!({
                "selector": {"app": "web"}, "ports": [{"port": 80}], "trafficDistribution": distribution,
            }))
        };
        let (near, plain) = (service_of(json!("PreferSameNode")), service_of(json!(null)));
        let of = |service: &Service| {
            let found = backends(service, &[pod("a", "10.0.0.1", json!({}))]).unwrap();
            group(&found, |_| None, Hinting::of(service))
        };
        let current = [stored(&plan(&plain, of(&plain), &[])[0], "s")];
        let changes = plan(&near, of(&near), &current);
        assert!(
            matches!(&changes[..], [Change::Update(slice)] if slice.endpoints.as_ref().unwrap()[0].hints.is_some())
        );
    }
}
