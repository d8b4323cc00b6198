//! tc ingress and egress on the node's devices towards the outside.

use crate::{
    act::{Hook, is_done, run},
    maps::Maps,
    skb::is_ipv4,
};
use aya_ebpf::{bindings::TC_ACT_OK, macros::classifier, programs::TcContext};
use leme_abi::Direction;

#[classifier]
#[inline(always)]
pub fn nic_ingress(ctx: TcContext) -> i32 {
    if !is_ipv4(&ctx) {
        return TC_ACT_OK as i32;
    }
    run(
        &ctx,
        Hook::Ingress,
        Direction::Ingress,
        #[inline(always)]
        |work| leme_packet::nic_ingress(&Maps, work),
    )
}

#[classifier]
#[inline(always)]
pub fn nic_egress(ctx: TcContext) -> i32 {
    if is_done(&ctx) || !is_ipv4(&ctx) {
        return TC_ACT_OK as i32;
    }
    run(
        &ctx,
        Hook::Egress,
        Direction::Egress,
        #[inline(always)]
        |work| leme_packet::nic_egress(&Maps, work),
    )
}
