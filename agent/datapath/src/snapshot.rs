//! What the agent knows of the cluster, reduced to what the datapath needs. The network reconciler feeds it API
//! objects as they arrive; each call answers what that changed, and `plan` turns the result into tables.
//!
//! It never talks to the API server and never judges objects: what is missing or malformed is left out.

use crate::NodePorts;
use ipnetwork::IpNetwork;
use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use leme_abi::Protocol;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

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
    /// Nodes and ServiceCIDRs: routes and node addresses.
    Nodes,
}

/// A Service's `healthCheckNodePort`, and how many of its ready endpoints are on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub port: u16,
    pub endpoints: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Service {
    /// Cluster IPs.
    pub internal: Box<[IpAddr]>,
    /// External IPs.
    pub external: Box<[IpAddr]>,
    /// Load balancer addresses that reach the nodes as they are.
    pub balancer: Box<[IpAddr]>,
    /// Who may use those; everybody if there are none.
    pub sources: Box<[IpNetwork]>,
    pub ports: Box<[ServicePort]>,
    pub internal_local: bool,
    pub external_local: bool,
    /// Seconds; 0 is no affinity.
    pub affinity: u32,
    /// `healthCheckNodePort`, where it means anything; 0 is none.
    pub health_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlicePort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
}

/// A node's or zone's name, by number: there are many endpoints and few of those. 0 is no name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Name(u32);

impl Name {
    pub(crate) fn is_known(self) -> bool {
        self.0 != 0
    }
}

/// For whom an endpoint is meant (`hints` of the EndpointSlice API).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    pub zones: Box<[Name]>,
    pub nodes: Box<[Name]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SliceEndpoint {
    pub addr: IpAddr,
    pub node: Name,
    pub hints: Option<Box<Hints>>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slice {
    pub ports: Box<[SlicePort]>,
    pub endpoints: Box<[SliceEndpoint]>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    /// Internal ones first: the first is the primary one.
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNetwork>,
    pub zone: Name,
}

/// Where this node is, as hints name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Here {
    pub node: Name,
    pub zone: Name,
}

/// Slices of one Service, by their own names: one or two as a rule.
pub(crate) type Slices = Vec<(Box<str>, Slice)>;

/// The cluster as this node sees it. Cheap to update one object at a time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// This node's name.
    pub(crate) node: String,
    pub(crate) node_ports: NodePorts,
    pub(crate) services: HashMap<ObjectKey, Service>,
    pub(crate) slices: HashMap<ObjectKey, Slices>,
    /// The Service each slice belongs to: a slice may be deleted by name or change its owner.
    owners: HashMap<ObjectKey, ObjectKey>,
    pub(crate) nodes: BTreeMap<String, Node>,
    /// Ranges of cluster IPs, by the names of the ServiceCIDRs that say so.
    pub(crate) service_cidrs: BTreeMap<String, Vec<IpNetwork>>,
    names: Names,
}

#[derive(Clone, Debug, Default)]
struct Names(HashMap<Box<str>, Name>);

impl Names {
    fn number(&mut self, text: &str) -> Name {
        if let Some(known) = self.0.get(text) {
            return *known;
        }
        let name = Name(self.0.len() as u32 + 1);
        self.0.insert(text.into(), name);
        name
    }

    fn find(&self, text: &str) -> Name {
        self.0.get(text).copied().unwrap_or_default()
    }
}

impl Snapshot {
    /// `node` is the name of the node whose datapath is planned.
    pub fn new(node: impl Into<String>) -> Self {
        Self { node: node.into(), ..Self::default() }
    }

    /// On which addresses NodePorts answer, if not on all.
    pub fn with_node_ports(self, node_ports: NodePorts) -> Self {
        Self { node_ports, ..self }
    }

    /// What load balancers may ask this node about a Service.
    pub fn health_check(&self, key: &ObjectKey) -> Option<HealthCheck> {
        let port = self.services.get(key).map(|service| service.health_port).filter(|port| *port != 0)?;
        let here = self.here().node;
        let slices = self.slices.get(key).into_iter().flatten().filter(|(_, slice)| !slice.ports.is_empty());
        let endpoints = slices.flat_map(|(_, slice)| slice.endpoints.iter());
        let local = endpoints.filter(|endpoint| endpoint.ready && endpoint.node.is_known() && endpoint.node == here);
        let addresses: BTreeSet<IpAddr> = local.map(|endpoint| endpoint.addr).collect();
        Some(HealthCheck { port, endpoints: addresses.len() })
    }

    pub fn health_checks(&self) -> impl Iterator<Item = (ObjectKey, HealthCheck)> {
        self.services.keys().filter_map(|key| Some((key.clone(), self.health_check(key)?)))
    }

    pub(crate) fn here(&self) -> Here {
        let zone = self.nodes.get(&self.node).map_or(Name::default(), |node| node.zone);
        Here { node: self.names.find(&self.node), zone }
    }

    pub fn upsert_service(&mut self, object: &core::Service) -> Option<Change> {
        let key = object_key(&object.metadata);
        if is_foreign(&object.metadata) {
            return self.delete_service(&key);
        }
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
        let Some(owner) = owner_of(object) else { return self.delete_slice(&key).into_iter().collect() };
        let mut changes = Vec::new();
        if self.owners.get(&key).is_some_and(|previous| *previous != owner) {
            changes.extend(self.delete_slice(&key));
        }
        let slice = read_slice(object, &mut self.names);
        let slices = self.slices.entry(owner.clone()).or_default();
        match slices.iter_mut().find(|(name, _)| **name == *key.name) {
            Some((_, known)) if *known == slice => return changes,
            Some((_, known)) => *known = slice,
            None => slices.push((key.name.as_str().into(), slice)),
        }
        self.owners.insert(key, owner.clone());
        changes.push(Change::Service(owner));
        changes
    }

    pub fn delete_slice(&mut self, key: &ObjectKey) -> Option<Change> {
        let owner = self.owners.remove(key)?;
        let slices = self.slices.get_mut(&owner)?;
        slices.retain(|(name, _)| **name != *key.name);
        if slices.is_empty() {
            self.slices.remove(&owner);
        }
        Some(Change::Service(owner))
    }

    /// A node that moves to another zone has every Service with hints planned anew.
    pub fn upsert_node(&mut self, object: &core::Node) -> Vec<Change> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let node = read_node(object, &mut self.names);
        if self.nodes.get(&name) == Some(&node) {
            return Vec::new();
        }
        let before = self.here();
        self.nodes.insert(name, node);
        let mut changes = vec![Change::Nodes];
        if self.here() != before {
            let hinted = self.slices.iter().filter(|(_, slices)| slices.iter().any(|(_, slice)| slice.has_hints()));
            changes.extend(hinted.map(|(key, _)| Change::Service(key.clone())));
        }
        changes
    }

    pub fn delete_node(&mut self, name: &str) -> Option<Change> {
        self.nodes.remove(name).map(|_| Change::Nodes)
    }

    pub fn upsert_service_cidr(&mut self, object: &networking::ServiceCIDR) -> Option<Change> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let cidrs = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
        let cidrs: Vec<IpNetwork> = cidrs.filter_map(|text| text.parse().ok()).filter(IpNetwork::is_ipv4).collect();
        if self.service_cidrs.get(&name) == Some(&cidrs) {
            return None;
        }
        self.service_cidrs.insert(name, cidrs);
        Some(Change::Nodes)
    }

    pub fn delete_service_cidr(&mut self, name: &str) -> Option<Change> {
        self.service_cidrs.remove(name).map(|_| Change::Nodes)
    }
}

fn object_key(metadata: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

impl Slice {
    fn has_hints(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.hints.is_some())
    }
}

/// Another proxy's, or nobody's: kube-proxy looks at neither (its informers select by these labels).
fn is_foreign(metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.iter().flatten();
    labels.into_iter().any(|(key, _)| matches!(key.as_str(), SERVICE_PROXY_NAME | HEADLESS))
}

/// The Service a slice belongs to, if its addresses can be reached from here.
fn owner_of(slice: &discovery::EndpointSlice) -> Option<ObjectKey> {
    if slice.address_type != "IPv4" || is_foreign(&slice.metadata) {
        return None;
    }
    let name = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    Some(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), name.clone()))
}

/// IPv4 is the family that there is: an address of the other would be a way that leads nowhere.
fn parse_addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
    let parsed = texts.into_iter().filter_map(|text| text.parse().ok());
    let mut addresses: Vec<IpAddr> = parsed.filter(IpAddr::is_ipv4).collect();
    addresses.dedup();
    addresses
}

fn parse_protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// A Service without a cluster IP (headless, ExternalName, not yet allocated) is served nowhere, whatever else it has.
fn read_service(object: &core::Service) -> Service {
    let Some(spec) = object.spec.as_ref() else { return Service::default() };
    let has_address = spec.cluster_ip.as_deref().is_some_and(|address| !matches!(address, "" | "None"));
    if !has_address || spec.type_.as_deref() == Some("ExternalName") {
        return Service::default();
    }
    let cluster_ips = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
    let timeout = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
    Service {
        internal: parse_addresses(cluster_ips).into(),
        external: parse_addresses(spec.external_ips.iter().flatten()).into(),
        balancer: balancer_addresses(object).into(),
        sources: source_ranges(spec),
        ports: spec.ports.iter().flatten().filter_map(read_service_port).collect(),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
        health_port: health_port(spec),
        affinity: if sticky { timeout.and_then(|t| t.timeout_seconds).unwrap_or(10_800) as u32 } else { 0 },
    }
}

fn health_port(spec: &core::ServiceSpec) -> u16 {
    let balanced = spec.type_.as_deref() == Some("LoadBalancer");
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.filter(|_| balanced && local);
    port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0)
}

/// With `ipMode: Proxy` a load balancer wants its clients to come through it; only virtual addresses are served here.
fn balancer_addresses(object: &core::Service) -> Vec<IpAddr> {
    let status = object.status.iter().filter_map(|status| status.load_balancer.as_ref());
    let ingress = status.flat_map(|balancer| balancer.ingress.iter().flatten());
    let virtual_ones = ingress.filter(|ingress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"));
    parse_addresses(virtual_ones.filter_map(|ingress| ingress.ip.as_ref()))
}

/// Networks of the other family say nothing about this one (kube-proxy).
fn source_ranges(spec: &core::ServiceSpec) -> Box<[IpNetwork]> {
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    ranges.filter_map(|range| range.trim().parse().ok()).filter(IpNetwork::is_ipv4).collect()
}

fn read_service_port(port: &core::ServicePort) -> Option<ServicePort> {
    Some(ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: parse_protocol(port.protocol.as_deref())?,
        port: u16::try_from(port.port).ok()?,
        node_port: port.node_port.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0),
    })
}

fn read_slice(object: &discovery::EndpointSlice, names: &mut Names) -> Slice {
    let ports = object.ports.iter().flatten().filter_map(|port| {
        Some(SlicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: parse_protocol(port.protocol.as_deref())?,
            port: u16::try_from(port.port?).ok().filter(|number| *number != 0)?,
        })
    });
    let endpoints = object.endpoints.iter().flatten().filter_map(|endpoint| read_endpoint(endpoint, names));
    Slice { ports: ports.collect(), endpoints: endpoints.collect() }
}

/// Only the first address of an endpoint counts: the others are fungible (EndpointSlice API). Absent conditions are
/// read as kube-proxy reads them: ready, serving, not terminating.
fn read_endpoint(endpoint: &discovery::Endpoint, names: &mut Names) -> Option<SliceEndpoint> {
    let conditions = endpoint.conditions.as_ref();
    Some(SliceEndpoint {
        addr: endpoint.addresses.first()?.parse().ok().filter(IpAddr::is_ipv4)?,
        node: endpoint.node_name.as_deref().map(|name| names.number(name)).unwrap_or_default(),
        hints: read_hints(endpoint, names),
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
    })
}

fn read_hints(endpoint: &discovery::Endpoint, names: &mut Names) -> Option<Box<Hints>> {
    let hints = endpoint.hints.as_ref()?;
    let zones = hints.for_zones.iter().flatten().map(|zone| names.number(&zone.name)).collect();
    let nodes = hints.for_nodes.iter().flatten().map(|node| names.number(&node.name)).collect();
    Some(Box::new(Hints { zones, nodes })).filter(|hints| **hints != Hints::default())
}

fn read_node(object: &core::Node, names: &mut Names) -> Node {
    let status = object.status.iter();
    let listed: Vec<_> = status.flat_map(|status| status.addresses.iter().flatten()).collect();
    let of = |kind: &str| listed.iter().filter(|a| a.type_ == kind).map(|a| &a.address).collect::<Vec<_>>();
    let spec = object.spec.as_ref();
    let cidrs = spec.into_iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(spec.pod_cidr.iter()));
    let mut pod_cidrs: Vec<IpNetwork> = cidrs.filter_map(|text| text.parse().ok()).collect();
    pod_cidrs.dedup();
    let zone = object.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE));
    Node {
        addresses: parse_addresses(of("InternalIP").into_iter().chain(of("ExternalIP"))),
        pod_cidrs: pod_cidrs.into_iter().filter(IpNetwork::is_ipv4).collect(),
        zone: zone.map(|zone| names.number(zone)).unwrap_or_default(),
    }
}
