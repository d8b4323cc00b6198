//! A packet leaves a pod.

use crate::{
    Kind, Next, Tables, Work,
    locate::locate,
    nat::{Source, establish, follow_service},
    service::{Resolved, resolve},
};
use leme_abi::{DropReason, Scope};

/// `ifindex` is the host side of the veth pair it came from: a pod sends from its own address only.
#[inline(always)]
pub fn from_pod(tables: &impl Tables, work: &mut Work, ifindex: u32) -> Next {
    if !tables.endpoint(&work.packet.src).is_some_and(|endpoint| endpoint.ifindex == ifindex) {
        return Next::Drop(DropReason::Spoofed);
    }
    if work.packet.dst.is_multicast_v4() {
        return Next::Drop(DropReason::Multicast);
    }
    if follow_service(tables, work) {
        return locate(tables, &work.to.dst);
    }
    if let Some(endpoint) = tables.endpoint(&work.packet.dst) {
        return Next::Pod(endpoint);
    }
    if matches!(work.packet.kind, Kind::Tcp | Kind::Udp) {
        match resolve(tables, &work.packet.tuple, Scope::Cluster, tables.random_slot()) {
            Resolved::Foreign => {}
            Resolved::Empty => return Next::Reject,
            Resolved::Backend { service, id, backend } => {
                let next = locate(tables, &backend.addr);
                let source = match next {
                    // A pod never sees a packet from itself: its answer would not come back.
                    Next::Pod(_) if backend.addr == work.packet.src => Source::Replace(tables.router()),
                    Next::Outside => Source::Replace(tables.node()),
                    _ => Source::Keep(tables.router()),
                };
                let target = (backend.addr, backend.port);
                return establish(tables, work, target, source, (service, id)).map(|()| next).into();
            }
        }
    }
    match locate(tables, &work.packet.dst) {
        Next::Outside => masquerade(tables, work),
        next => next,
    }
}

#[inline(always)]
fn masquerade(tables: &impl Tables, work: &mut Work) -> Next {
    if matches!(work.packet.kind, Kind::Error) {
        return Next::Drop(DropReason::Untracked);
    }
    let target = (work.packet.tuple.dst, work.packet.tuple.dport);
    establish(tables, work, target, Source::Replace(tables.node()), (0, 0)).map(|()| Next::Outside).into()
}
