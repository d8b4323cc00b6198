//! Services at the moment a socket names its peer.

use crate::{
    service::{Resolved, Target, resolve_address},
    tables::Services,
};
use leme_abi::{Addr, Port, Scope};

/// What a socket that names `addr:port` gets. On the node itself a loopback address stands for the node's own, so that
/// NodePorts answer on localhost; in a pod loopback is the pod's.
#[inline(always)]
pub fn choose_backend(
    tables: &impl Services,
    addr: &Addr,
    port: Port,
    proto: u8,
    host: Option<Addr>,
    pick: u32,
    target: &mut Target,
) -> Resolved {
    match host {
        Some(node) if addr.is_loopback_v4() => {
            resolve_address(tables, &node, (port, proto), Scope::Cluster, pick, target)
        }
        None if addr.is_loopback_v4() => Resolved::Foreign,
        _ => resolve_address(tables, addr, (port, proto), Scope::Cluster, pick, target),
    }
}
