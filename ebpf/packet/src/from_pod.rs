//! A packet leaves a pod.

use crate::{
    Kind, Next, Tables, Work,
    locate::{locate, refuse_unserved},
    nat::{Source, establish, establish_service, follow_service, keep_apart},
    overlay::is_tunnel,
    rate::may_pass,
    service::{Resolved, resolve},
};
use leme_abi::{Addr, Direction, DropReason, Port, Scope};

/// `ifindex` is the host side of the veth pair it came from: a pod sends from its own address only.
#[inline(always)]
pub fn from_pod(tables: &impl Tables, work: &mut Work, ifindex: u32) -> Next {
    let Some(own) = tables.endpoint(&work.packet.src) else { return work.drop(DropReason::Spoofed) };
    if own.ifindex != ifindex {
        return work.drop(DropReason::Spoofed);
    }
    // A pod is no router: an error of its own is about what it has received itself.
    if matches!(work.packet.kind, Kind::Error) && work.packet.tuple.src != work.packet.src {
        return work.drop(DropReason::Spoofed);
    }
    if work.packet.dst.is_multicast_v4() {
        return work.drop(DropReason::Multicast);
    }
    if work.packet.dst.is_this_host_v4() {
        return work.drop(DropReason::Martian);
    }
    if matches!(work.packet.kind, Kind::Stray) {
        return work.drop(DropReason::Fragment);
    }
    if enters_tunnel(tables, work, work.packet.dst, work.packet.tuple.dport) {
        return work.drop(DropReason::Tunnel);
    }
    if !may_pass(tables, own, &work.packet.src, Direction::Egress, work.packet.length) {
        return work.drop(DropReason::RateLimited);
    }
    if follow_service(tables, work) {
        return locate(tables, work, work.to.dst);
    }
    if let Some(endpoint) = tables.endpoint(&work.packet.dst) {
        work.endpoint = *endpoint;
        return keep_apart(tables, work, Next::Pod);
    }
    if matches!(work.packet.kind, Kind::Tcp | Kind::Udp | Kind::Sctp) {
        match resolve(tables, &work.packet.tuple, Scope::Cluster, tables.random_slot(), &mut work.target) {
            Resolved::Foreign | Resolved::Unknown => {}
            Resolved::Empty => return work.reject(DropReason::NoBackend),
            Resolved::Elsewhere => return work.drop(DropReason::NoLocalBackend),
            Resolved::Denied => return work.drop(DropReason::SourceRange),
            Resolved::Backend => return to_backend(tables, work),
        }
    }
    let next = locate(tables, work, work.packet.dst);
    match refuse_unserved(tables, work, next) {
        Next::Outside => masquerade(tables, work),
        next @ (Next::Drop | Next::Reject) => next,
        next => keep_apart(tables, work, next),
    }
}

/// Whoever can write to a node's end of the tunnel sends to any pod in anybody's name.
#[inline(always)]
fn enters_tunnel(tables: &impl Tables, work: &Work, dst: Addr, dport: Port) -> bool {
    is_tunnel(work.packet.tuple.proto, dport) && tables.node_address(&dst) != 0
}

#[inline(always)]
fn to_backend(tables: &impl Tables, work: &mut Work) -> Next {
    if enters_tunnel(tables, work, work.target.backend.addr, work.target.backend.port) {
        return work.drop(DropReason::Tunnel);
    }
    let next = locate(tables, work, work.target.backend.addr);
    let source = match next {
        Next::Drop => return next,
        // A pod never sees a packet from itself: its answer would not come back.
        Next::Pod if work.target.backend.addr == work.packet.src => Source::Replace(tables.router()),
        Next::Outside => Source::Replace(tables.node()),
        _ => Source::Replace(work.packet.src),
    };
    let result = establish_service(tables, work, source);
    work.unless(result, next)
}

#[inline(always)]
fn masquerade(tables: &impl Tables, work: &mut Work) -> Next {
    // Never nodes: over there the answer to a pod goes through the tunnel, from another address than was asked.
    if tables.node_address(&work.packet.dst) == 0 && tables.is_excluded(&work.packet.dst) {
        return keep_apart(tables, work, Next::Outside);
    }
    match work.packet.kind {
        Kind::Error => return work.drop(DropReason::Untracked),
        // The first one of it opened no connection, or that has been forgotten.
        Kind::Fragment => return work.drop(DropReason::Fragment),
        _ => {}
    }
    let target = (work.packet.tuple.dst, work.packet.tuple.dport);
    let result = establish(tables, work, target, Source::Replace(tables.node()), (0, 0));
    work.unless(result, Next::Outside)
}
