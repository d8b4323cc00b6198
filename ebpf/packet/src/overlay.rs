//! The VXLAN device.

use crate::{
    Kind, Next, Tables, Work,
    locate::locate,
    nat::{Source, establish, follow},
};
use leme_abi::{DropReason, Port, Protocol};

/// UDP port of VXLAN (IANA).
const VXLAN: u16 = 4789;

#[inline(always)]
pub fn is_tunnel(proto: u8, dport: Port) -> bool {
    proto == Protocol::UDP && dport.number() == VXLAN
}

/// The node's own packets to other nodes' pods. Their source must be the router address: the answer to any other
/// address of this node would be masqueraded over there.
#[inline(always)]
pub fn overlay_egress(tables: &impl Tables, work: &mut Work) -> Next {
    if matches!(work.packet.kind, Kind::Stray) {
        return work.drop(DropReason::Fragment);
    }
    if follow(tables, work) {
        return locate(tables, work, work.to.dst);
    }
    let next = locate(tables, work, work.packet.dst);
    if !matches!(next, Next::Overlay) {
        return work.drop(DropReason::NoRoute);
    }
    if work.packet.src == tables.router() || matches!(work.packet.kind, Kind::Error) {
        return next;
    }
    if matches!(work.packet.kind, Kind::Fragment) {
        return work.drop(DropReason::Fragment);
    }
    let target = (work.packet.tuple.dst, work.packet.tuple.dport);
    let result = establish(tables, work, target, Source::Replace(tables.router()), (0, 0));
    work.unless(result, next)
}

/// Decapsulated packets: for pods of this node, for the node itself, or answers on their way back to an outside
/// client whose connection this node forwarded. Nothing else is carried on.
#[inline(always)]
pub fn overlay_ingress(tables: &impl Tables, work: &mut Work) -> Next {
    if matches!(work.packet.kind, Kind::Stray) {
        return work.drop(DropReason::Fragment);
    }
    if follow(tables, work) {
        return locate(tables, work, work.to.dst);
    }
    match locate(tables, work, work.packet.dst) {
        // A tunnel in the tunnel: what a pod may not send to a node, it may not send to its router address either.
        Next::Pass if is_tunnel(work.packet.tuple.proto, work.packet.tuple.dport) => work.drop(DropReason::Tunnel),
        next @ (Next::Pod | Next::Pass) => next,
        _ => work.drop(DropReason::NoEndpoint),
    }
}
