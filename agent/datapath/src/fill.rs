//! How full the maps are.

use crate::{
    Result,
    connections::Connections,
    ledger::Ledger,
    table::{Table, capacity},
};
use bytemuck::Pod;
use leme_abi::{Addr, Affinity, AffinityKey, Endpoint, FragmentKey, Origin, OriginKey, Ports, Rates, Route, RouteKey};
use std::path::Path;

/// One map's entries and its room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFill {
    pub map: &'static str,
    pub entries: usize,
    pub capacity: u32,
}

/// All of a node's maps that can fill up. The Services' are known, the connections' were counted when last collected,
/// the rest is small and counted now.
pub(crate) fn fill(pins: &Path, ledger: &Ledger, connections: &Connections) -> Result<Vec<MapFill>> {
    let maps =
        ["frontends", "services", "slots", "backends", "source_ranges", "members"].into_iter().zip(ledger.sizes());
    let known = maps.map(|(map, entries)| Ok(MapFill { map, entries, capacity: capacity(pins, map)? }));
    let mut fills = known.collect::<Result<Vec<_>>>()?;
    fills.extend(connections.fill());
    fills.push(count::<Addr, Endpoint>(pins, "endpoints")?);
    fills.push(count::<Addr, Rates>(pins, "rates")?);
    fills.push(count::<RouteKey, Route>(pins, "routes")?);
    fills.push(count::<Addr, u32>(pins, "node_addresses")?);
    fills.push(count::<FragmentKey, Ports>(pins, "fragments")?);
    fills.push(count::<OriginKey, Origin>(pins, "sender_origin")?);
    fills.push(count::<u64, Origin>(pins, "udp_origin")?);
    fills.push(count::<AffinityKey, Affinity>(pins, "affinity")?);
    fills.push(count::<u64, Addr>(pins, "namespaces")?);
    Ok(fills)
}

fn count<K: Pod, V: Pod>(pins: &Path, map: &'static str) -> Result<MapFill> {
    let table = Table::<K, V>::open(pins, map)?;
    let mut entries = 0;
    table.visit(|_, _| entries += 1)?;
    Ok(MapFill { map, entries, capacity: table.capacity() })
}
