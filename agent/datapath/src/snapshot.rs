//! What the agent knows of the cluster, reduced to what the datapath needs. The network reconciler feeds it API
//! objects as they arrive; each call answers what that changed, and `plan` turns the result into tables.
//!
//! It never talks to the API server and never judges objects: what is missing or malformed is left out.

use ipnetwork::IpNetwork;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use leme_abi::Protocol;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What one event touched.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    /// A Service or one of its slices.
    Service(ObjectKey),
    /// Nodes: routes and node addresses.
    Nodes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Service {
    /// Cluster IPs.
    pub internal: Vec<IpAddr>,
    /// External IPs and load balancer addresses.
    pub external: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    pub internal_local: bool,
    pub external_local: bool,
    /// `trafficDistribution: PreferSameNode`.
    pub prefer_same_node: bool,
    /// Seconds; 0 is no affinity.
    pub affinity: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SliceEndpoint {
    pub addr: IpAddr,
    pub node: Option<Box<str>>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slice {
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNetwork>,
}

/// The cluster as this node sees it. Cheap to update one object at a time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// This node's name.
    pub(crate) node: String,
    pub(crate) services: HashMap<ObjectKey, Service>,
    /// Slices by Service, then by their own name.
    pub(crate) slices: HashMap<ObjectKey, BTreeMap<String, Slice>>,
    /// The Service each slice belongs to: a slice may be deleted by name or change its owner.
    owners: HashMap<ObjectKey, ObjectKey>,
    pub(crate) nodes: BTreeMap<String, Node>,
}

impl Snapshot {
    /// `node` is the name of the node whose datapath is planned.
    pub fn new(node: impl Into<String>) -> Self {
        Self { node: node.into(), ..Self::default() }
    }

    pub fn upsert_service(&mut self, object: &core::Service) -> Option<Change> {
        let key = object_key(&object.metadata);
        let service = read_service(object);
        if self.services.get(&key) == Some(&service) {
            return None;
        }
        self.services.insert(key.clone(), service);
        Some(Change::Service(key))
    }

    pub fn delete_service(&mut self, key: &ObjectKey) -> Option<Change> {
        self.services.remove(key).map(|_| Change::Service(key.clone()))
    }

    /// A slice that moved to another Service changes both.
    pub fn upsert_slice(&mut self, object: &discovery::EndpointSlice) -> Vec<Change> {
        let key = object_key(&object.metadata);
        let labels = object.metadata.labels.as_ref();
        let owner = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
        let Some(owner) = owner.map(|name| ObjectKey::new(key.namespace.clone(), name.clone())) else {
            return self.delete_slice(&key).into_iter().collect();
        };
        let mut changes = Vec::new();
        if self.owners.get(&key).is_some_and(|previous| *previous != owner) {
            changes.extend(self.delete_slice(&key));
        }
        let slice = read_slice(object);
        let slices = self.slices.entry(owner.clone()).or_default();
        if slices.get(&key.name) != Some(&slice) {
            slices.insert(key.name.clone(), slice);
            self.owners.insert(key, owner.clone());
            changes.push(Change::Service(owner));
        }
        changes
    }

    pub fn delete_slice(&mut self, key: &ObjectKey) -> Option<Change> {
        let owner = self.owners.remove(key)?;
        let slices = self.slices.get_mut(&owner)?;
        slices.remove(&key.name);
        if slices.is_empty() {
            self.slices.remove(&owner);
        }
        Some(Change::Service(owner))
    }

    pub fn upsert_node(&mut self, object: &core::Node) -> Option<Change> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let node = read_node(object);
        if self.nodes.get(&name) == Some(&node) {
            return None;
        }
        self.nodes.insert(name, node);
        Some(Change::Nodes)
    }

    pub fn delete_node(&mut self, name: &str) -> Option<Change> {
        self.nodes.remove(name).map(|_| Change::Nodes)
    }
}

fn object_key(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
    ObjectKey::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn parse_addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = texts.into_iter().filter_map(|text| text.parse().ok()).collect();
    addresses.dedup();
    addresses
}

fn parse_protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    }
}

fn read_service(object: &core::Service) -> Service {
    let Some(spec) = object.spec.as_ref() else { return Service::default() };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Service::default();
    }
    let cluster_ips = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
    let ingress = object.status.iter().filter_map(|status| status.load_balancer.as_ref());
    let ingress = ingress.flat_map(|balancer| balancer.ingress.iter().flatten());
    let ingress = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
    let timeout = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
    Service {
        internal: parse_addresses(cluster_ips),
        external: parse_addresses(spec.external_ips.iter().flatten().chain(ingress)),
        ports: spec.ports.iter().flatten().filter_map(read_service_port).collect(),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
        prefer_same_node: spec.traffic_distribution.as_deref() == Some("PreferSameNode"),
        affinity: if sticky { timeout.and_then(|t| t.timeout_seconds).unwrap_or(10_800) as u32 } else { 0 },
    }
}

fn read_service_port(port: &core::ServicePort) -> Option<ServicePort> {
    Some(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol: parse_protocol(port.protocol.as_deref())?,
        port: u16::try_from(port.port).ok()?,
        node_port: port.node_port.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0),
    })
}

fn read_slice(object: &discovery::EndpointSlice) -> Slice {
    let ports = object.ports.iter().flatten().filter_map(|port| {
        Some(SlicePort {
            name: port.name.clone().unwrap_or_default(),
            protocol: parse_protocol(port.protocol.as_deref())?,
            port: u16::try_from(port.port?).ok()?,
        })
    });
    Slice { ports: ports.collect(), endpoints: object.endpoints.iter().flatten().filter_map(read_endpoint).collect() }
}

/// Only the first address of an endpoint counts: the others are fungible (EndpointSlice API). An absent `ready`
/// means ready, an absent `serving` follows `ready`.
fn read_endpoint(endpoint: &discovery::Endpoint) -> Option<SliceEndpoint> {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    Some(SliceEndpoint {
        addr: endpoint.addresses.first()?.parse().ok()?,
        node: endpoint.node_name.as_deref().map(Into::into),
        ready,
        serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
    })
}

fn read_node(object: &core::Node) -> Node {
    let addresses = object.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let addresses = addresses.filter(|a| matches!(a.type_.as_str(), "InternalIP" | "ExternalIP"));
    let spec = object.spec.as_ref();
    let cidrs = spec.into_iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(spec.pod_cidr.iter()));
    let mut pod_cidrs: Vec<IpNetwork> = cidrs.filter_map(|text| text.parse().ok()).collect();
    pod_cidrs.dedup();
    Node { addresses: parse_addresses(addresses.map(|a| &a.address)), pod_cidrs }
}
