//! Connections and their translations as rows.

use super::protocol;
use crate::{Result, connections::monotonic, table::Table};
use leme_abi::{Conntrack, ConntrackState, Leg, Translation, Tuple};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// Who talks to whom: one direction of a connection. ICMP echo has its identifier as the requester's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peers {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// One entry of `conntrack`, with its translation from `nat`. Of two numbers the first is the opener's direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionRow {
    pub protocol: String,
    /// As the opener sent it.
    #[serde(flatten)]
    pub original: Peers,
    /// As it is behind the translation; none where the `nat` entry is gone.
    pub translated: Option<Peers>,
    /// `new`, `established`, `closing`, `closed`
    pub state: String,
    pub age_seconds: f64,
    /// Until it may be forgotten, if nothing more is heard; negative: waits for the next collection.
    pub expires_seconds: f64,
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    /// Service and backend ids, 0 without a Service.
    pub service: u32,
    pub backend: u32,
}

/// One entry of `nat`: what a packet with these peers becomes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TranslationRow {
    pub protocol: String,
    #[serde(flatten)]
    pub from: Peers,
    pub to: Peers,
    /// `forward`, from the one who opened it, or `reply`
    pub leg: String,
}

/// Every connection, by protocol and addresses.
pub fn connections(pins: &Path) -> Result<Vec<ConnectionRow>> {
    let translations: HashMap<Tuple, Translation> = Table::open(pins, "nat")?.entries()?.into_iter().collect();
    let now = monotonic();
    let mut rows = Vec::new();
    Table::<Tuple, Conntrack>::open(pins, "conntrack")?.visit(|original, connection| {
        rows.push(connection_row(original, connection, translations.get(original), now));
    })?;
    rows.sort_by(|a, b| (&a.protocol, a.original).cmp(&(&b.protocol, b.original)));
    // The kernel shows an entry twice if others come and go meanwhile.
    rows.dedup_by(|a, b| (&a.protocol, a.original) == (&b.protocol, b.original));
    Ok(rows)
}

fn connection_row(original: &Tuple, connection: &Conntrack, nat: Option<&Translation>, now: u64) -> ConnectionRow {
    let since = |from: u64, to: u64| (to as f64 - from as f64) / 1e9;
    ConnectionRow {
        protocol: protocol(original.proto),
        original: peers(original),
        translated: nat.map(|translation| peers(&translation.to)),
        state: state(connection.state).to_owned(),
        age_seconds: since(connection.created, now),
        expires_seconds: since(now, connection.expires),
        packets: connection.packets,
        bytes: connection.bytes,
        service: connection.service,
        backend: connection.backend,
    }
}

/// Every translation, by protocol and addresses.
pub fn translations(pins: &Path) -> Result<Vec<TranslationRow>> {
    let mut rows = Vec::new();
    Table::<Tuple, Translation>::open(pins, "nat")?.visit(|tuple, translation| {
        let leg = if translation.leg == Leg::Forward as u8 { "forward" } else { "reply" };
        let (from, to) = (peers(tuple), peers(&translation.to));
        rows.push(TranslationRow { protocol: protocol(tuple.proto), from, to, leg: leg.to_owned() });
    })?;
    rows.sort();
    rows.dedup();
    Ok(rows)
}

fn peers(tuple: &Tuple) -> Peers {
    let end = |addr, port: leme_abi::Port| SocketAddr::new(IpAddr::from(addr), port.number());
    Peers { source: end(tuple.src, tuple.sport), destination: end(tuple.dst, tuple.dport) }
}

fn state(state: u8) -> &'static str {
    const NEW: u8 = ConntrackState::New as u8;
    const ESTABLISHED: u8 = ConntrackState::Established as u8;
    const CLOSING: u8 = ConntrackState::Closing as u8;
    match state {
        NEW => "new",
        ESTABLISHED => "established",
        CLOSING => "closing",
        _ => "closed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leme_abi::{Addr, Port, Protocol};

    #[test]
    fn a_connection_is_told_with_both_tuples_and_its_times() {
        let addr = |n: u8| Addr::from(std::net::Ipv4Addr::new(10, 0, 0, n));
        let tuple = |src, dst, dport| Tuple {
            src: addr(src),
            dst: addr(dst),
            sport: Port::new(40_000),
            dport: Port::new(dport),
            proto: Protocol::TCP,
            reserved: [0; 3],
        };
        let second = 1_000_000_000;
        let connection = Conntrack {
            created: 10 * second,
            expires: 25 * second,
            packets: [3, 2],
            bytes: [180, 120],
            state: ConntrackState::Closing as u8,
            ..Conntrack::default()
        };
        let nat = Translation { to: tuple(1, 7, 8080), ..Translation::default() };
        let row = connection_row(&tuple(1, 96, 80), &connection, Some(&nat), 12 * second);
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(json["protocol"], "TCP");
        assert_eq!((&json["source"], &json["destination"]), (&"10.0.0.1:40000".into(), &"10.0.0.96:80".into()));
        assert_eq!(json["translated"]["destination"], "10.0.0.7:8080");
        assert_eq!((row.state.as_str(), row.age_seconds, row.expires_seconds), ("closing", 2.0, 13.0));
    }
}
