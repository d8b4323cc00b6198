//! The tables as rows that people and tests can read, straight from the pins of a node, without owning them.
//!
//! One function per table; [`Dump`] is their sum in short.

mod affinity;
mod connections;

use crate::{
    EndpointSpec, Result,
    table::{CpuTable, Table},
};
pub use affinity::{AffinityRow, affinity};
pub use connections::{ConnectionRow, Peers, TranslationRow, connections, translations};
use leme_abi::{
    Addr, Backend, Conntrack, Counter, DropReason, Endpoint, FrontendKey, NodeAddress, Protocol, Rates, Route,
    RouteKey, Scope, Service, SlotKey, Tuple,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::Path,
};

/// The tables as text-friendly rows: for `leme bpf` and for tests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    pub services: Vec<ServiceRow>,
    pub endpoints: Vec<EndpointSpec>,
    /// Prefix → node address.
    pub routes: BTreeMap<String, IpAddr>,
    /// Address → "local" or "remote".
    pub node_addresses: BTreeMap<IpAddr, String>,
    pub connections: usize,
    /// reason/direction → packets.
    pub counters: BTreeMap<String, u64>,
}

/// One entry of `services` with everything that leads to it and follows from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceRow {
    pub id: u32,
    /// `10.96.0.10:53/UDP`, NodePorts as `*:30080/TCP`, `… external` where inside and outside differ; a bare cluster IP
    /// stands for its other ports, which are refused.
    pub frontends: Vec<String>,
    /// `10.244.1.7:80`
    pub backends: Vec<String>,
    pub flags: u32,
    pub affinity: u32,
}

/// A prefix and what lies behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRow {
    pub prefix: String,
    /// None: no node has claimed it, and its packets end here.
    pub node: Option<IpAddr>,
    /// This node's own pods.
    pub local: bool,
    /// Cluster IPs come from here.
    #[serde(default)]
    pub services: bool,
}

/// An address of a node, and what is special about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddressRow {
    pub address: IpAddr,
    pub local: bool,
    /// The node's address inside its pod range.
    pub router: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterRow {
    /// A drop reason, or `forwarded`.
    pub reason: String,
    /// Seen from the pods: `ingress` or `egress`.
    pub direction: String,
    pub packets: u64,
    pub bytes: u64,
}

/// Reads the pinned tables of a node without owning them.
pub fn dump(pins: &Path) -> Result<Dump> {
    let mut dump = Dump { services: services(pins)?, endpoints: endpoints(pins)?, ..Dump::default() };
    let counted = counters(pins)?.into_iter().filter(|row| row.packets > 0);
    dump.counters = counted.map(|row| (format!("{}/{}", row.reason, row.direction), row.packets)).collect();
    let routes = routes(pins)?.into_iter().filter(|row| !row.local);
    dump.routes = routes.filter_map(|row| Some((row.prefix, row.node?))).collect();
    for row in node_addresses(pins)? {
        let place = if row.local { "local" } else { "remote" };
        dump.node_addresses.insert(row.address, place.to_owned());
    }
    Table::<Tuple, Conntrack>::open(pins, "conntrack")?.visit(|_, _| dump.connections += 1)?;
    Ok(dump)
}

/// Pods of this node, by address.
pub fn endpoints(pins: &Path) -> Result<Vec<EndpointSpec>> {
    let entries = Table::<Addr, Endpoint>::open(pins, "endpoints")?.entries()?;
    let limited = entries.iter().any(|(_, endpoint)| endpoint.flags != 0);
    let rates: HashMap<Addr, Rates> = match limited {
        true => Table::open(pins, "rates")?.entries()?.into_iter().collect(),
        false => HashMap::new(),
    };
    let row = |(addr, endpoint): (Addr, Endpoint)| {
        EndpointSpec::new(addr, endpoint, rates.get(&addr).unwrap_or(&Rates::default()))
    };
    let mut rows: Vec<_> = entries.into_iter().map(row).collect();
    rows.sort_by_key(|endpoint| endpoint.addr);
    Ok(rows)
}

/// Ranges of pods and of cluster IPs, by address, the widest first.
pub fn routes(pins: &Path) -> Result<Vec<RouteRow>> {
    let mut entries = Table::<RouteKey, Route>::open(pins, "routes")?.entries()?;
    entries.sort_by_key(|(key, _)| (IpAddr::from(key.addr), key.prefix));
    let row = |(key, route): (RouteKey, Route)| RouteRow {
        prefix: prefix(&key),
        node: (route.flags & (Route::UNREACHABLE | Route::SERVICES) == 0).then(|| route.node.into()),
        local: route.flags & Route::LOCAL != 0,
        services: route.flags & Route::SERVICES != 0,
    };
    Ok(entries.into_iter().map(row).collect())
}

pub fn node_addresses(pins: &Path) -> Result<Vec<NodeAddressRow>> {
    let entries = Table::<Addr, u32>::open(pins, "node_addresses")?.entries()?;
    let row = |(addr, flags): (Addr, u32)| NodeAddressRow {
        address: addr.into(),
        local: flags & NodeAddress::LOCAL != 0,
        router: flags & NodeAddress::ROUTER != 0,
    };
    let mut rows: Vec<_> = entries.into_iter().map(row).collect();
    rows.sort_by_key(|row| row.address);
    Ok(rows)
}

/// Services that something leads to, by id.
pub fn services(pins: &Path) -> Result<Vec<ServiceRow>> {
    let backends: HashMap<u32, Backend> = Table::open(pins, "backends")?.entries()?.into_iter().collect();
    let values: HashMap<u32, Service> = Table::open(pins, "services")?.entries()?.into_iter().collect();
    let row = |(id, value): (&u32, &Service)| {
        (*id, ServiceRow { id: *id, flags: value.flags, affinity: value.affinity, ..ServiceRow::default() })
    };
    let mut rows: BTreeMap<u32, ServiceRow> = values.iter().map(row).collect();
    for (key, id) in Table::<FrontendKey, u32>::open(pins, "frontends")?.entries()? {
        rows.entry(id).or_insert(ServiceRow { id, ..ServiceRow::default() }).frontends.push(frontend(&key));
    }
    for (key, backend) in Table::<SlotKey, u32>::open(pins, "slots")?.entries()? {
        let current = values.get(&key.service).is_some_and(|value| value.generation == key.generation);
        if let (true, Some(backend), Some(row)) = (current, backends.get(&backend), rows.get_mut(&key.service)) {
            row.backends.push(format!("{}:{}", IpAddr::from(backend.addr), backend.port.number()));
        }
    }
    // An entry nothing leads to is on its way out.
    let mut rows: Vec<ServiceRow> = rows.into_values().filter(|row| !row.frontends.is_empty()).collect();
    for row in &mut rows {
        row.frontends.sort();
        row.backends.sort();
    }
    Ok(rows)
}

pub(crate) fn frontend(key: &FrontendKey) -> String {
    if key.is_address() {
        return IpAddr::from(key.addr).to_string();
    }
    let address = if key.addr == Addr::ANY { "*".to_owned() } else { IpAddr::from(key.addr).to_string() };
    let protocol = protocol(key.proto);
    let scope = if key.scope == Scope::External as u8 { " external" } else { "" };
    format!("{address}:{}/{protocol}{scope}", key.port.number())
}

/// Kubernetes' name of a protocol; the number of one that has none.
fn protocol(number: u8) -> String {
    match number {
        Protocol::TCP => "TCP".to_owned(),
        Protocol::UDP => "UDP".to_owned(),
        Protocol::ICMP => "ICMP".to_owned(),
        Protocol::SCTP => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

pub(crate) fn prefix(key: &RouteKey) -> String {
    let bits = if key.addr.is_v4() { key.prefix.saturating_sub(96) } else { key.prefix };
    format!("{}/{bits}", IpAddr::from(key.addr))
}

/// Every reason in both directions, zeros too.
pub fn counters(pins: &Path) -> Result<Vec<CounterRow>> {
    let table = CpuTable::open(pins, "counters")?;
    let mut rows = Vec::new();
    for reason in DropReason::ALL {
        for (offset, direction) in ["ingress", "egress"].into_iter().enumerate() {
            let [packets, bytes] = table.sum::<{ size_of::<Counter>() / 8 }>(*reason as u32 * 2 + offset as u32)?;
            rows.push(CounterRow { reason: reason.name().into(), direction: direction.into(), packets, bytes });
        }
    }
    Ok(rows)
}
