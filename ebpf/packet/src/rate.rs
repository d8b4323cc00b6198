//! Whether a packet fits the rate of its pod.
//!
//! A policer, not a shaper: it needs no queueing discipline, works where packets skip the node's stack, and costs pods
//! without a limit one test of a flag. What does not conform is dropped; senders that mind losses find the rate.

use crate::{Tables, Work};
use leme_abi::{Addr, Direction, Endpoint};

/// Nanoseconds that a packet of a length takes at a rate.
#[inline(always)]
fn cost(rate: u64, length: u32) -> u64 {
    u64::from(length) * 1_000_000_000 / rate
}

/// What a packet does to a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    pub conforms: bool,
    /// The bucket has been full for longer than it keeps: its schedule starts anew here. 0: it goes on.
    pub restart: u64,
    /// To be added to the schedule.
    pub cost: u64,
}

/// A packet conforms while the schedule is not ahead of the clock, whatever its length: long ones are never starved, and
/// all of it is paid for before the next. Rate, burst and schedule are those of a [`Bucket`](leme_abi::Bucket).
#[inline(always)]
pub fn charge(rate: u64, burst: u64, ready: u64, now: u64, length: u32) -> Charge {
    let earliest = now.saturating_sub(burst);
    let conforms = rate == 0 || ready <= now;
    let cost = if rate == 0 { 0 } else { cost(rate, length) };
    Charge { conforms, restart: if ready < earliest { earliest } else { 0 }, cost }
}

/// A packet is about to be delivered to a pod of this node, `work.endpoint`.
#[inline(always)]
pub fn may_receive(tables: &impl Tables, work: &Work) -> bool {
    may_pass(tables, &work.endpoint, &work.dst(), Direction::Ingress, work.packet.length)
}

#[inline(always)]
pub(crate) fn may_pass(
    tables: &impl Tables,
    endpoint: &Endpoint,
    pod: &Addr,
    direction: Direction,
    length: u32,
) -> bool {
    let limited = match direction {
        Direction::Ingress => Endpoint::INGRESS_RATE,
        Direction::Egress => Endpoint::EGRESS_RATE,
    };
    endpoint.flags & limited == 0 || tables.spend(pod, direction, length)
}
