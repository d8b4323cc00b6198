//! Connections: who talks to whom, how their packets are translated, how long that is remembered.
//!
//! A translated connection has two `nat` entries. `O`, the client's tuple, leads to `T`, the tuple on the wire behind
//! the translation; the inverse of `T` leads to the inverse of `O`. The reverse entry is written first and only if
//! absent, which is what makes a source port belong to one connection. `conntrack` holds the state under `O`.

use crate::{Addr, Port};
use bytemuck::{Pod, Zeroable};

/// One direction of a connection. ICMP echo uses its identifier as the requester's port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[expect(clippy::derived_hash_with_manual_eq, reason = "equal is what has the same bytes, either way")]
pub struct Tuple {
    pub src: Addr,
    pub dst: Addr,
    pub sport: Port,
    pub dport: Port,
    pub proto: u8,
    pub reserved: [u8; 3],
}

/// Word by word, and one branch at the end: a comparison byte by byte is a loop, which the verifier walks through with
/// every turn of the loops around it.
impl PartialEq for Tuple {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let [own, others]: [&[u32; 10]; 2] = [bytemuck::cast_ref(self), bytemuck::cast_ref(other)];
        let mut different = 0;
        let mut word = 0;
        while word < own.len() {
            different |= own[word] ^ others[word];
            word += 1;
        }
        different == 0
    }
}

impl Tuple {
    /// The same connection as its answers see it.
    #[inline(always)]
    pub const fn inverse(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, proto: self.proto, reserved: [0; 3] }
    }
}

/// Which way a packet travels in its connection.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// From the one who opened it.
    Forward = 0,
    Reply = 1,
}

/// What a packet with a given tuple becomes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Translation {
    pub to: Tuple,
    /// A [`Leg`].
    pub leg: u8,
    pub reserved: [u8; 3],
}

/// How far a connection has come; decides how long silence is tolerated.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConntrackState {
    /// Only its opener has spoken.
    New = 0,
    /// Both sides have.
    Established = 1,
    /// TCP: a FIN was seen from one side.
    Closing = 2,
    /// TCP: FIN from both, or RST.
    Closed = 3,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Conntrack {
    /// When the entry may go, nanoseconds of the monotonic clock.
    pub expires: u64,
    pub created: u64,
    /// Packets forward and in reply.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    /// Service and backend of a Service connection, else 0.
    pub service: u32,
    pub backend: u32,
    /// A [`ConntrackState`].
    pub state: u8,
    /// TCP flags seen, forward and in reply.
    pub tcp_flags: [u8; 2],
    pub reserved: [u8; 5],
}

/// Later fragments carry no ports; the first one leaves them here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    pub src: Addr,
    pub dst: Addr,
    pub id: u32,
    pub proto: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Ports {
    pub sport: Port,
    pub dport: Port,
}

const _: () = assert!(size_of::<Tuple>() == 40);
const _: () = assert!(size_of::<Translation>() == 44);
const _: () = assert!(size_of::<Conntrack>() == 64);
const _: () = assert!(size_of::<FragmentKey>() == 40);
