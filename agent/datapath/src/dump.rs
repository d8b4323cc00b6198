//! The tables as rows that people and tests can read, straight from the pins.

use crate::{
    EndpointSpec, Result,
    table::{CpuTable, Table},
};
use leme_abi::{
    Addr, Backend, Conntrack, DropReason, Endpoint, FrontendKey, NodeAddress, Protocol, Route, RouteKey, Scope,
    Service, SlotKey, Tuple,
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
    /// `10.96.0.10:53/UDP`, NodePorts as `*:30080/TCP`, `… external` where inside and outside differ.
    pub frontends: Vec<String>,
    /// `10.244.1.7:80`
    pub backends: Vec<String>,
    pub flags: u32,
    pub affinity: u32,
}

/// Reads the pinned tables of a node without owning them.
pub fn dump(pins: &Path) -> Result<Dump> {
    let mut dump = Dump { services: services(pins)?, counters: counters(pins)?, ..Dump::default() };
    let endpoints = Table::<Addr, Endpoint>::open(pins, "endpoints")?.entries()?;
    dump.endpoints = endpoints.into_iter().map(|(addr, endpoint)| EndpointSpec::new(addr, endpoint)).collect();
    dump.endpoints.sort_by_key(|endpoint| endpoint.addr);
    for (key, route) in Table::<RouteKey, Route>::open(pins, "routes")?.entries()? {
        if route.flags == 0 {
            dump.routes.insert(prefix(&key), route.node.into());
        }
    }
    for (addr, flags) in Table::<Addr, u32>::open(pins, "node_addresses")?.entries()? {
        let place = if flags & NodeAddress::LOCAL != 0 { "local" } else { "remote" };
        dump.node_addresses.insert(addr.into(), place.to_owned());
    }
    Table::<Tuple, Conntrack>::open(pins, "conntrack")?.visit(|_, _| dump.connections += 1)?;
    Ok(dump)
}

fn services(pins: &Path) -> Result<Vec<ServiceRow>> {
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
    let address = if key.addr == Addr::ANY { "*".to_owned() } else { IpAddr::from(key.addr).to_string() };
    let protocol = match Protocol::from_number(key.proto) {
        Some(Protocol::Tcp) => "TCP",
        Some(Protocol::Udp) => "UDP",
        None => "?",
    };
    let scope = if key.scope == Scope::External as u8 { " external" } else { "" };
    format!("{address}:{}/{protocol}{scope}", key.port.number())
}

pub(crate) fn prefix(key: &RouteKey) -> String {
    let bits = if key.addr.is_v4() { key.prefix.saturating_sub(96) } else { key.prefix };
    format!("{}/{bits}", IpAddr::from(key.addr))
}

fn counters(pins: &Path) -> Result<BTreeMap<String, u64>> {
    let table = CpuTable::open(pins, "counters")?;
    let mut counters = BTreeMap::new();
    for reason in DropReason::ALL {
        for (offset, direction) in ["ingress", "egress"].into_iter().enumerate() {
            let [packets, _] = table.sum::<2>(*reason as u32 * 2 + offset as u32)?;
            if packets > 0 {
                counters.insert(format!("{}/{direction}", reason.name()), packets);
            }
        }
    }
    Ok(counters)
}
