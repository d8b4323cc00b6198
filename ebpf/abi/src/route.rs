//! Where addresses live: this node's pods, other nodes' pods, nodes themselves.

use crate::Addr;
use bytemuck::{Pod, Zeroable};

/// A pod on this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint {
    /// Host side of the pod's veth pair.
    pub ifindex: u32,
    /// Security identity; 0 until policy assigns them.
    pub identity: u32,
    /// The pod's own MAC and that of the host side.
    pub mac: [u8; 6],
    pub host_mac: [u8; 6],
    pub flags: u32,
}

impl Endpoint {
    /// `rates` limits what the pod receives.
    pub const INGRESS_RATE: u32 = 1;
    /// `rates` limits what the pod sends.
    pub const EGRESS_RATE: u32 = 2;
}

/// Longest-prefix key; `prefix` counts bits of the 16-byte address (a /24 of IPv4 is 120).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct RouteKey {
    pub prefix: u32,
    pub addr: Addr,
}

/// The node behind which a prefix lies, or what else is to be known of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Route {
    pub node: Addr,
    pub identity: u32,
    pub flags: u32,
}

impl Route {
    /// This node's own pod range: what is not in `endpoints` does not exist.
    pub const LOCAL: u32 = 1;
    /// The cluster's pod range where no node has claimed it: never leaves the cluster.
    pub const UNREACHABLE: u32 = 2;
    /// Cluster IPs come from here (ServiceCIDR): what no frontend serves is nobody's and never leaves the cluster.
    pub const SERVICES: u32 = 4;
}

/// Flags of an address of some node; NodePorts answer on it unless they say otherwise.
pub struct NodeAddress;

impl NodeAddress {
    /// It is this node's.
    pub const LOCAL: u32 = 1;
    /// The node's address inside its pod range, which only the cluster sees.
    pub const ROUTER: u32 = 2;
    /// Always set: an address without flags is no node's.
    pub const KNOWN: u32 = 4;
    /// NodePorts do not answer on it (`--nodeport-addresses`). On 127.0.0.1 it stands for all of loopback.
    pub const NO_NODE_PORTS: u32 = 8;
}

/// A node of a local cluster, as the program on the host ends of its NICs sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct LanNode {
    /// Host end of the node's NIC.
    pub ifindex: u32,
    /// MAC of the node's end, and of the host end.
    pub mac: [u8; 6],
    pub host_mac: [u8; 6],
}

const _: () = assert!(size_of::<Endpoint>() == 24);
const _: () = assert!(size_of::<RouteKey>() == 20);
const _: () = assert!(size_of::<Route>() == 24);
const _: () = assert!(size_of::<LanNode>() == 16);
