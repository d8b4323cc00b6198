//! tc egress on the host side of a pod's veth pair: packets of the node's own stack.

use crate::{
    act::{Hook, is_done, run},
    maps::Maps,
    skb::is_ipv4,
};
use aya_ebpf::{bindings::TC_ACT_OK, macros::classifier, programs::TcContext};
use leme_abi::Direction;

#[classifier]
#[inline(always)]
pub fn to_pod(ctx: TcContext) -> i32 {
    if is_done(&ctx) || !is_ipv4(&ctx) {
        return TC_ACT_OK as i32;
    }
    run(
        &ctx,
        Hook::Egress,
        Direction::Ingress,
        #[inline(always)]
        |work| leme_packet::to_pod(&Maps, work),
    )
}
