//! cgroup hooks: Services are resolved when a socket names its peer, and undone when it asks who that is.

use crate::maps::{Maps, NAMESPACES, SENDER_ORIGIN, SOCKET_ORIGIN, UDP_ORIGIN, settings};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use core::ptr::{addr_of, read_volatile};
use leme_abi::{Addr, Origin, OriginKey, Port, Protocol, feature, option};
use leme_packet::{Connections, Resolved, Target, choose_backend};

/// Go on, with the address as it now is.
const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// Which half of the context a hook may touch: the verifier refuses the other one.
const V4: u8 = 4;
const V6: u8 = 6;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect::<V6>(&ctx)
}

#[inline(always)]
fn connect<const FAMILY: u8>(ctx: &SockAddrContext) -> i32 {
    let mut origin = Origin::default();
    match resolve::<FAMILY>(ctx, Maps.random(), &mut origin) {
        // What is served elsewhere, not to everybody or not yet is the packet path's: it drops, and counts.
        Resolved::Foreign | Resolved::Unknown | Resolved::Elsewhere | Resolved::Denied => {
            forget(ctx);
            ALLOW
        }
        Resolved::Empty => refuse(),
        Resolved::Backend => {
            remember(ctx, &mut origin);
            if protocol(ctx) == Protocol::UDP {
                // Without room the socket works all the same; only its backend's end would not be told to it.
                let _ = UDP_ORIGIN.insert(socket_cookie(ctx), &origin, 0);
            }
            redirect::<FAMILY>(ctx, origin.backend, origin.backend_port);
            ALLOW
        }
    }
}

/// A socket is closed.
#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    // SAFETY: a field of the context, and the context is the one this program was called with.
    unsafe {
        if (*ctx.sock).protocol == u32::from(Protocol::UDP) {
            let _ = UDP_ORIGIN.remove(bpf_get_socket_cookie(ctx.as_ptr()));
        }
    }
    ALLOW
}

/// Unconnected UDP: one socket keeps its backend as long as the Service's endpoints stay the same. What an IPv6 socket
/// sends to a v4-mapped address the kernel brings here too (`udpv6_sendmsg`): there is nothing for a `sendmsg6` to do.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let cookie = socket_cookie(&ctx);
    let mut origin = Origin::default();
    match resolve::<V4>(&ctx, (cookie as u32).wrapping_mul(0x9e37_79b1) >> 8, &mut origin) {
        Resolved::Foreign | Resolved::Unknown | Resolved::Elsewhere | Resolved::Denied => ALLOW,
        Resolved::Empty => refuse(),
        Resolved::Backend => {
            let key = OriginKey { cookie, backend: origin.backend, port: origin.backend_port, reserved: [0; 6] };
            let _ = SENDER_ORIGIN.insert(&key, &origin, 0);
            redirect::<V4>(&ctx, origin.backend, origin.backend_port);
            ALLOW
        }
    }
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg::<V6>(&ctx)
}

/// Who sent this datagram: the Service, as far as the application knows.
#[inline(always)]
fn recvmsg<const FAMILY: u8>(ctx: &SockAddrContext) -> i32 {
    let (addr, port) = peer::<FAMILY>(ctx);
    if let Some(origin) = remembered(ctx, &addr, port) {
        redirect::<FAMILY>(ctx, origin.frontend, origin.frontend_port);
        return ALLOW;
    }
    let key = OriginKey { cookie: socket_cookie(ctx), backend: addr, port, reserved: [0; 6] };
    // SAFETY: values are plain bytes, copied at once.
    if let Some(origin) = unsafe { SENDER_ORIGIN.get(&key).copied() } {
        redirect::<FAMILY>(ctx, origin.frontend, origin.frontend_port);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername::<V4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername::<V6>(&ctx)
}

#[inline(always)]
fn getpeername<const FAMILY: u8>(ctx: &SockAddrContext) -> i32 {
    let (addr, port) = peer::<FAMILY>(ctx);
    if let Some(origin) = remembered(ctx, &addr, port) {
        redirect::<FAMILY>(ctx, origin.frontend, origin.frontend_port);
    }
    ALLOW
}

/// Looks the peer up; `origin` is filled if it is a Service with a backend. IPv6 sockets that name an IPv4 address
/// (`::ffff:10.96.0.10`) are like any other; nobody serves IPv6 itself yet.
#[inline(always)]
fn resolve<const FAMILY: u8>(ctx: &SockAddrContext, pick: u32, origin: &mut Origin) -> Resolved {
    let proto = protocol(ctx);
    if proto != Protocol::TCP && proto != Protocol::UDP {
        return Resolved::Foreign;
    }
    (origin.frontend, origin.frontend_port) = peer::<FAMILY>(ctx);
    if !origin.frontend.is_v4() {
        return Resolved::Foreign;
    }
    let mut target = Target::default();
    let (addr, port) = (origin.frontend, origin.frontend_port);
    let host = is_host(ctx);
    if !host && settings::options() & option::SOCKETS_OF_HOST_ONLY != 0 {
        return Resolved::Foreign;
    }
    let found = choose_backend(&Maps, &addr, port, proto, host, || client(ctx, host), pick, &mut target);
    origin.backend = target.backend.addr;
    origin.backend_port = target.backend.port;
    origin.service = target.service;
    found
}

/// Whether the socket lives in the node's own network namespace.
#[inline(always)]
fn is_host(ctx: &SockAddrContext) -> bool {
    let host = settings::host_cookie();
    // SAFETY: the context is the one this program was called with; null asks for the initial namespace.
    unsafe {
        let host = if host == 0 { bpf_get_netns_cookie(core::ptr::null_mut()) } else { host };
        bpf_get_netns_cookie(ctx.as_ptr()) == host
    }
}

/// The address that its packets will come from: the node's, or the pod's by its namespace. `Addr::ANY` where the agent
/// cannot know a namespace's cookie (before 5.14) or the namespace is not a pod's.
#[inline(always)]
fn client(ctx: &SockAddrContext, host: bool) -> Addr {
    if host {
        return settings::node();
    }
    // SAFETY: the context is the one this program was called with; values are plain bytes, copied at once.
    unsafe { NAMESPACES.get(bpf_get_netns_cookie(ctx.as_ptr())).copied().unwrap_or(Addr::ANY) }
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    // SAFETY: a field of the context.
    unsafe { (*ctx.sock_addr).protocol as u8 }
}

#[inline(always)]
fn socket_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is the one this program was called with.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn peer<const FAMILY: u8>(ctx: &SockAddrContext) -> (Addr, Port) {
    // SAFETY: fields of the context that a hook of this family may read.
    unsafe {
        let addr = match FAMILY {
            V4 => Addr::from_v4((*ctx.sock_addr).user_ip4),
            _ => Addr([word(ctx, 0), word(ctx, 1), word(ctx, 2), word(ctx, 3)]),
        };
        (addr, Port((*ctx.sock_addr).user_port as u16))
    }
}

/// One word of an IPv6 address. Volatile: read as an array it becomes a copy through a pointer into the context, which the
/// verifier refuses.
///
/// # Safety
/// Only in a hook for IPv6 sockets; `n` is below 4.
#[inline(always)]
unsafe fn word(ctx: &SockAddrContext, n: usize) -> u32 {
    // SAFETY: a field of the context, which the caller may read.
    unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_ip6[n])) }
}

/// Both addresses are IPv4, so the words before the last stay as they are.
#[inline(always)]
fn redirect<const FAMILY: u8>(ctx: &SockAddrContext, addr: Addr, port: Port) {
    // SAFETY: fields of the context that a hook of this family may write.
    unsafe {
        match FAMILY {
            V4 => (*ctx.sock_addr).user_ip4 = addr.v4(),
            _ => (*ctx.sock_addr).user_ip6[3] = addr.v4(),
        }
        (*ctx.sock_addr).user_port = u32::from(port.0);
    }
}

#[inline(always)]
fn remember(ctx: &SockAddrContext, origin: &mut Origin) {
    // SAFETY: the socket is the context's own, and the value lives on the stack for the call.
    unsafe {
        let stored = SOCKET_ORIGIN.get_or_insert_ptr_mut(ctx, Some(origin));
        if !stored.is_null() {
            *stored = *origin;
        }
    }
}

/// A socket that is connected anew, to something that is no Service.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    // SAFETY: the socket is the context's own.
    unsafe {
        let stored = SOCKET_ORIGIN.get_ptr_mut(ctx);
        if !stored.is_null() {
            (*stored).backend = Addr::ANY;
        }
    }
    if protocol(ctx) == Protocol::UDP {
        let _ = UDP_ORIGIN.remove(socket_cookie(ctx));
    }
}

#[inline(always)]
fn remembered(ctx: &SockAddrContext, addr: &Addr, port: Port) -> Option<Origin> {
    // SAFETY: the socket is the context's own; the value is plain bytes, copied at once.
    let origin = unsafe { SOCKET_ORIGIN.get_ptr_mut(ctx).as_ref() }.copied()?;
    (origin.backend == *addr && origin.backend_port == port).then_some(origin)
}

/// Before 5.18 a hook cannot choose the errno: the address stays, and the packet path answers.
#[inline(always)]
fn refuse() -> i32 {
    if settings::features() & feature::SET_RETVAL == 0 {
        return ALLOW;
    }
    // SAFETY: a plain argument; on kernels without the helper this is dead code to the verifier.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}
