//! tc ingress and egress on the node's devices towards the outside.

use crate::{
    act::{Hook, is_done, run},
    maps::Maps,
    skb::frame_type,
};
use aya_ebpf::{bindings::TC_ACT_OK, macros::classifier, programs::TcContext};
use leme_abi::Direction;
use leme_packet::ethertype;

#[classifier]
pub fn nic_ingress(ctx: TcContext) -> i32 {
    if is_tagged(&ctx) || frame_type(&ctx) != ethertype::IPV4 {
        return TC_ACT_OK as i32;
    }
    run(&ctx, Hook::Ingress, Direction::Ingress, |work| leme_packet::nic_ingress(&Maps, work))
}

#[classifier]
pub fn nic_egress(ctx: TcContext) -> i32 {
    if is_done(&ctx) || is_tagged(&ctx) || frame_type(&ctx) != ethertype::IPV4 {
        return TC_ACT_OK as i32;
    }
    run(&ctx, Hook::Egress, Direction::Egress, |work| leme_packet::nic_egress(&Maps, work))
}

/// A VLAN's frame comes by twice: with its tag here, and without on the VLAN's own device, where it is decided about.
#[inline(always)]
fn is_tagged(ctx: &TcContext) -> bool {
    // SAFETY: a field of the context.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}
