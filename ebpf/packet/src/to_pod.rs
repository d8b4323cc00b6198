//! A packet from the node's own stack arrives at a pod's veth pair: answers to what the pod sent through a Service to
//! the node itself get the Service's address back.

use crate::{Next, Tables, Work, nat::follow};

#[inline(always)]
pub fn to_pod(tables: &impl Tables, work: &mut Work) -> Next {
    follow(tables, work);
    Next::Pass
}
