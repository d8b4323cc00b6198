//! The network of a local cluster: host ends of the nodes' NICs, and the machine's own device to the outside.

use crate::{
    Kind, Next, Work,
    nat::{Source, establish, follow},
    tables::Connections,
};
use leme_abi::{Addr, DropReason, LanNode};

/// What the LAN programs read besides connections.
pub trait LanTables: Connections {
    fn lan_node(&self, addr: &Addr) -> Option<&LanNode>;
}

/// A packet that is for no other node leaves one: to the machine itself, or outside. `uplink` is the machine's address on
/// the device that leads to the packet's destination, if there is one and nodes may use it.
#[inline(always)]
pub fn lan(tables: &impl Connections, work: &mut Work, uplink: Option<&Addr>) -> Next {
    let Some(address) = uplink else { return Next::Pass };
    if matches!(work.packet.kind, Kind::Stray) {
        return work.drop(DropReason::Fragment);
    }
    if follow(tables, work) {
        return Next::Outside;
    }
    match work.packet.kind {
        Kind::Error => return work.drop(DropReason::Untracked),
        Kind::Fragment => return work.drop(DropReason::Fragment),
        _ => {}
    }
    let target = (work.packet.tuple.dst, work.packet.tuple.dport);
    let result = establish(tables, work, target, Source::Replace(*address), (0, 0));
    work.unless(result, Next::Outside)
}

/// A packet arrives from the outside: an answer to a node, or a client that addresses one; that connection is
/// remembered as it is, so that its answers are not taken for new ones and given the machine's address. Everything else
/// is the machine's.
#[inline(always)]
pub fn lan_uplink<'a>(tables: &'a impl LanTables, work: &mut Work) -> Option<&'a LanNode> {
    if matches!(work.packet.kind, Kind::Stray) {
        return tables.lan_node(&work.packet.dst);
    }
    if follow(tables, work) {
        return tables.lan_node(&work.to.dst);
    }
    let node = tables.lan_node(&work.packet.dst)?;
    if matches!(work.packet.kind, Kind::Fragment) {
        return Some(node);
    }
    let target = (work.packet.tuple.dst, work.packet.tuple.dport);
    let source = Source::Keep(work.packet.src);
    if !matches!(work.packet.kind, Kind::Error) && establish(tables, work, target, source, (0, 0)).is_err() {
        return None;
    }
    Some(node)
}
