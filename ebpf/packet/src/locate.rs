//! Where an address lives.

use crate::{Kind, Next, Tables, Work, service::is_cluster_ip};
use leme_abi::{Addr, DropReason, NodeAddress, Route};

/// The way to an address from this node.
#[inline(always)]
pub fn locate(tables: &impl Tables, work: &mut Work, addr: Addr) -> Next {
    if let Some(endpoint) = tables.endpoint(&addr) {
        work.endpoint = *endpoint;
        return Next::Pod;
    }
    if tables.node_address(&addr) & NodeAddress::LOCAL != 0 {
        return Next::Pass;
    }
    let Some(route) = tables.route(&addr) else { return Next::Outside };
    work.node = route.node;
    match route.flags {
        0 => Next::Overlay,
        Route::LOCAL => work.drop(DropReason::NoEndpoint),
        Route::SERVICES => work.drop(DropReason::NoService),
        _ => work.drop(DropReason::NoRoute),
    }
}

/// `next` is the way of a packet that no Service takes, as its destination alone says. As kube-proxy does, a cluster IP at a
/// port which it does not have refuses; one that nobody has is silent: this node may not know its Service yet, and whoever
/// is not refused tries again.
#[inline(always)]
pub fn refuse_unserved(tables: &impl Tables, work: &mut Work, next: Next) -> Next {
    let strays = matches!(next, Next::Outside) || (matches!(next, Next::Drop) && work.reason == DropReason::NoService);
    // Nobody is sent errors about errors, nor about later fragments (RFC 1122 §3.2.2).
    let is_told = !matches!(work.packet.kind, Kind::Error | Kind::Fragment | Kind::Stray);
    if strays && is_told && is_cluster_ip(tables, &work.packet.dst) {
        return work.reject(DropReason::NoServicePort);
    }
    next
}
