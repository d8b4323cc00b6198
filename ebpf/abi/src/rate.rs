//! How fast a pod may send and receive.

use bytemuck::{Pod, Zeroable};

/// A token bucket written as a schedule: instead of tokens it keeps the time at which the next packet conforms, which
/// one atomic addition moves on (the generic cell rate algorithm, ITU-T I.371).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Bucket {
    /// Bytes per second; 0 is no limit.
    pub rate: u64,
    /// How long a silent pod may run ahead of its rate, nanoseconds.
    pub burst: u64,
    /// When the next packet conforms, nanoseconds of the monotonic clock. The kernel's own; user space writes 0.
    pub ready: u64,
}

/// Value of `rates`, under the pod's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Rates {
    /// To the pod.
    pub ingress: Bucket,
    /// From it.
    pub egress: Bucket,
}

const _: () = assert!(size_of::<Rates>() == 48);
