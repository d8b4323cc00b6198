//! From what the cluster says to what the tables must hold: a pure function, ordered, without ids.
//!
//! [`plan`] does everything at once and is what scenarios test; the reconciler asks for one Service at a time
//! ([`plan_service`]) or for the nodes ([`plan_nodes`]). Ids and generations belong to `ledger`, which turns a plan
//! into the difference from what the kernel has.

use crate::snapshot::{Change, ObjectKey, Service, ServicePort, Slice, SliceEndpoint, Snapshot};
use ipnetwork::IpNetwork;
use leme_abi::{Addr, Backend, FrontendKey, NodeAddress, Port, Route, RouteKey, Scope};
use std::collections::{BTreeMap, BTreeSet};

/// One entry of `services`: the frontends that lead to it and the backends behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePlan {
    pub frontends: BTreeSet<FrontendKey>,
    pub backends: BTreeSet<Backend>,
    /// `leme_abi::Service` flags.
    pub flags: u32,
    pub affinity: u32,
}

/// Routes to other nodes' pods, and every address on which NodePorts answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTables {
    pub routes: BTreeMap<RouteKey, RouteTo>,
    pub addresses: BTreeMap<Addr, u32>,
}

/// The node behind a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteTo {
    pub node: Addr,
    /// `leme_abi::Route` flags.
    pub flags: u32,
}

impl From<RouteTo> for Route {
    fn from(to: RouteTo) -> Self {
        Self { node: to.node, identity: 0, flags: to.flags }
    }
}

/// Everything the maps must hold, endpoints excepted (those come from CNI).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub services: BTreeMap<ObjectKey, Vec<ServicePlan>>,
    pub nodes: NodeTables,
}

pub fn plan(snapshot: &Snapshot) -> Tables {
    let services = snapshot.services.keys().map(|key| (key.clone(), plan_service(snapshot, key)));
    Tables { services: services.filter(|(_, plans)| !plans.is_empty()).collect(), nodes: plan_nodes(snapshot) }
}

/// The entries of one Service: one per port, two where the traffic policies make inside and outside differ.
pub fn plan_service(snapshot: &Snapshot, key: &ObjectKey) -> Vec<ServicePlan> {
    let Some(service) = snapshot.services.get(key) else { return Vec::new() };
    let none = BTreeMap::new();
    let slices = snapshot.slices.get(key).unwrap_or(&none);
    service.ports.iter().flat_map(|port| plan_port(&snapshot.node, service, port, slices)).collect()
}

fn plan_port(node: &str, service: &Service, port: &ServicePort, slices: &BTreeMap<String, Slice>) -> Vec<ServicePlan> {
    let all = collect_endpoints(port, slices);
    let internal = frontends(&service.internal, port, Scope::Cluster);
    let mut outward = frontends(&service.external, port, Scope::Cluster);
    outward.extend(port.node_port.map(|number| frontend(Addr::ANY, number, port, Scope::Cluster)));

    let cluster = select(node, &all, port, service.prefer_same_node);
    let plan = |frontends, backends, flags| ServicePlan { frontends, backends, flags, affinity: service.affinity };
    let outward_flags = if service.external_local { leme_abi::Service::EXTERNAL_LOCAL } else { 0 };

    let mut plans = Vec::new();
    if service.external_local {
        let local = select(node, &on_node(node, &all), port, false);
        let external = outward.iter().map(|key| FrontendKey { scope: Scope::External as u8, ..*key }).collect();
        plans.push(plan(external, local, outward_flags));
    }
    if service.internal_local {
        let local = select(node, &on_node(node, &all), port, false);
        plans.push(plan(internal, local, leme_abi::Service::INTERNAL_LOCAL));
        plans.push(plan(outward, cluster, outward_flags));
    } else if service.external_local {
        plans.push(plan(internal, cluster.clone(), 0));
        plans.push(plan(outward, cluster, outward_flags));
    } else {
        plans.push(plan(internal.into_iter().chain(outward).collect(), cluster, 0));
    }
    plans.retain(|plan| !plan.frontends.is_empty());
    plans
}

fn frontend(addr: Addr, number: u16, port: &ServicePort, scope: Scope) -> FrontendKey {
    FrontendKey { addr, port: Port::new(number), proto: port.protocol.number(), scope: scope as u8 }
}

fn frontends(addresses: &[std::net::IpAddr], port: &ServicePort, scope: Scope) -> BTreeSet<FrontendKey> {
    addresses.iter().map(|address| frontend((*address).into(), port.port, port, scope)).collect()
}

/// The endpoints that serve a port, with the number it has in their slice (ports match by name and protocol).
fn collect_endpoints<'a>(port: &ServicePort, slices: &'a BTreeMap<String, Slice>) -> Vec<(&'a SliceEndpoint, u16)> {
    let matching = |slice: &&'a Slice| {
        slice.ports.iter().find(|p| p.name == port.name && p.protocol == port.protocol).map(|p| p.port)
    };
    let served = slices.values().filter_map(|slice| Some((slice, matching(&slice)?)));
    served.flat_map(|(slice, number)| slice.endpoints.iter().map(move |endpoint| (endpoint, number))).collect()
}

fn on_node<'a>(node: &str, all: &[(&'a SliceEndpoint, u16)]) -> Vec<(&'a SliceEndpoint, u16)> {
    all.iter().filter(|(endpoint, _)| endpoint.node.as_deref() == Some(node)).copied().collect()
}

/// Ready endpoints; if there are none, those that still serve while terminating (KEP-1669).
fn select(node: &str, all: &[(&SliceEndpoint, u16)], port: &ServicePort, prefer_same_node: bool) -> BTreeSet<Backend> {
    let choose = |terminating: bool| -> Vec<_> {
        let fits = |e: &SliceEndpoint| if terminating { e.serving && e.terminating } else { e.ready };
        all.iter().filter(|(endpoint, _)| fits(endpoint)).copied().collect()
    };
    let ready = choose(false);
    let (mut chosen, state) =
        if ready.is_empty() { (choose(true), Backend::TERMINATING) } else { (ready, Backend::SERVING) };
    let near = on_node(node, &chosen);
    if prefer_same_node && !near.is_empty() {
        chosen = near;
    }
    chosen.iter().map(|(endpoint, number)| backend(node, endpoint, *number, port, state)).collect()
}

fn backend(node: &str, endpoint: &SliceEndpoint, number: u16, port: &ServicePort, state: u8) -> Backend {
    let local = endpoint.node.as_deref() == Some(node);
    Backend {
        addr: endpoint.addr.into(),
        port: Port::new(number),
        proto: port.protocol.number(),
        state,
        flags: if local { Backend::LOCAL } else { 0 },
        zone: 0,
    }
}

/// Nodes without an address get no route: there is nowhere to send.
pub fn plan_nodes(snapshot: &Snapshot) -> NodeTables {
    let mut tables = NodeTables::default();
    for (name, node) in &snapshot.nodes {
        let own = *name == snapshot.node;
        let flags = NodeAddress::KNOWN | if own { NodeAddress::LOCAL } else { 0 };
        tables.addresses.extend(node.addresses.iter().map(|address| (Addr::from(*address), flags)));
        for cidr in &node.pod_cidrs {
            let key = route_key(*cidr);
            tables.addresses.insert(first_address(*cidr), flags | NodeAddress::ROUTER);
            if let (false, Some(address)) = (own, node.addresses.first()) {
                tables.routes.insert(key, RouteTo { node: (*address).into(), flags: 0 });
            }
        }
    }
    tables
}

pub(crate) fn route_key(network: IpNetwork) -> RouteKey {
    let bits = if network.is_ipv4() { 96 } else { 0 };
    RouteKey { prefix: bits + u32::from(network.prefix()), addr: network.network().into() }
}

fn first_address(network: IpNetwork) -> Addr {
    let mut addr = Addr::from(network.network());
    addr.0[3] = (u32::from_be(addr.0[3]) + 1).to_be();
    addr
}

impl Snapshot {
    /// Every change a complete look needs: for the first reconciliation after the lists are in.
    pub fn all_changes(&self) -> BTreeSet<Change> {
        self.services.keys().cloned().map(Change::Service).chain([Change::Nodes]).collect()
    }
}
