//! What a hook works on, and its answer.

use crate::Packet;
use leme_abi::{Addr, Conntrack, DropReason, Endpoint, FragmentKey, Translation, Tuple};

/// The packet at hand, what it becomes, and room to think: a program's stack is 512 bytes, so the kernel keeps this in
/// a per-CPU map. Programs of one CPU never interrupt each other here: all of them run with softirqs disabled.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Work {
    pub packet: Packet,
    /// The new tuple, if `rewrite` is set.
    pub to: Tuple,
    pub rewrite: bool,
    pub(crate) original: Tuple,
    pub(crate) reverse: Tuple,
    pub(crate) translation: Translation,
    pub(crate) connection: Conntrack,
    pub(crate) fragment: FragmentKey,
}

impl Work {
    /// The destination after the edit.
    #[inline(always)]
    pub fn dst(&self) -> Addr {
        if self.rewrite { self.to.dst } else { self.packet.dst }
    }
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// On, as if there were no hook: to the node's stack, or out of the device it is leaving by.
    Pass,
    /// To a pod of this node.
    Pod(Endpoint),
    /// Through the tunnel to the node with this address.
    Overlay(Addr),
    /// To where the node's routing table says.
    Outside,
    /// Back to the sender: nobody listens here.
    Reject,
    Drop(DropReason),
}

/// What a failure to establish a connection becomes.
impl From<Result<Next, DropReason>> for Next {
    #[inline(always)]
    fn from(result: Result<Next, DropReason>) -> Self {
        match result {
            Ok(next) => next,
            Err(reason) => Self::Drop(reason),
        }
    }
}
