//! Services: frontends → service → slots → backends.
//!
//! A change writes backends, then the slots of the next generation, then flips the service once: no packet sees half
//! of it. A frontend without slots (`count` 0) is refused, never ignored.

use crate::{Addr, Port};
use bytemuck::{Pod, Zeroable};

/// Who asks. A frontend exists in `Cluster` scope; in `External` scope only where the answer differs
/// (`externalTrafficPolicy: Local`), so outside traffic looks there first.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Pods and nodes.
    Cluster = 0,
    /// Clients outside the cluster.
    External = 1,
}

/// What a client addresses. NodePorts have `Addr::ANY`; `node_addresses` says on which addresses they are served.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct FrontendKey {
    pub addr: Addr,
    pub port: Port,
    pub proto: u8,
    pub scope: u8,
}

impl FrontendKey {
    /// Stands for a cluster IP as such, and leads to any entry of its Service: so its other ports, which are refused, can
    /// be told from addresses that nobody has.
    #[inline(always)]
    pub const fn address(addr: Addr) -> Self {
        Self { addr, port: Port(0), proto: 0, scope: Scope::Cluster as u8 }
    }

    /// Whether it is one of those.
    pub const fn is_address(&self) -> bool {
        self.port.0 == 0 && self.proto == 0
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Service {
    /// Which slots are current.
    pub generation: u32,
    /// Number of slots in the current generation.
    pub count: u32,
    /// [`Service::EXTERNAL_LOCAL`] and friends.
    pub flags: u32,
    /// Session affinity timeout in seconds; 0 is none.
    pub affinity: u32,
}

impl Service {
    /// `externalTrafficPolicy: Local`: another node's NodePort must reach that node untranslated.
    pub const EXTERNAL_LOCAL: u32 = 1;
    /// `internalTrafficPolicy: Local`: only this node's endpoints are in the slots.
    pub const INTERNAL_LOCAL: u32 = 2;
    /// A Local policy leaves nothing here, though other nodes have endpoints: dropped, not refused, so that a load
    /// balancer or a retry may find one of them.
    pub const ELSEWHERE: u32 = 4;
    /// `loadBalancerSourceRanges`: only sources in `source_ranges` are served.
    pub const GUARDED: u32 = 8;
    /// A port of this node that leads to one of its pods: other nodes' addresses are theirs to serve.
    pub const HOST_PORT: u32 = 1 << 16;
}

/// Longest-prefix key of `source_ranges`: who may use a guarded Service. `prefix` counts the bits of the id and of the
/// 16-byte address (a /24 of IPv4 is 152).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct SourceKey {
    pub prefix: u32,
    pub service: u32,
    pub addr: Addr,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct SlotKey {
    pub service: u32,
    pub generation: u32,
    pub n: u32,
}

/// Which client asked which Service port. A client is a pod's or a node's address wherever it is asked for, else the
/// address a packet comes from; a Service port is an id of one that serves it or did, which [`MemberKey::group`] tells.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct AffinityKey {
    pub client: Addr,
    pub service: u32,
}

/// The backend that a client had last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Affinity {
    /// When it was chosen last, nanoseconds of the monotonic clock.
    pub used: u64,
    pub backend: u32,
    pub reserved: u32,
}

/// What affinity may lead to: the current backends of each Service that has it. Backend 0 tells the Service's group.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct MemberKey {
    pub service: u32,
    pub backend: u32,
}

impl MemberKey {
    /// Where a Service's group stands: the id under which all entries of one Service port remember their clients.
    #[inline(always)]
    pub const fn group(service: u32) -> Self {
        Self { service, backend: 0 }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Backend {
    pub addr: Addr,
    pub port: Port,
    pub proto: u8,
    /// [`Backend::SERVING`] or [`Backend::TERMINATING`].
    pub state: u8,
    pub flags: u16,
    /// Zone number for topology-aware choices; 0 is unknown.
    pub zone: u16,
}

impl Backend {
    pub const SERVING: u8 = 0;
    /// Chosen as last resort: nothing else serves.
    pub const TERMINATING: u8 = 1;
    /// Runs on this node.
    pub const LOCAL: u16 = 1;
}

const _: () = assert!(size_of::<FrontendKey>() == 20);
const _: () = assert!(size_of::<Service>() == 16);
const _: () = assert!(size_of::<SourceKey>() == 24);
const _: () = assert!(size_of::<SlotKey>() == 12);
const _: () = assert!(size_of::<Backend>() == 24);
const _: () = assert!(size_of::<AffinityKey>() == 20);
const _: () = assert!(size_of::<Affinity>() == 16);
const _: () = assert!(size_of::<MemberKey>() == 8);
