//! Services at the moment a socket names its peer.

use crate::{
    service::{Resolved, Target, resolve_address, resolve_node_port},
    tables::Services,
};
use leme_abi::{Addr, NodeAddress, Port, Scope};

/// What a socket that names `addr:port` gets. On the node itself NodePorts answer on loopback too, unless the node's
/// settings say otherwise; in a pod loopback is the pod's.
#[inline(always)]
pub fn choose_backend(
    tables: &impl Services,
    addr: &Addr,
    port: Port,
    proto: u8,
    host: bool,
    pick: u32,
    target: &mut Target,
) -> Resolved {
    if !addr.is_loopback_v4() {
        return resolve_address(tables, None, addr, (port, proto), Scope::Cluster, pick, target);
    }
    if !host || tables.node_address(&Addr::LOOPBACK) & NodeAddress::NO_NODE_PORTS != 0 {
        return Resolved::Foreign;
    }
    resolve_node_port(tables, (port, proto), pick, target)
}
