//! Session affinity as rows.

use super::services;
use crate::{Result, connections::monotonic, table::Table};
use leme_abi::{Affinity, AffinityKey, Backend, MemberKey};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// One entry of `affinity`: who stays with whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AffinityRow {
    pub client: IpAddr,
    /// Id of the Service port: the lowest of those that serve it, and where that one is reached.
    pub service: u32,
    pub frontends: Vec<String>,
    /// None: it is gone, and the client's next connection chooses anew.
    pub backend: Option<SocketAddr>,
    /// Since the client's last connection.
    pub idle_seconds: f64,
    /// Silence after which the client chooses anew.
    pub timeout_seconds: u32,
}

/// Every client that is remembered, by address.
pub fn affinity(pins: &Path) -> Result<Vec<AffinityRow>> {
    let services: HashMap<u32, _> = services(pins)?.into_iter().map(|row| (row.id, row)).collect();
    let backends: HashMap<u32, Backend> = Table::open(pins, "backends")?.entries()?.into_iter().collect();
    let serving = serving(Table::<MemberKey, u32>::open(pins, "members")?.entries()?);
    let now = monotonic();
    let mut rows = Vec::new();
    Table::<AffinityKey, Affinity>::open(pins, "affinity")?.visit(|key, entry| {
        let id = serving.get(&key.service).copied().unwrap_or(key.service);
        let service = services.get(&id);
        let backend = backends.get(&entry.backend);
        rows.push(AffinityRow {
            client: key.client.into(),
            service: id,
            frontends: service.map(|row| row.frontends.clone()).unwrap_or_default(),
            backend: backend.map(|backend| SocketAddr::new(backend.addr.into(), backend.port.number())),
            idle_seconds: now.saturating_sub(entry.used) as f64 / 1e9,
            timeout_seconds: service.map_or(0, |row| row.affinity),
        });
    })?;
    rows.sort_by_key(|row| (row.client, row.service));
    rows.dedup_by_key(|row| (row.client, row.service));
    Ok(rows)
}

/// The lowest id of those that remember their clients under each group.
fn serving(members: Vec<(MemberKey, u32)>) -> HashMap<u32, u32> {
    let mut lowest = HashMap::new();
    for (key, group) in members.into_iter().filter(|(key, _)| *key == MemberKey::group(key.service)) {
        let id = lowest.entry(group).or_insert(key.service);
        *id = key.service.min(*id);
    }
    lowest
}
