//! tc ingress on the host side of a pod's veth pair.

use crate::{
    act::{Hook, run},
    maps::{Maps, count},
    skb::is_ipv4,
};
use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use leme_abi::{Direction, DropReason};

/// Into its entry point: kernels before 6.12 have 512 bytes of stack for all frames together.
#[classifier]
#[inline(always)]
pub fn from_pod(ctx: TcContext) -> i32 {
    if !is_ipv4(&ctx) {
        count(DropReason::NotIp, Direction::Egress, ctx.len());
        return TC_ACT_SHOT as i32;
    }
    // SAFETY: a field of the context.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    run(
        &ctx,
        Hook::Ingress,
        Direction::Egress,
        #[inline(always)]
        |work| leme_packet::from_pod(&Maps, work, ifindex),
    )
}
