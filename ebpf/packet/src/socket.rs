//! Services at the moment a socket names its peer.

use crate::{
    service::{Resolved, Target, is_cluster_ip, resolve_address, resolve_loopback},
    tables::Services,
};
use leme_abi::{Addr, Port, Scope};

/// What a socket that names `addr:port` gets. On the node itself NodePorts and hostPorts answer on loopback too, unless
/// the node's settings say otherwise; in a pod loopback is the pod's. A port that a Service does not have is as good as
/// one that nobody serves.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined into hooks, where a structure would be copied to a short stack")]
pub fn choose_backend(
    tables: &impl Services,
    addr: &Addr,
    port: Port,
    proto: u8,
    host: bool,
    source: impl FnOnce() -> Addr,
    pick: u32,
    target: &mut Target,
) -> Resolved {
    if !addr.is_loopback_v4() {
        let found = resolve_address(tables, source, addr, (port, proto), Scope::Cluster, pick, target);
        let refused = found == Resolved::Unknown && is_cluster_ip(tables, addr);
        return if refused { Resolved::Empty } else { found };
    }
    if host { resolve_loopback(tables, source, addr, (port, proto), pick, target) } else { Resolved::Foreign }
}
