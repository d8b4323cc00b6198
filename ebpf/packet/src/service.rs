//! From a frontend to a backend.

use crate::tables::Services;
use leme_abi::{
    Addr, Affinity, AffinityKey, Backend, FrontendKey, MemberKey, NodeAddress, Port, Scope, Service, SlotKey, Tuple,
};

const SECOND: u64 = 1_000_000_000;

/// What an address turned out to be. Who serves it goes to a place of the caller's: an enum that carries it would
/// have the compiler copy what no branch has written, which the verifier refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// A Service that others must resolve: another node, or the packet path.
    Foreign,
    /// No Service has that port there.
    Unknown,
    /// A Service without endpoints.
    Empty,
    /// A Local traffic policy, and all endpoints are on other nodes.
    Elsewhere,
    /// A Service that is not for this client.
    Denied,
    Backend,
}

/// Who serves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub backend: Backend,
    pub service: u32,
    pub id: u32,
    /// Room for affinity: the stack is short.
    pub(crate) who: AffinityKey,
    pub(crate) last: Affinity,
}

/// Looks up who serves a tuple's destination, and whether it serves its source. `pick` chooses the slot. A loopback
/// address is a socket's matter: in a packet it is nobody's.
#[inline(always)]
pub fn resolve(tables: &impl Services, tuple: &Tuple, scope: Scope, pick: u32, target: &mut Target) -> Resolved {
    if tuple.dst.is_loopback_v4() {
        return Resolved::Foreign;
    }
    resolve_address(tables, || tuple.src, &tuple.dst, (tuple.dport, tuple.proto), scope, pick, target)
}

/// `source` is asked only where it matters who asks. At a socket that may not be known (`Addr::ANY`): then the Service is
/// left to the packet path.
#[inline(always)]
pub fn resolve_address(
    tables: &impl Services,
    source: impl FnOnce() -> Addr,
    addr: &Addr,
    (port, proto): (Port, u8),
    scope: Scope,
    pick: u32,
    target: &mut Target,
) -> Resolved {
    let exact = FrontendKey { addr: *addr, port, proto, scope: scope as u8 };
    let mut id = find(tables, exact);
    let mut at = NodeAddress::KNOWN | NodeAddress::LOCAL;
    if id == 0 {
        at = tables.node_address(addr);
        if at == 0 {
            return Resolved::Unknown;
        }
        if at & NodeAddress::LOCAL == 0 && matches!(scope, Scope::External) {
            return Resolved::Foreign;
        }
        id = find(tables, FrontendKey { addr: Addr::ANY, ..exact });
    }
    if id == 0 { Resolved::Foreign } else { pick_backend(tables, id, source, at, pick, target) }
}

/// Whether an address is some Service's cluster IP, at whatever port.
#[inline(always)]
pub fn is_cluster_ip(tables: &impl Services, addr: &Addr) -> bool {
    tables.frontend(&FrontendKey::address(*addr)) != 0
}

/// What the node's own sockets find on a loopback address: a hostPort of that very address, or what answers on every
/// address of the node.
#[inline(always)]
pub fn resolve_loopback(
    tables: &impl Services,
    source: impl FnOnce() -> Addr,
    addr: &Addr,
    (port, proto): (Port, u8),
    pick: u32,
    target: &mut Target,
) -> Resolved {
    let exact = FrontendKey { addr: *addr, port, proto, scope: Scope::Cluster as u8 };
    let at = tables.node_address(&Addr::LOOPBACK) | NodeAddress::LOCAL;
    let mut id = tables.frontend(&exact);
    if id == 0 {
        id = tables.frontend(&FrontendKey { addr: Addr::ANY, ..exact });
    }
    if id == 0 { Resolved::Foreign } else { pick_backend(tables, id, source, at, pick, target) }
}

/// Outside clients see the `External` entry where there is one, else the one everybody sees.
#[inline(always)]
fn find(tables: &impl Services, key: FrontendKey) -> u32 {
    let found = tables.frontend(&key);
    if found == 0 && key.scope == Scope::External as u8 {
        return tables.frontend(&FrontendKey { scope: Scope::Cluster as u8, ..key });
    }
    found
}

/// `at`: flags of the node's address that was named, where the frontend is for all of them.
#[inline(always)]
fn pick_backend(
    tables: &impl Services,
    id: u32,
    source: impl FnOnce() -> Addr,
    at: u32,
    pick: u32,
    target: &mut Target,
) -> Resolved {
    let Some(service) = tables.service(id) else { return Resolved::Foreign };
    if at & NodeAddress::LOCAL == 0 && service.flags & (Service::EXTERNAL_LOCAL | Service::HOST_PORT) != 0 {
        return Resolved::Foreign;
    }
    // What a pod was promised of the node is no NodePort.
    if at & NodeAddress::NO_NODE_PORTS != 0 && service.flags & Service::HOST_PORT == 0 {
        return Resolved::Foreign;
    }
    let guarded = service.flags & Service::GUARDED != 0;
    let source = if guarded || service.affinity != 0 { source() } else { Addr::ANY };
    if guarded && source == Addr::ANY {
        return Resolved::Foreign;
    }
    if guarded && !tables.admits(id, &source) {
        return Resolved::Denied;
    }
    if service.count == 0 {
        return if service.flags & Service::ELSEWHERE != 0 { Resolved::Elsewhere } else { Resolved::Empty };
    }
    let slot = SlotKey { service: id, generation: service.generation, n: pick % service.count };
    if service.affinity == 0 {
        target.id = tables.slot(&slot);
    } else if source != Addr::ANY {
        target.id = stick(tables, slot, service.affinity, source, target);
    } else {
        return Resolved::Foreign;
    }
    target.service = id;
    let Some(backend) = tables.backend(target.id) else { return Resolved::Empty };
    target.backend = *backend;
    Resolved::Backend
}

/// The backend that a client had last, if that is not too long ago and it still serves; else the slot's, remembered.
/// `timeout` is in seconds of silence between new connections (`sessionAffinityConfig`).
#[inline(always)]
fn stick(tables: &impl Services, slot: SlotKey, timeout: u32, source: Addr, target: &mut Target) -> u32 {
    let own = tables.node_address(&source) & NodeAddress::LOCAL != 0;
    target.who.client = if own { tables.node() } else { source };
    target.who.service = tables.member(&MemberKey::group(slot.service));
    let known = recall(tables, slot.service, timeout, target);
    if target.last.backend != 0 {
        return target.last.backend;
    }
    target.last = Affinity { used: tables.now(), backend: tables.slot(&slot), reserved: 0 };
    let backend = target.last.backend;
    if tables.remember_affinity(&target.who, &target.last, !known) {
        return backend;
    }
    // Another CPU was faster with this client's first connection.
    recall(tables, slot.service, timeout, target);
    if target.last.backend == 0 { backend } else { target.last.backend }
}

/// Whether anything is remembered of a client; `target.last` is the backend it may go on with, used now, or 0.
#[inline(always)]
fn recall(tables: &impl Services, service: u32, timeout: u32, target: &mut Target) -> bool {
    target.last = Affinity::default();
    let last = &mut target.last;
    let known = tables.affinity(&target.who, |affinity| *last = *affinity);
    let now = tables.now();
    let expired = now.saturating_sub(target.last.used) > u64::from(timeout) * SECOND;
    if expired || tables.member(&MemberKey { service, backend: target.last.backend }) == 0 {
        target.last.backend = 0;
    } else if target.last.backend != 0 {
        tables.affinity(&target.who, |affinity| affinity.used = now);
    }
    known
}
