//! Where an address lives.

use crate::{Next, Tables, Work};
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
        _ => work.drop(DropReason::NoRoute),
    }
}
