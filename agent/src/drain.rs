//! The promise that makes rolling updates lose no request: a pod's stop signal waits until the node's own datapath
//! has stopped choosing it for new connections. The network implements it, the pod's actor awaits it.

use async_trait::async_trait;

/// Who knows when the datapath of this node has stopped sending new connections to a pod.
#[async_trait]
pub trait Drain: Send + Sync {
    /// Returns when no new connection reaches the pod through a Service of this node, or at once where no Service
    /// names the pod. The caller bounds the wait.
    async fn await_draining(&self, pod_uid: &str);
}

/// For a node whose network is another's: nothing to wait for.
pub struct NoDrain;

#[async_trait]
impl Drain for NoDrain {
    async fn await_draining(&self, _pod_uid: &str) {}
}
