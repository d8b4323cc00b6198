//! Load-time constants: they choose behaviour before the verifier looks, so that what a kernel lacks is dead code.

use crate::Addr;
use bytemuck::{Pod, Zeroable};

/// What the running kernel can do beyond 5.10.
pub mod feature {
    /// `bpf_set_retval` (5.18): a hook may choose the errno of a refused connect.
    pub const SET_RETVAL: u32 = 1;
}

/// What the node's administrator chose.
pub mod option {
    /// Sockets of pods name Services undisturbed, so that what stands in a pod between its application and the network (a
    /// mesh's sidecar) sees where they want to go; their packets are resolved outside of the pod.
    pub const SOCKETS_OF_HOST_ONLY: u32 = 1;
}

/// Which tables of connections a program reads while they are exchanged for larger ones; it writes both then.
pub mod transition {
    /// There is one of each.
    pub const NONE: u32 = 0;
    /// The old ones, which are complete.
    pub const OLD: u32 = 1;
    /// The new ones, which have become so.
    pub const NEW: u32 = 2;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// Cookie of the node's network namespace; 0 means the machine's initial one.
    pub host_cookie: u64,
    /// Source of what is masqueraded to the outside.
    pub node: Addr,
    /// First address of the node's pod range: source towards other nodes' pods.
    pub router: Addr,
    /// The VXLAN device.
    pub overlay: u32,
    pub vni: u32,
    /// Source ports for translations, inclusive, host order.
    pub port_min: u16,
    pub port_max: u16,
    /// Bits of [`feature`].
    pub features: u32,
    /// The first device towards the outside, where the kernel does not say which.
    pub uplink: u32,
    /// Bits of [`option`].
    pub options: u32,
    /// The largest packet that pods and the overlay carry.
    pub mtu: u32,
    /// One of [`transition`].
    pub transition: u32,
}

const _: () = assert!(size_of::<Settings>() == 72);
