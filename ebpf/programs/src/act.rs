//! Carrying decisions out.

use crate::{
    maps::{Maps, count, settings, work},
    skb::{Skb, decrement_ttl, exceeds, rewrite, set_macs, turn_unreachable},
};
use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_INGRESS, BPF_F_ZERO_CSUM_TX, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_OK,
        TC_ACT_REDIRECT, TC_ACT_SHOT, bpf_fib_lookup, bpf_redir_neigh, bpf_tunnel_key,
    },
    helpers::{
        bpf_fib_lookup as fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type,
        bpf_skb_set_tunnel_key,
    },
    programs::TcContext,
};
use core::mem::zeroed;
use leme_abi::{Addr, Direction, DropReason, Endpoint, MARK_DONE};
use leme_packet::{Bytes, EthernetHeader, Next, Unreachable, Work, may_receive, parse, remember_fragment};

/// Where a hook sits: it decides how its packets are handed on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// A packet arrives at the node's stack and may skip it.
    Ingress,
    /// A packet has left the node's stack; `bpf_redirect_peer` is not allowed.
    Egress,
    /// Leaving through the VXLAN device itself: the tunnel key is all it lacks.
    Overlay,
}

impl Hook {
    /// Whether a packet may get there that is larger than pods and the overlay carry. What the node's stack sends
    /// through the VXLAN device is not; delivery to a pod past the stack asks nobody for a size.
    #[inline(always)]
    fn may_exceed(self, next: Next) -> bool {
        match self {
            Self::Ingress => matches!(next, Next::Overlay),
            Self::Egress => matches!(next, Next::Overlay | Next::Pod),
            Self::Overlay => false,
        }
    }
}

const AF_INET: u8 = 2;
/// `PACKET_HOST` of linux/if_packet.h: for this node, whatever the Ethernet address says.
const PACKET_HOST: u32 = 0;

/// Parses, decides, edits, forwards, counts: the whole of a tc hook.
#[inline(always)]
pub fn run(ctx: &TcContext, hook: Hook, direction: Direction, decide: impl FnOnce(&mut Work) -> Next) -> i32 {
    let bytes = ctx.len();
    let Some(work) = work() else { return TC_ACT_SHOT as i32 };
    match try_run(ctx, hook, work, decide) {
        Ok(action) => {
            count(DropReason::Forwarded, direction, bytes);
            action
        }
        Err(reason) => {
            count(reason, direction, bytes);
            TC_ACT_SHOT as i32
        }
    }
}

#[inline(always)]
fn try_run(
    ctx: &TcContext,
    hook: Hook,
    work: &mut Work,
    decide: impl FnOnce(&mut Work) -> Next,
) -> Result<i32, DropReason> {
    parse(&Skb(ctx), &Maps, work)?;
    let next = decide(work);
    let told = match next {
        Next::Drop => return Err(work.reason),
        Next::Reject => work.reason,
        _ if hook.may_exceed(next) && exceeds(ctx, &work.packet, settings::mtu()) => DropReason::TooBig,
        _ => DropReason::Forwarded,
    };
    if told != DropReason::Forwarded {
        return send_back(ctx, hook, told, work);
    }
    if work.rewrite {
        rewrite(ctx, &work.packet, &work.to)?;
    }
    remember_fragment(&Maps, work);
    carry_out(ctx, hook, next, work)
}

#[inline(always)]
fn carry_out(ctx: &TcContext, hook: Hook, next: Next, work: &Work) -> Result<i32, DropReason> {
    match next {
        Next::Pass => Ok(TC_ACT_OK as i32),
        Next::Back => turn_back(ctx),
        Next::Pod if !may_receive(&Maps, work) => Err(DropReason::RateLimited),
        Next::Pod => deliver(ctx, hook, &work.endpoint),
        Next::Overlay => tunnel(ctx, hook, &work.node),
        Next::Outside => route(ctx, &work.dst()),
        Next::Reject | Next::Drop => Err(work.reason),
    }
}

/// Into the pod's own namespace, past the node's stack.
#[inline(always)]
fn deliver(ctx: &TcContext, hook: Hook, endpoint: &Endpoint) -> Result<i32, DropReason> {
    set_macs(ctx, endpoint.mac, endpoint.host_mac)?;
    if hook == Hook::Ingress {
        // SAFETY: a helper call with plain arguments.
        redirected(unsafe { bpf_redirect_peer(endpoint.ifindex, 0) })
    } else {
        ctx.set_mark(MARK_DONE);
        // SAFETY: as above.
        redirected(unsafe { bpf_redirect(endpoint.ifindex, 0) })
    }
}

#[inline(always)]
fn redirected(code: aya_ebpf::cty::c_long) -> Result<i32, DropReason> {
    if code == i64::from(TC_ACT_REDIRECT) as aya_ebpf::cty::c_long { Ok(code as i32) } else { Err(DropReason::Helper) }
}

/// Length of a tunnel key without the local address that 6.0 added: the one that all kernels take.
pub const TUNNEL_KEY: u32 = core::mem::offset_of!(bpf_tunnel_key, __bindgen_anon_3) as u32;
const _: () = assert!(TUNNEL_KEY == 28);

/// Through the VXLAN device, which takes its destination from the packet's tunnel key.
#[inline(always)]
fn tunnel(ctx: &TcContext, hook: Hook, node: &Addr) -> Result<i32, DropReason> {
    // SAFETY: plain data, all zero is valid.
    let mut key: bpf_tunnel_key = unsafe { zeroed() };
    key.tunnel_id = settings::vni();
    key.__bindgen_anon_1.remote_ipv4 = u32::from_be(node.v4());
    key.tunnel_ttl = 64;
    // SAFETY: the key lives on the stack for the call and is longer than said.
    let code = unsafe { bpf_skb_set_tunnel_key(ctx.skb.skb, &mut key, TUNNEL_KEY, u64::from(BPF_F_ZERO_CSUM_TX)) };
    if code != 0 {
        return Err(DropReason::Helper);
    }
    if hook == Hook::Overlay {
        return Ok(TC_ACT_OK as i32);
    }
    ctx.set_mark(MARK_DONE);
    // SAFETY: a helper call with plain arguments.
    redirected(unsafe { bpf_redirect(settings::overlay(), 0) })
}

/// Out of the node the way its routing table says, one hop further.
#[inline(always)]
pub fn route(ctx: &TcContext, dst: &Addr) -> Result<i32, DropReason> {
    decrement_ttl(ctx)?;
    ctx.set_mark(MARK_DONE);
    let mut hop = Hop::default();
    if next_hop(ctx, dst, &mut hop) {
        return leave(&hop);
    }
    // The kernel forwards nothing between its devices, or does not say: the first device, and its own routes.
    // SAFETY: a null pointer of length zero asks the kernel to look the next hop up itself.
    redirected(unsafe { bpf_redirect_neigh(settings::uplink(), core::ptr::null_mut(), 0, 0) })
}

/// Device and gateway.
#[derive(Default)]
pub struct Hop {
    pub ifindex: u32,
    gateway: u32,
}

/// The way to an address, as the routing table says for forwarded packets.
///
/// The kernel answers only for devices between which it forwards itself, which NICs may not be: then the question is asked
/// once more for the VXLAN device, which always is.
#[inline(always)]
pub fn next_hop(ctx: &TcContext, dst: &Addr, hop: &mut Hop) -> bool {
    // SAFETY: a field of the context.
    let own = unsafe { (*ctx.skb.skb).ifindex };
    look_up(ctx, dst, own, hop) || look_up(ctx, dst, settings::overlay(), hop)
}

/// As for a packet that came in by a device.
#[inline(always)]
fn look_up(ctx: &TcContext, dst: &Addr, device: u32, hop: &mut Hop) -> bool {
    // SAFETY: plain data, all zero is valid.
    let mut params: bpf_fib_lookup = unsafe { zeroed() };
    params.family = AF_INET;
    params.ifindex = device;
    params.__bindgen_anon_4.ipv4_dst = dst.v4();
    // SAFETY: the parameters live on the stack for the call and the length is theirs.
    let code = unsafe { fib_lookup(ctx.as_ptr(), &mut params, size_of::<bpf_fib_lookup>() as i32, 0) } as u32;
    hop.ifindex = params.ifindex;
    // SAFETY: the union was zeroed and written as IPv4.
    hop.gateway = unsafe { params.__bindgen_anon_4.ipv4_dst };
    // Before 5.12 an unknown neighbour leaves the device unset.
    code == BPF_FIB_LKUP_RET_SUCCESS || (code == BPF_FIB_LKUP_RET_NO_NEIGH && params.ifindex != device)
}

#[inline(always)]
pub fn leave(hop: &Hop) -> Result<i32, DropReason> {
    // SAFETY: plain data, all zero is valid.
    let mut params: bpf_redir_neigh = unsafe { zeroed() };
    params.nh_family = u32::from(AF_INET);
    params.__bindgen_anon_1.ipv4_nh = hop.gateway;
    // SAFETY: the parameters live on the stack for the call and the length is theirs.
    redirected(unsafe { bpf_redirect_neigh(hop.ifindex, &mut params, size_of::<bpf_redir_neigh>() as i32, 0) })
}

/// Tells the sender why its packet does not go on: back out of the device it came in by, or back into the node's stack.
#[inline(always)]
fn send_back(ctx: &TcContext, hook: Hook, reason: DropReason, work: &mut Work) -> Result<i32, DropReason> {
    let why = match reason {
        DropReason::TooBig => Unreachable::too_big(settings::mtu() as u16),
        _ => Unreachable::PORT,
    };
    turn_unreachable(ctx, why, &mut work.answer.0)?;
    count(reason, Direction::Egress, ctx.len());
    ctx.set_mark(MARK_DONE);
    // SAFETY: a field of the context, and a helper call with plain arguments.
    unsafe {
        let flags = if hook == Hook::Ingress { 0 } else { u64::from(BPF_F_INGRESS) };
        redirected(bpf_redirect((*ctx.skb.skb).ifindex, flags))
    }
}

/// Into the device it is leaving by, addressed to that device.
#[inline(always)]
fn turn_back(ctx: &TcContext) -> Result<i32, DropReason> {
    let frame: EthernetHeader = Skb(ctx).load(0).ok_or(DropReason::Malformed)?;
    set_macs(ctx, frame.src, frame.src)?;
    // SAFETY: a field of the context, and a helper call with plain arguments.
    redirected(unsafe { bpf_redirect((*ctx.skb.skb).ifindex, u64::from(BPF_F_INGRESS)) })
}

/// Makes the node's stack accept a packet whose Ethernet address names nobody.
#[inline(always)]
pub fn for_this_host(ctx: &TcContext) {
    // SAFETY: the context is the one this program was called with. Failure leaves the type as it was.
    unsafe { bpf_skb_change_type(ctx.skb.skb, PACKET_HOST) };
}

/// Already decided about by another hook of ours.
#[inline(always)]
pub fn is_done(ctx: &TcContext) -> bool {
    // SAFETY: a field of the context.
    unsafe { (*ctx.skb.skb).mark == MARK_DONE }
}
