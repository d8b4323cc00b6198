//! What decisions read and write, as traits: eBPF maps in the kernel, ordinary maps in tests.

use bytemuck::Pod;
use leme_abi::{
    Addr, Affinity, AffinityKey, Backend, Conntrack, Direction, Endpoint, FragmentKey, FrontendKey, MemberKey, Ports,
    Route, Service, SlotKey, Translation, Tuple,
};

/// The bytes of a packet, from its Ethernet header on.
pub trait Bytes {
    /// None past the end.
    fn load<T: Pod>(&self, offset: u32) -> Option<T>;
    /// Length of the whole packet.
    fn length(&self) -> u32;
}

/// Translations of connections: all that masquerade alone needs.
pub trait Connections {
    /// Nanoseconds of the monotonic clock.
    fn now(&self) -> u64;
    fn random(&self) -> u32;
    /// Source ports for translations, inclusive.
    fn ports(&self) -> (u16, u16);
    /// How often a free one is looked for before the connection is refused.
    fn attempts(&self) -> u32;
    fn translation(&self, tuple: &Tuple) -> Option<&Translation>;
    /// Writes only if absent: true if this call wrote it.
    fn claim(&self, tuple: &Tuple, translation: &Translation) -> bool;
    fn translate(&self, tuple: &Tuple, translation: &Translation) -> bool;
    fn forget_translation(&self, tuple: &Tuple);
    /// Changes a connection in place; false if it is not there.
    fn track(&self, original: &Tuple, change: impl FnOnce(&mut Conntrack)) -> bool;
    fn start(&self, original: &Tuple, connection: &Conntrack) -> bool;
    /// Removes a connection: true for exactly one of those who try at the same time.
    fn stop(&self, original: &Tuple) -> bool;
    fn fragment(&self, key: &FragmentKey) -> Option<Ports>;
    fn remember_fragment(&self, key: &FragmentKey, ports: &Ports);
}

/// Services. An id of 0 is nobody's, in services and backends alike.
pub trait Services: Connections {
    /// The node's own address: source of masqueraded traffic, and the client that all of the node's sockets are.
    fn node(&self) -> Addr;
    fn random_slot(&self) -> u32;
    fn frontend(&self, key: &FrontendKey) -> u32;
    fn service(&self, id: u32) -> Option<&Service>;
    fn slot(&self, key: &SlotKey) -> u32;
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// What stands under a member: 0 is no member.
    fn member(&self, key: &MemberKey) -> u32;
    /// Looks at, or changes in place, what a client had last; false if nothing.
    fn affinity(&self, key: &AffinityKey, visit: impl FnOnce(&mut Affinity)) -> bool;
    /// Writes; where another may be faster, only if absent: true if this call wrote it.
    fn remember_affinity(&self, key: &AffinityKey, affinity: &Affinity, only_if_absent: bool) -> bool;
    /// Whether a guarded Service serves a source.
    fn admits(&self, service: u32, source: &Addr) -> bool;
    /// Flags of a node's address, `NodeAddress::KNOWN` among them; 0 if it is nobody's.
    fn node_address(&self, addr: &Addr) -> u32;
}

/// Everything a node's hooks need.
pub trait Tables: Services {
    /// Source towards other nodes' pods.
    fn router(&self) -> Addr;
    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint>;
    fn route(&self, addr: &Addr) -> Option<&Route>;
    /// Whether an outside address is to see pods' own addresses.
    fn is_excluded(&self, addr: &Addr) -> bool;
    /// Charges a packet of a length to a pod's rate; false if it does not conform.
    fn spend(&self, pod: &Addr, direction: Direction, length: u32) -> bool;
}
