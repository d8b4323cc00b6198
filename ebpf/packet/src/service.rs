//! From a frontend to a backend.

use crate::tables::Services;
use leme_abi::{Addr, Backend, FrontendKey, NodeAddress, Port, Scope, Service, SlotKey, Tuple};

/// What an address turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Not a Service, or one that another node must resolve.
    Foreign,
    /// A Service without endpoints.
    Empty,
    Backend { service: u32, id: u32, backend: Backend },
}

/// Looks up who serves a tuple's destination. `pick` chooses the slot.
#[inline(always)]
pub fn resolve(tables: &impl Services, tuple: &Tuple, scope: Scope, pick: u32) -> Resolved {
    resolve_address(tables, &tuple.dst, (tuple.dport, tuple.proto), scope, pick)
}

#[inline(always)]
pub fn resolve_address(
    tables: &impl Services,
    addr: &Addr,
    (port, proto): (Port, u8),
    scope: Scope,
    pick: u32,
) -> Resolved {
    let exact = FrontendKey { addr: *addr, port, proto, scope: scope as u8 };
    let (id, remote) = match find(tables, exact) {
        Some(id) => (id, false),
        None => {
            let Some(flags) = tables.node_address(addr) else { return Resolved::Foreign };
            let local = flags & NodeAddress::LOCAL != 0;
            if !local && matches!(scope, Scope::External) {
                return Resolved::Foreign;
            }
            match find(tables, FrontendKey { addr: Addr::ANY, ..exact }) {
                Some(id) => (id, !local),
                None => return Resolved::Foreign,
            }
        }
    };
    pick_backend(tables, id, remote, pick)
}

/// Outside clients see the `External` entry where there is one, else the one everybody sees.
#[inline(always)]
fn find(tables: &impl Services, key: FrontendKey) -> Option<u32> {
    let found = tables.frontend(&key);
    if found.is_none() && key.scope == Scope::External as u8 {
        return tables.frontend(&FrontendKey { scope: Scope::Cluster as u8, ..key });
    }
    found
}

#[inline(always)]
fn pick_backend(tables: &impl Services, id: u32, remote_node: bool, pick: u32) -> Resolved {
    let Some(service) = tables.service(id) else { return Resolved::Foreign };
    if remote_node && service.flags & Service::EXTERNAL_LOCAL != 0 {
        return Resolved::Foreign;
    }
    if service.count == 0 {
        return Resolved::Empty;
    }
    let key = SlotKey { service: id, generation: service.generation, n: pick % service.count };
    let Some(backend_id) = tables.slot(&key) else { return Resolved::Empty };
    match tables.backend(backend_id) {
        Some(backend) => Resolved::Backend { service: id, id: backend_id, backend },
        None => Resolved::Empty,
    }
}
