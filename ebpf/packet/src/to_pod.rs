//! A packet from the node's own stack arrives at a pod's veth pair: answers to what the pod sent through a Service to
//! the node itself get the Service's address back.

use crate::{
    Kind, Next, Tables, Work,
    nat::{follow, keep_apart},
    rate::may_pass,
};
use leme_abi::{Direction, DropReason};

#[inline(always)]
pub fn to_pod(tables: &impl Tables, work: &mut Work) -> Next {
    if let Some(endpoint) = tables.endpoint(&work.packet.dst)
        && !may_pass(tables, endpoint, &work.packet.dst, Direction::Ingress, work.packet.length)
    {
        return work.drop(DropReason::RateLimited);
    }
    if matches!(work.packet.kind, Kind::Stray) {
        return Next::Pass;
    }
    if follow(tables, work) { Next::Pass } else { keep_apart(tables, work, Next::Pass) }
}
