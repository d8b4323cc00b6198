//! tc ingress on the host ends of a local cluster's NICs, and on the machine's device towards the outside.

use crate::{
    act::{Hop, leave, next_hop},
    maps::{LAN_UPLINKS, Maps, count, work},
    skb::{Skb, decrement_ttl, is_ipv4, rewrite, set_macs},
};
use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    helpers::bpf_redirect_peer,
    macros::classifier,
    programs::TcContext,
};
use leme_abi::{Direction, DropReason, LanNode};
use leme_packet::{LanTables, Next, parse, remember_fragment};

#[classifier]
pub fn lan(ctx: TcContext) -> i32 {
    if !is_ipv4(&ctx) {
        return TC_ACT_OK as i32;
    }
    finish(&ctx, Direction::Egress, try_lan(&ctx))
}

#[inline(always)]
fn try_lan(ctx: &TcContext) -> Result<i32, DropReason> {
    let work = work().ok_or(DropReason::Helper)?;
    parse(&Skb(ctx), &Maps, work)?;
    remember_fragment(&Maps, work);
    if let Some(node) = Maps.lan_node(&work.packet.dst) {
        return to_node(ctx, node);
    }
    let mut hop = Hop::default();
    let found = next_hop(ctx, &work.packet.dst, &mut hop);
    // SAFETY: the kernel keeps the entry while the program runs, and nobody writes into it.
    let uplink = if found { unsafe { LAN_UPLINKS.get(&hop.ifindex) } } else { None };
    match leme_packet::lan(&Maps, work, uplink) {
        Next::Outside => {
            rewrite(ctx, &work.packet, &work.to)?;
            decrement_ttl(ctx)?;
            leave(&hop)
        }
        Next::Drop => Err(work.reason),
        _ => Ok(TC_ACT_OK as i32),
    }
}

#[classifier]
pub fn lan_uplink(ctx: TcContext) -> i32 {
    if !is_ipv4(&ctx) {
        return TC_ACT_OK as i32;
    }
    finish(&ctx, Direction::Ingress, try_uplink(&ctx))
}

/// What cannot be read here is not ours to judge.
#[inline(always)]
fn try_uplink(ctx: &TcContext) -> Result<i32, DropReason> {
    let work = work().ok_or(DropReason::Helper)?;
    if parse(&Skb(ctx), &Maps, work).is_err() {
        return Ok(TC_ACT_OK as i32);
    }
    remember_fragment(&Maps, work);
    let Some(node) = leme_packet::lan_uplink(&Maps, work) else { return Ok(TC_ACT_OK as i32) };
    if work.rewrite {
        rewrite(ctx, &work.packet, &work.to)?;
    }
    to_node(ctx, node)
}

#[inline(always)]
fn to_node(ctx: &TcContext, node: &LanNode) -> Result<i32, DropReason> {
    set_macs(ctx, node.mac, node.host_mac)?;
    // SAFETY: a helper call with plain arguments.
    Ok(unsafe { bpf_redirect_peer(node.ifindex, 0) } as i32)
}

#[inline(always)]
fn finish(ctx: &TcContext, direction: Direction, verdict: Result<i32, DropReason>) -> i32 {
    match verdict {
        Ok(action) => action,
        Err(reason) => {
            count(reason, direction, ctx.len());
            TC_ACT_SHOT as i32
        }
    }
}
