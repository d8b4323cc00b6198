//! Where an address lives.

use crate::{Next, Tables};
use leme_abi::{Addr, DropReason, NodeAddress, Route};

/// The way to an address from this node.
#[inline(always)]
pub fn locate(tables: &impl Tables, addr: &Addr) -> Next {
    if let Some(endpoint) = tables.endpoint(addr) {
        return Next::Pod(endpoint);
    }
    if tables.node_address(addr).is_some_and(|flags| flags & NodeAddress::LOCAL != 0) {
        return Next::Pass;
    }
    match tables.route(addr) {
        Some(route) if route.flags & Route::LOCAL != 0 => Next::Drop(DropReason::NoEndpoint),
        Some(route) if route.flags & Route::UNREACHABLE != 0 => Next::Drop(DropReason::NoRoute),
        Some(route) => Next::Overlay(route.node),
        None => Next::Outside,
    }
}
