//! The network of a local cluster: host ends of the nodes' NICs, and the machine's own device to the outside.

use crate::{
    Kind, Work,
    nat::{Source, establish, follow},
    tables::Connections,
};
use leme_abi::{Addr, DropReason, LanNode};

/// What the LAN programs read besides connections.
pub trait LanTables: Connections {
    fn lan_node(&self, addr: &Addr) -> Option<LanNode>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LanNext {
    /// To the machine's own stack.
    Pass,
    Node(LanNode),
    Outside,
    Drop(DropReason),
}

/// A packet leaves a node: to another node, to the machine, or outside. `uplink` tells the machine's address on the
/// device that leads to the packet's destination, if there is one and nodes may use it.
#[inline(always)]
pub fn lan(tables: &impl LanTables, work: &mut Work, uplink: impl FnOnce() -> Option<Addr>) -> LanNext {
    if let Some(node) = tables.lan_node(&work.packet.dst) {
        return LanNext::Node(node);
    }
    let Some(address) = uplink() else { return LanNext::Pass };
    if follow(tables, work) {
        return LanNext::Outside;
    }
    if matches!(work.packet.kind, Kind::Error) {
        return LanNext::Drop(DropReason::Untracked);
    }
    let target = (work.packet.tuple.dst, work.packet.tuple.dport);
    match establish(tables, work, target, Source::Replace(address), (0, 0)) {
        Ok(()) => LanNext::Outside,
        Err(reason) => LanNext::Drop(reason),
    }
}

/// A packet arrives from the outside: an answer to a node goes there, everything else is the machine's.
#[inline(always)]
pub fn lan_uplink(tables: &impl LanTables, work: &mut Work) -> Option<LanNode> {
    if follow(tables, work) { tables.lan_node(&work.to.dst) } else { None }
}
