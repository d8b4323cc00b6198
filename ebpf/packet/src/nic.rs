//! The node's devices towards the outside.

use crate::{
    Kind, Next, Tables, Work,
    locate::{locate, refuse_unserved},
    nat::{Source, establish_service, follow_service, keep_apart},
    overlay::is_tunnel,
    service::{Resolved, resolve},
};
use leme_abi::{Addr, DropReason, NodeAddress, Route, Scope};

/// A later fragment may overtake its first: that belongs to the node's stack, which waits for the rest.
#[inline(always)]
fn is_for_the_stack(work: &Work) -> bool {
    // Tunnelled packets are decided about on the VXLAN device.
    matches!(work.packet.kind, Kind::Stray) || is_tunnel(work.packet.tuple.proto, work.packet.tuple.dport)
}

/// A packet arrives: answers to masqueraded connections, and Services that outside clients address.
///
/// Who is excluded from masquerade knows pods by their own addresses and may speak to them.
///
/// The client's address stays where the answer passes here anyway: at pods of this node and at the node itself.
#[inline(always)]
pub fn nic_ingress(tables: &impl Tables, work: &mut Work) -> Next {
    if is_for_the_stack(work) {
        return Next::Pass;
    }
    if follow_service(tables, work) {
        return locate(tables, work, work.to.dst);
    }
    if let Some(endpoint) = tables.endpoint(&work.packet.dst)
        && tables.is_excluded(&work.packet.src)
    {
        work.endpoint = *endpoint;
        return Next::Pod;
    }
    serve(tables, work, Scope::External, |next| match next {
        Next::Overlay => Source::Replace(tables.router()),
        Next::Outside => Source::Replace(tables.node()),
        _ => Source::Keep(tables.router()),
    })
}

/// A packet of the node itself leaves: answers of a host-network backend, and Services that the socket layer missed
/// (sockets of other cgroups, of the kernel, or older than this agent). NodePorts of other nodes are theirs to serve.
///
/// A backend on this very node sees the Service's own address as its client, so that its answer passes here again.
#[inline(always)]
pub fn nic_egress(tables: &impl Tables, work: &mut Work) -> Next {
    if is_for_the_stack(work) {
        return Next::Pass;
    }
    if follow_service(tables, work) {
        return if work.to.dst == work.packet.dst { Next::Pass } else { turn(locate(tables, work, work.to.dst)) };
    }
    if tables.node_address(&work.packet.dst) != 0 {
        return keep_apart(tables, work, Next::Pass);
    }
    let (own, frontend) = (work.packet.src, work.packet.dst);
    let next = serve(tables, work, Scope::Cluster, |next| match next {
        Next::Overlay => Source::Replace(tables.router()),
        Next::Pass => Source::Replace(frontend),
        _ => Source::Replace(own),
    });
    if work.rewrite { turn(next) } else { next }
}

/// What lives on this node does not leave it.
#[inline(always)]
fn turn(next: Next) -> Next {
    if matches!(next, Next::Pass) { Next::Back } else { next }
}

/// Opens the connection if the packet addresses a Service; `source` depends on where the backend lives.
#[inline(always)]
fn serve(tables: &impl Tables, work: &mut Work, scope: Scope, source: impl Fn(Next) -> Source) -> Next {
    if !matches!(work.packet.kind, Kind::Tcp | Kind::Udp | Kind::Sctp) {
        return pass_unserved(tables, work);
    }
    let found = resolve(tables, &work.packet.tuple, scope, tables.random_slot(), &mut work.target);
    let is_ours = !matches!(found, Resolved::Foreign | Resolved::Unknown);
    if is_ours && matches!(scope, Scope::External) && is_made_up(tables, &work.packet.src) {
        return work.drop(DropReason::Spoofed);
    }
    match found {
        Resolved::Foreign => Next::Pass,
        Resolved::Unknown => pass_unserved(tables, work),
        Resolved::Empty => work.reject(DropReason::NoBackend),
        Resolved::Elsewhere => work.drop(DropReason::NoLocalBackend),
        Resolved::Denied => work.drop(DropReason::SourceRange),
        Resolved::Backend => {
            let next = locate(tables, work, work.target.backend.addr);
            if matches!(next, Next::Drop) {
                return next;
            }
            let result = establish_service(tables, work, source(next));
            work.unless(result, next)
        }
    }
}

/// What the node's stack has sent or is to forward passes, unless it is for a cluster IP. Connections that run are not
/// looked at again.
#[inline(always)]
fn pass_unserved(tables: &impl Tables, work: &mut Work) -> Next {
    if matches!(work.packet.kind, Kind::Tcp | Kind::Sctp) && !work.packet.opens() {
        return Next::Pass;
    }
    let in_range = tables.route(&work.packet.dst).is_some_and(|route| route.flags == Route::SERVICES);
    let next = if in_range { work.drop(DropReason::NoService) } else { Next::Outside };
    match refuse_unserved(tables, work, next) {
        Next::Outside => Next::Pass,
        next => next,
    }
}

/// Whether an address cannot be an outside client's: the kernel's own checks come too late for what goes past its
/// stack. Pods of other nodes come through the tunnel.
#[inline(always)]
fn is_made_up(tables: &impl Tables, src: &Addr) -> bool {
    src.is_this_host_v4()
        || src.is_multicast_v4()
        || tables.node_address(src) & NodeAddress::LOCAL != 0
        || tables.route(src).is_some()
}
