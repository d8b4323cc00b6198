//! Header layouts as they stand on the wire (RFC 791, 792). Multi-byte fields are in network order.

use crate::Packet;
use bytemuck::{Pod, Zeroable};

/// Length of an Ethernet header, where the IP header starts.
pub const ETHERNET: u32 = 14;

/// EtherTypes, host order.
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct EthernetHeader {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    pub ethertype: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Ipv4Header {
    pub version_length: u8,
    pub service: u8,
    pub total_length: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub proto: u8,
    pub checksum: u16,
    pub src: u32,
    pub dst: u32,
}

impl Ipv4Header {
    pub const CHECKSUM: u32 = 10;
    pub const SRC: u32 = 12;
    pub const DST: u32 = 16;
    pub const FRAGMENT: u32 = 6;
    pub const TTL: u32 = 8;

    pub const DONT_FRAGMENT: u16 = 0x4000;

    /// In bytes, options included.
    #[inline(always)]
    pub fn length(&self) -> u32 {
        u32::from(self.version_length & 0x0f) * 4
    }

    /// More fragments follow this one.
    #[inline(always)]
    pub fn more(&self) -> bool {
        u16::from_be(self.fragment) & 0x2000 != 0
    }

    /// Not the first fragment: no transport header here.
    #[inline(always)]
    pub fn is_later(&self) -> bool {
        self.offset() != 0
    }

    /// Where a fragment belongs, in units of eight bytes.
    #[inline(always)]
    pub fn offset(&self) -> u16 {
        u16::from_be(self.fragment) & 0x1fff
    }

    #[inline(always)]
    pub fn is_sane(&self) -> bool {
        self.version_length >> 4 == 4 && self.length() >= 20
    }
}

/// ICMP types and where their fields are.
pub struct Icmp;

impl Icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const ECHO: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Offset of the checksum, and of the identifier of an echo.
    pub const CHECKSUM: u32 = 2;
    pub const ID: u32 = 4;
    /// Length of the header before the packet an error quotes.
    pub const LENGTH: u32 = 8;

    /// Whether it is about a connection. A redirect (5) is about this node's own routes.
    #[inline(always)]
    pub fn is_error(kind: u8) -> bool {
        matches!(kind, Self::UNREACHABLE | Self::TIME_EXCEEDED | Self::PARAMETER_PROBLEM)
    }
}

/// SCTP's common header and chunk types (RFC 9260).
pub struct Sctp;

impl Sctp {
    /// Offset of the checksum, and of the first chunk's type.
    pub const CHECKSUM: u32 = 8;
    pub const CHUNK: u32 = 12;

    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;
    const ABORT: u8 = 6;
    const SHUTDOWN: u8 = 7;
    const SHUTDOWN_ACK: u8 = 8;
    const SHUTDOWN_COMPLETE: u8 = 14;

    /// What a first chunk would be in TCP: associations open and close as connections do.
    #[inline(always)]
    pub fn as_tcp(chunk: u8) -> u8 {
        match chunk {
            Self::INIT => Packet::SYN,
            Self::INIT_ACK => Packet::SYN | Packet::ACK,
            Self::SHUTDOWN | Self::SHUTDOWN_ACK => Packet::FIN,
            Self::ABORT | Self::SHUTDOWN_COMPLETE => Packet::RST,
            _ => 0,
        }
    }
}

const _: () = assert!(size_of::<EthernetHeader>() == 14);
const _: () = assert!(size_of::<Ipv4Header>() == 20);
