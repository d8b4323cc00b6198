//! The container runtime: CRI for what it offers, containerd's own event stream for what CRI lacks.
//!
//! Called by the pods' actors, the node's status and the kubelet's API. Knows nothing of Kubernetes objects.

pub mod cri;
pub mod lifecycle;

pub use cri::{Cri, CriError};
