//! What a hook works on, and its answer.

use crate::{Packet, Target, UNREACHABLE};
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
    /// More fragments follow this first one.
    pub(crate) first_fragment: bool,
    pub endpoint: Endpoint,
    pub node: Addr,
    pub reason: DropReason,
    /// What a refused sender is told.
    pub answer: Answer,
    pub(crate) target: Target,
    pub(crate) original: Tuple,
    pub(crate) reverse: Tuple,
    pub(crate) translation: Translation,
    pub(crate) connection: Conntrack,
    pub(crate) fragment: FragmentKey,
}

/// Room for an answer; an array of this length has no default of its own.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Answer(pub [u8; UNREACHABLE]);

impl Default for Answer {
    fn default() -> Self {
        Self([0; UNREACHABLE])
    }
}

impl Work {
    #[inline(always)]
    pub(crate) fn drop(&mut self, reason: DropReason) -> Next {
        self.reason = reason;
        Next::Drop
    }

    #[inline(always)]
    pub(crate) fn reject(&mut self, reason: DropReason) -> Next {
        self.reason = reason;
        Next::Reject
    }

    /// What a connection that was to be opened leads to.
    #[inline(always)]
    pub(crate) fn unless(&mut self, result: Result<(), DropReason>, next: Next) -> Next {
        match result {
            Ok(()) => next,
            Err(reason) => self.drop(reason),
        }
    }

    /// The destination after the edit.
    #[inline(always)]
    pub fn dst(&self) -> Addr {
        if self.rewrite { self.to.dst } else { self.packet.dst }
    }
}

/// Where a packet goes. What the way needs stands in [`Work`]: an enum that carries it would have the compiler copy what
/// no branch has written, which the verifier refuses.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// On, as if there were no hook: to the node's stack, or out of the device it is leaving by.
    Pass,
    /// Back into the node's stack that it is just leaving.
    Back,
    /// To a pod of this node, `work.endpoint`.
    Pod,
    /// Through the tunnel to the node `work.node`.
    Overlay,
    /// To where the node's routing table says.
    Outside,
    /// Back to the sender: nobody listens here, for `work.reason`.
    Reject,
    /// For `work.reason`.
    Drop,
}
