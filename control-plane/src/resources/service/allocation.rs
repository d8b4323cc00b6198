//! Cluster IPs and node ports: each one taken is a key of its own, created and deleted in the transaction of its
//! Service. Taking one costs a few reads however many Services there are, and the key's creation is the lock.
//!
//! Cluster IPs are IPAddress objects as upstream has them; node ports are `nodeports.internal`. What a writer asks for
//! is checked; what it leaves open is drawn at random, outside of the band that upstream leaves to those who choose.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    ops::RangeInclusive,
};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::{
    Companions, Context, FieldError, StorageView,
    field::{At, int, items, text},
};
use super::{is_headless, needs_address, needs_health_port, needs_node_ports, node_ports};

const ADDRESSES: &str = "ipaddresses.networking.k8s.io";
const PORTS: &str = "nodeports.internal";
/// Random draws before the whole range is searched.
const DRAWS: usize = 32;

type Failed = Vec<FieldError>;

pub(super) async fn allocate(
    context: &Context<'_>,
    view: &dyn StorageView,
    mut new: Option<&mut Value>,
    old: Option<&Value>,
) -> Result<Companions, Failed> {
    if context.subresource == Some("status") {
        return Ok(Companions::default());
    }
    let mut companions = Companions::default();
    if let Some(new) = new.as_deref_mut() {
        take_address(context, view, new, old, &mut companions).await?;
        take_ports(view, new, old, &mut companions).await?;
    }
    release(new.as_deref(), old, &mut companions);
    Ok(companions)
}

/// What stored Services hold and the ranges do not know, and the other way round: `(missing, leaked)`.
///
/// Read the allocations before the Services: a Service created in between then shows as already allocated at worst.
/// Act on a leak only if it shows twice: its Service may just be on its way.
pub fn repair(services: &[Value], addresses: &[Value], ports: &[Value], now: Timestamp) -> Companions {
    let mut wanted_addresses = BTreeMap::new();
    let mut wanted_ports = BTreeMap::new();
    for service in services {
        wanted_addresses.extend(address_of(service).map(|address| (address.to_string(), service)));
        wanted_ports.extend(ports_of(service).into_iter().map(|port| (port.to_string(), service)));
    }
    let mut companions = Companions::default();
    let known = |stored: &[Value]| -> BTreeSet<String> {
        stored.iter().map(|object| text(object, "/metadata/name").to_owned()).collect()
    };
    let (known_addresses, known_ports) = (known(addresses), known(ports));
    for (name, service) in wanted_addresses.iter().filter(|(name, _)| !known_addresses.contains(*name)) {
        companions.create.push(address_entry(name, service, now));
    }
    for (name, service) in wanted_ports.iter().filter(|(name, _)| !known_ports.contains(*name)) {
        companions.create.push(port_entry(name, service));
    }
    let ours = addresses.iter().filter(|a| text(a, "/spec/parentRef/resource") == "services");
    let leaked = ours.map(|a| text(a, "/metadata/name")).filter(|name| !wanted_addresses.contains_key(*name));
    companions.delete.extend(leaked.map(|name| entry(ADDRESSES, name)));
    let leaked = known_ports.iter().filter(|name| !wanted_ports.contains_key(*name));
    companions.delete.extend(leaked.map(|name| entry(PORTS, name)));
    companions
}

fn entry(resource: &str, name: &str) -> (String, String, String) {
    (resource.to_owned(), String::new(), name.to_owned())
}

fn address_of(service: &Value) -> Option<Ipv4Addr> {
    if !needs_address(service) { None } else { text(service, "/spec/clusterIP").parse().ok() }
}

/// Node ports and the health check's: they share one range.
fn ports_of(service: &Value) -> BTreeSet<u16> {
    let health = service["spec"]["healthCheckNodePort"].as_i64().filter(|port| *port != 0);
    let all = node_ports(service).map(|(_, port)| port).chain(health);
    all.filter_map(|port| u16::try_from(port).ok()).collect()
}

fn release(new: Option<&Value>, old: Option<&Value>, companions: &mut Companions) {
    let Some(old) = old else { return };
    let (address, kept) = (address_of(old), new.and_then(address_of));
    if let Some(address) = address.filter(|_| address != kept) {
        companions.delete.push(entry(ADDRESSES, &address.to_string()));
    }
    let kept = new.map(ports_of).unwrap_or_default();
    companions.delete.extend(ports_of(old).difference(&kept).map(|port| entry(PORTS, &port.to_string())));
}

async fn take_address(
    context: &Context<'_>,
    view: &dyn StorageView,
    new: &mut Value,
    old: Option<&Value>,
    companions: &mut Companions,
) -> Result<(), Failed> {
    if !needs_address(new)
        || is_headless(new)
        || (address_of(new).is_some() && address_of(new) == old.and_then(address_of))
    {
        return Ok(());
    }
    let range = Addresses::new(view.ranges().service);
    let address = match address_of(new) {
        Some(asked) => match range.check(view, asked).await {
            Ok(()) => asked,
            Err(why) => return Err(vec![failed_address(new, format!("failed to allocate IP {asked}: {why}"))]),
        },
        None => {
            let free = range.draw(view).await;
            free.ok_or_else(|| vec![failed_address(new, "failed to allocate a serviceIP: range is full".to_owned())])?
        }
    };
    let name = address.to_string();
    new["spec"]["clusterIP"] = name.as_str().into();
    new["spec"]["clusterIPs"] = json!([name]);
    companions.create.push(address_entry(&name, new, context.now));
    Ok(())
}

fn failed_address(service: &Value, why: String) -> FieldError {
    At::root(service).down(&["spec", "clusterIPs"]).invalid(why)
}

struct Addresses {
    first: u32,
    last: u32,
    dynamic: u32,
}

impl Addresses {
    /// The network's own address and the broadcast address are nobody's. The lower band is for those who choose.
    fn new((network, prefix): (Ipv4Addr, u8)) -> Self {
        let size = 1u64 << (32 - u32::from(prefix.clamp(8, 30)));
        let base = u32::from(network) & !((size - 1) as u32);
        let (first, last) = (base + 1, base + (size - 2) as u32);
        let band = if size < 16 { 0 } else { (size / 16).clamp(16, 256) as u32 };
        Self { first, last, dynamic: (first + band).min(last) }
    }

    async fn check(&self, view: &dyn StorageView, asked: Ipv4Addr) -> Result<(), &'static str> {
        if !(self.first..=self.last).contains(&u32::from(asked)) {
            return Err("the provided network does not match the current range");
        }
        match view.get(ADDRESSES, "", &asked.to_string()).await {
            Some(_) => Err("provided IP is already allocated"),
            None => Ok(()),
        }
    }

    async fn draw(&self, view: &dyn StorageView) -> Option<Ipv4Addr> {
        for _ in 0..DRAWS {
            let candidate = Ipv4Addr::from(fastrand::u32(self.dynamic..=self.last));
            if view.get(ADDRESSES, "", &candidate.to_string()).await.is_none() {
                return Some(candidate);
            }
        }
        let taken = names(view, ADDRESSES).await;
        let all = (self.dynamic..=self.last).chain(self.first..self.dynamic);
        all.map(Ipv4Addr::from).find(|address| !taken.contains(&address.to_string()))
    }
}

async fn names(view: &dyn StorageView, resource: &str) -> BTreeSet<String> {
    view.list(resource).await.iter().map(|object| text(object, "/metadata/name").to_owned()).collect()
}

async fn take_ports(
    view: &dyn StorageView,
    new: &mut Value,
    old: Option<&Value>,
    companions: &mut Companions,
) -> Result<(), Failed> {
    let held = old.map(ports_of).unwrap_or_default();
    let mut mine = held.clone();
    take_node_ports(view, new, &mut mine).await?;
    take_health_port(view, new, &mut mine, &held).await?;
    let taken = ports_of(new);
    companions.create.extend(taken.difference(&held).map(|port| port_entry(&port.to_string(), new)));
    Ok(())
}

/// What is asked for first, so that a draw never takes it away.
async fn take_node_ports(view: &dyn StorageView, new: &mut Value, mine: &mut BTreeSet<u16>) -> Result<(), Failed> {
    let range = view.ranges().node_ports;
    let count = items(new, "/spec/ports").len();
    let path = |i: usize| format!("spec.ports[{i}].nodePort");
    let asked = |new: &Value, i: usize| int(new, &format!("/spec/ports/{i}/nodePort"));
    for i in 0..count {
        if asked(new, i) != 0 {
            let port = take_asked(view, &range, mine, asked(new, i), path(i)).await?;
            mine.insert(port);
        }
    }
    if !needs_node_ports(new) {
        return Ok(());
    }
    for i in 0..count {
        if asked(new, i) == 0 {
            let port = match sibling(new, i) {
                Some(port) => port,
                None => take_any(view, &range, mine, path(i)).await?,
            };
            mine.insert(port);
            new["spec"]["ports"][i]["nodePort"] = port.into();
        }
    }
    Ok(())
}

async fn take_health_port(
    view: &dyn StorageView,
    new: &mut Value,
    mine: &mut BTreeSet<u16>,
    held: &BTreeSet<u16>,
) -> Result<(), Failed> {
    if !needs_health_port(new) {
        return Ok(());
    }
    let range = view.ranges().node_ports;
    let field = "spec.healthCheckNodePort".to_owned();
    let port = match int(new, "/spec/healthCheckNodePort") {
        0 => take_any(view, &range, mine, field).await?,
        asked => take_asked(view, &range, held, asked, field).await?,
    };
    mine.insert(port);
    new["spec"]["healthCheckNodePort"] = port.into();
    Ok(())
}

/// The same port number under another protocol gets the same node port, as upstream does for DNS-like Services.
fn sibling(service: &Value, index: usize) -> Option<u16> {
    let ports = service["spec"]["ports"].as_array()?;
    let this = &ports[index];
    let other = ports.iter().find(|p| {
        p["port"] == this["port"]
            && p["protocol"] != this["protocol"]
            && p["nodePort"].as_i64().unwrap_or_default() != 0
    })?;
    u16::try_from(other["nodePort"].as_i64()?).ok()
}

async fn take_asked(
    view: &dyn StorageView,
    range: &RangeInclusive<u16>,
    mine: &BTreeSet<u16>,
    asked: i64,
    field: String,
) -> Result<u16, Failed> {
    let value = Value::from(asked);
    let at = At { path: field, value: &value };
    let port = u16::try_from(asked).ok().filter(|port| range.contains(port)).ok_or_else(|| {
        let (low, high) = (range.start(), range.end());
        vec![at.invalid(format!("provided port is not in the valid range. The range of valid ports is {low}-{high}"))]
    })?;
    match mine.contains(&port) || view.get(PORTS, "", &port.to_string()).await.is_none() {
        true => Ok(port),
        false => Err(vec![at.invalid("provided port is already allocated")]),
    }
}

async fn take_any(
    view: &dyn StorageView,
    range: &RangeInclusive<u16>,
    mine: &BTreeSet<u16>,
    field: String,
) -> Result<u16, Failed> {
    let dynamic = dynamic_start(range);
    for _ in 0..DRAWS {
        let port = fastrand::u16(dynamic..=*range.end());
        if !mine.contains(&port) && view.get(PORTS, "", &port.to_string()).await.is_none() {
            return Ok(port);
        }
    }
    let taken = names(view, PORTS).await;
    let all = (dynamic..=*range.end()).chain(*range.start()..dynamic);
    let free = all.into_iter().find(|port| !mine.contains(port) && !taken.contains(&port.to_string()));
    let zero = Value::from(0);
    let at = At { path: field, value: &zero };
    free.ok_or_else(|| vec![at.invalid("failed to allocate a nodePort: range is full")])
}

/// Ports below this are left to those who choose (upstream: a 32nd of the range, between 16 and 128).
fn dynamic_start(range: &RangeInclusive<u16>) -> u16 {
    let size = u32::from(*range.end()) - u32::from(*range.start()) + 1;
    let band = if size < 16 { 0 } else { (size / 32).clamp(16, 128) };
    (u32::from(*range.start()) + band).min(u32::from(*range.end())) as u16
}

fn address_entry(name: &str, service: &Value, now: Timestamp) -> (String, String, String, Value) {
    let object = json!({
        "kind": "IPAddress",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {
            "name": name,
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": Timestamp::from_second(now.as_second()).unwrap_or(now).to_string(),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv4",
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {
            "resource": "services",
            "namespace": text(service, "/metadata/namespace"),
            "name": text(service, "/metadata/name"),
        }},
    });
    (ADDRESSES.to_owned(), String::new(), name.to_owned(), object)
}

fn port_entry(name: &str, service: &Value) -> (String, String, String, Value) {
    let owner = format!("{}/{}", text(service, "/metadata/namespace"), text(service, "/metadata/name"));
    let object = json!({
        "kind": "NodePort", "apiVersion": "internal/v1", "metadata": {"name": name}, "spec": {"service": owner},
    });
    (PORTS.to_owned(), String::new(), name.to_owned(), object)
}

#[cfg(test)]
mod tests;
