//! From what the cluster says to what the tables must hold: a pure function, ordered, without ids.
//!
//! [`plan`] does everything at once and is what scenarios test; the reconciler asks for one Service at a time
//! ([`plan_service`]) or for the nodes ([`plan_nodes`]). Ids and generations belong to `ledger`, which turns a plan
//! into the difference from what the kernel has.

use crate::{
    node_ports::{LOOPBACK, NodePorts},
    snapshot::{
        Change, HealthCheck, Here, Name, ObjectKey, Service, ServicePort, Slice, SliceEndpoint, SlicePort, Snapshot,
    },
};
use ipnetwork::IpNetwork;
use leme_abi::{Addr, Backend, FrontendKey, NodeAddress, Port, Protocol, Route, RouteKey, Scope, Service as Flags};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// One entry of `services`: the frontends that lead to it and the backends behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePlan {
    pub frontends: BTreeSet<FrontendKey>,
    pub backends: BTreeSet<Backend>,
    /// Who is served, where that is not everybody (`GUARDED`).
    pub sources: BTreeSet<RouteKey>,
    /// `leme_abi::Service` flags.
    pub flags: u32,
    pub affinity: u32,
    /// Over UDP: who finishes its work and is not chosen any more. Sockets that have it keep it until it is done.
    pub draining: BTreeSet<(Addr, Port)>,
    /// Number and protocol of the Service's port: a client's affinity is one for all its entries.
    pub port: (u16, u8),
}

/// Routes to other nodes' pods, the ranges of cluster IPs, and every address on which NodePorts answer.
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
    /// What the agent answers load balancers.
    pub checks: BTreeMap<ObjectKey, HealthCheck>,
    pub nodes: NodeTables,
}

pub fn plan(snapshot: &Snapshot) -> Tables {
    let services = snapshot.services.keys().map(|key| (key.clone(), plan_service(snapshot, key)));
    Tables {
        services: services.filter(|(_, plans)| !plans.is_empty()).collect(),
        checks: snapshot.health_checks().collect(),
        nodes: plan_nodes(snapshot),
    }
}

/// The entries of one Service: one per port, more where the traffic policies make inside and outside differ.
pub fn plan_service(snapshot: &Snapshot, key: &ObjectKey) -> Vec<ServicePlan> {
    let Some(service) = snapshot.services.get(key) else { return Vec::new() };
    let slices = snapshot.slices.get(key).map_or(&[][..], Vec::as_slice);
    let here = snapshot.here();
    let sources = plan_sources(snapshot, service);
    let ports = service.ports.iter();
    let mut plans: Vec<_> = ports
        .flat_map(|port| plan_port(Endpoints { here, port, all: collect_endpoints(port, slices) }, service, &sources))
        .collect();
    own_addresses(service, &mut plans);
    plans
}

/// The first entry that cluster IPs lead to stands for them as such, too.
fn own_addresses(service: &Service, plans: &mut [ServicePlan]) {
    let addresses: BTreeSet<Addr> = service.internal.iter().map(|address| (*address).into()).collect();
    let is_inside = |key: &FrontendKey| key.scope == Scope::Cluster as u8 && addresses.contains(&key.addr);
    if let Some(first) = plans.iter_mut().find(|plan| plan.frontends.iter().any(is_inside)) {
        first.frontends.extend(addresses.iter().map(|address| FrontendKey::address(*address)));
    }
}

/// Traffic policies as kube-proxy applies them. Whoever is inside the cluster and addresses it from outside (NodePort,
/// external address) gets any endpoint, whatever the external policy: what leaves the cluster and comes back would.
fn plan_port(endpoints: Endpoints<'_>, service: &Service, sources: &BTreeSet<RouteKey>) -> Vec<ServicePlan> {
    let port = endpoints.port;
    let internal = frontends(&service.internal, port);
    let mut outward = frontends(&service.external, port);
    outward.extend(port.node_port.map(|number| frontend(Addr::ANY, number, port)));
    let balancer = frontends(&service.balancer, port);
    let mut guarded = Vec::new();
    match sources.is_empty() {
        true => outward.extend(balancer),
        false => guarded = plan_guarded(&endpoints, service, balancer, sources),
    }
    let external = outside(&outward);
    let draining = endpoints.draining();

    let plan = |frontends, chosen: Chosen, flags| chosen.into_plan(frontends, service, flags);
    let mut plans = match (service.internal_local, service.external_local) {
        (false, false) => vec![plan(internal.into_iter().chain(outward).collect(), endpoints.anywhere(), 0)],
        (true, false) => {
            vec![plan(internal, endpoints.local(), Flags::INTERNAL_LOCAL), plan(outward, endpoints.anywhere(), 0)]
        }
        (internal_local, true) => vec![
            plan(external, endpoints.local(), Flags::EXTERNAL_LOCAL),
            match internal_local {
                true => plan(internal, endpoints.local(), Flags::INTERNAL_LOCAL),
                false => plan(internal, endpoints.anywhere(), 0),
            },
            plan(outward, endpoints.anywhere(), Flags::EXTERNAL_LOCAL),
        ],
    };
    plans.extend(guarded);
    for plan in &mut plans {
        plan.port = (port.port, port.protocol.number());
        plan.draining.clone_from(&draining);
    }
    plans.retain(|plan| !plan.frontends.is_empty());
    plans
}

/// Load balancer addresses that are not for everybody: the limit is theirs alone, not the NodePort's behind it.
fn plan_guarded(
    endpoints: &Endpoints<'_>,
    service: &Service,
    frontends: BTreeSet<FrontendKey>,
    sources: &BTreeSet<RouteKey>,
) -> Vec<ServicePlan> {
    let local = if service.external_local { Flags::EXTERNAL_LOCAL } else { 0 };
    let plan = |frontends, chosen: Chosen| {
        let plan = chosen.into_plan(frontends, service, Flags::GUARDED | local);
        ServicePlan { sources: sources.clone(), ..plan }
    };
    match service.external_local {
        false => vec![plan(frontends, endpoints.anywhere())],
        true => vec![plan(outside(&frontends), endpoints.local()), plan(frontends, endpoints.anywhere())],
    }
}

/// Where the load balancer's address is also this node's own, the node's requests come from that very address: who lets
/// the node in lets that in too.
fn plan_sources(snapshot: &Snapshot, service: &Service) -> BTreeSet<RouteKey> {
    let node = snapshot.nodes.get(&snapshot.node).and_then(|node| node.addresses.first());
    let mut sources: BTreeSet<RouteKey> = service.sources.iter().map(|network| route_key(*network)).collect();
    if node.is_some_and(|node| service.sources.iter().any(|network| network.contains(*node))) {
        sources.extend(service.balancer.iter().map(|address| route_key(IpNetwork::from(*address))));
    }
    sources
}

/// The same as clients outside of the cluster see them.
fn outside(frontends: &BTreeSet<FrontendKey>) -> BTreeSet<FrontendKey> {
    frontends.iter().map(|key| FrontendKey { scope: Scope::External as u8, ..*key }).collect()
}

fn frontend(addr: Addr, number: u16, port: &ServicePort) -> FrontendKey {
    FrontendKey { addr, port: Port::new(number), proto: port.protocol.number(), scope: Scope::Cluster as u8 }
}

fn frontends(addresses: &[IpAddr], port: &ServicePort) -> BTreeSet<FrontendKey> {
    addresses.iter().map(|address| frontend((*address).into(), port.port, port)).collect()
}

/// The endpoints that serve a port, with the number it has in their slice (ports match by name and protocol).
fn collect_endpoints<'a>(port: &ServicePort, slices: &'a [(Box<str>, Slice)]) -> Vec<(&'a SliceEndpoint, u16)> {
    let serves = |p: &&SlicePort| p.name == port.name && p.protocol == port.protocol;
    let served =
        slices.iter().flat_map(|(_, slice)| slice.ports.iter().filter(serves).map(move |found| (slice, found.port)));
    served.flat_map(|(slice, number)| slice.endpoints.iter().map(move |endpoint| (endpoint, number))).collect()
}

/// Everything that could serve a port.
struct Endpoints<'a> {
    here: Here,
    port: &'a ServicePort,
    all: Vec<(&'a SliceEndpoint, u16)>,
}

/// What serves it.
struct Chosen {
    backends: BTreeSet<Backend>,
    /// Nothing does here, but other nodes have endpoints.
    elsewhere: bool,
}

impl Chosen {
    fn into_plan(self, frontends: BTreeSet<FrontendKey>, service: &Service, flags: u32) -> ServicePlan {
        let flags = flags | if self.elsewhere { Flags::ELSEWHERE } else { 0 };
        let (backends, affinity) = (self.backends, service.affinity);
        ServicePlan { frontends, backends, flags, affinity, ..ServicePlan::default() }
    }
}

/// Which endpoints hints leave to this node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Near {
    Anywhere,
    Zone,
    Node,
}

impl Endpoints<'_> {
    /// Ready endpoints that hints leave to this node; if none is ready anywhere, those that still serve while they
    /// terminate (KEP-1669).
    fn anywhere(&self) -> Chosen {
        let near = self.nearness();
        let ready = self.choose(Backend::SERVING, |e| e.ready && self.is_near(e, near));
        let backends = if ready.is_empty() { self.choose(Backend::TERMINATING, is_last_resort) } else { ready };
        Chosen { backends, elsewhere: false }
    }

    /// Connected UDP sockets are not seen when their backend goes: only they need this.
    fn draining(&self) -> BTreeSet<(Addr, Port)> {
        match self.port.protocol {
            Protocol::Udp => {
                self.choose(Backend::TERMINATING, is_last_resort).iter().map(|b| (b.addr, b.port)).collect()
            }
            _ => BTreeSet::new(),
        }
    }

    /// The same among the endpoints of this node, without hints.
    fn local(&self) -> Chosen {
        let own = |e: &SliceEndpoint| e.node.is_known() && e.node == self.here.node;
        let ready = self.choose(Backend::SERVING, |e| e.ready && own(e));
        let last = || self.choose(Backend::TERMINATING, |e| is_last_resort(e) && own(e));
        let backends = if ready.is_empty() { last() } else { ready };
        let elsewhere = backends.is_empty() && self.all.iter().any(|(e, _)| e.ready || is_last_resort(e));
        Chosen { backends, elsewhere }
    }

    /// Hints count only if every ready endpoint has one of their kind and some endpoint is meant for this node or its
    /// zone: half-written hints must not overload or cut off anybody.
    fn nearness(&self) -> Near {
        let ready = || self.all.iter().map(|(endpoint, _)| *endpoint).filter(|endpoint| endpoint.ready);
        let agreed = |near: Near| {
            let hinted = |e: &SliceEndpoint| !hinted_for(e, near).is_empty();
            ready().all(hinted) && ready().any(|e| self.is_near(e, near))
        };
        [Near::Node, Near::Zone].into_iter().find(|near| agreed(*near)).unwrap_or(Near::Anywhere)
    }

    fn is_near(&self, endpoint: &SliceEndpoint, near: Near) -> bool {
        let place = if near == Near::Node { self.here.node } else { self.here.zone };
        near == Near::Anywhere || (place.is_known() && hinted_for(endpoint, near).contains(&place))
    }

    fn choose(&self, state: u8, fits: impl Fn(&SliceEndpoint) -> bool) -> BTreeSet<Backend> {
        let fitting = self.all.iter().filter(|(endpoint, _)| fits(endpoint));
        fitting.map(|(endpoint, number)| self.backend(endpoint, *number, state)).collect()
    }

    fn backend(&self, endpoint: &SliceEndpoint, number: u16, state: u8) -> Backend {
        let local = endpoint.node.is_known() && endpoint.node == self.here.node;
        Backend {
            addr: endpoint.addr.into(),
            port: Port::new(number),
            proto: self.port.protocol.number(),
            state,
            flags: if local { Backend::LOCAL } else { 0 },
            zone: 0,
        }
    }
}

fn hinted_for(endpoint: &SliceEndpoint, near: Near) -> &[Name] {
    match (near, endpoint.hints.as_deref()) {
        (Near::Node, Some(hints)) => &hints.nodes,
        (Near::Zone, Some(hints)) => &hints.zones,
        _ => &[],
    }
}

fn is_last_resort(endpoint: &SliceEndpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// Nodes without an address get no route: there is nowhere to send. Cluster IPs that nobody has are nowhere either.
pub fn plan_nodes(snapshot: &Snapshot) -> NodeTables {
    let mut tables = NodeTables::default();
    let services = RouteTo { flags: Route::SERVICES, ..RouteTo::default() };
    tables.routes.extend(snapshot.service_cidrs.values().flatten().map(|range| (route_key(*range), services)));
    for (name, node) in &snapshot.nodes {
        let own = *name == snapshot.node;
        let place = NodeAddress::KNOWN | if own { NodeAddress::LOCAL } else { 0 };
        for address in &node.addresses {
            let primary = node.addresses.first() == Some(address);
            tables
                .addresses
                .insert((*address).into(), place | node_port_flags(&snapshot.node_ports, *address, primary));
        }
        for cidr in &node.pod_cidrs {
            let (key, router) = (route_key(*cidr), first_address(*cidr));
            let ports = node_port_flags(&snapshot.node_ports, router.into(), false);
            tables.addresses.insert(router, place | ports | NodeAddress::ROUTER);
            if let (false, Some(address)) = (own, node.addresses.first()) {
                tables.routes.insert(key, RouteTo { node: (*address).into(), flags: 0 });
            }
        }
    }
    if !snapshot.node_ports.include_loopback() {
        let flags = NodeAddress::KNOWN | NodeAddress::LOCAL | NodeAddress::NO_NODE_PORTS;
        tables.addresses.insert(LOOPBACK.into(), flags);
    }
    tables
}

pub(crate) fn node_port_flags(node_ports: &NodePorts, address: IpAddr, primary: bool) -> u32 {
    if node_ports.include(address, primary) { 0 } else { NodeAddress::NO_NODE_PORTS }
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
    pub(crate) fn has_service(&self, key: &ObjectKey) -> bool {
        self.services.contains_key(key)
    }

    /// Every change a complete look needs: for the first reconciliation after the lists are in.
    pub fn all_changes(&self) -> BTreeSet<Change> {
        self.services.keys().cloned().map(Change::Service).chain([Change::Nodes]).collect()
    }
}
