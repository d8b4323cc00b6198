//! tc egress and ingress on the VXLAN device.

use crate::{
    act::{Hook, TUNNEL_KEY, for_this_host, is_done, run},
    maps::{Maps, count, settings},
    skb::is_ipv4,
};
use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT, bpf_tunnel_key},
    helpers::bpf_skb_get_tunnel_key,
    macros::classifier,
    programs::TcContext,
};
use core::mem::zeroed;
use leme_abi::{Direction, DropReason};

#[classifier]
#[inline(always)]
pub fn overlay_egress(ctx: TcContext) -> i32 {
    if is_done(&ctx) {
        return TC_ACT_OK as i32;
    }
    if !is_ipv4(&ctx) {
        count(DropReason::NotIp, Direction::Egress, ctx.len());
        return TC_ACT_SHOT as i32;
    }
    run(
        &ctx,
        Hook::Overlay,
        Direction::Egress,
        #[inline(always)]
        |work| leme_packet::overlay_egress(&Maps, work),
    )
}

#[classifier]
#[inline(always)]
pub fn overlay_ingress(ctx: TcContext) -> i32 {
    if !is_ipv4(&ctx) || !is_our_network(&ctx) {
        count(DropReason::Tunnel, Direction::Ingress, ctx.len());
        return TC_ACT_SHOT as i32;
    }
    for_this_host(&ctx);
    run(
        &ctx,
        Hook::Ingress,
        Direction::Ingress,
        #[inline(always)]
        |work| leme_packet::overlay_ingress(&Maps, work),
    )
}

#[inline(always)]
fn is_our_network(ctx: &TcContext) -> bool {
    // SAFETY: plain data, all zero is valid; the key lives on the stack for the call and is longer than said.
    unsafe {
        let mut key: bpf_tunnel_key = zeroed();
        let code = bpf_skb_get_tunnel_key(ctx.skb.skb, &mut key, TUNNEL_KEY, 0);
        code == 0 && key.tunnel_id == settings::vni()
    }
}
