//! Addresses, ports and protocols as they stand in maps and packets.

use bytemuck::{Pod, Zeroable};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address of either family: four words in network order, IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Addr(pub [u32; 4]);

impl Addr {
    /// Matches any address: the address of a NodePort's frontend.
    pub const ANY: Self = Self([0; 4]);
    /// 127.0.0.1, which stands for all of loopback in tables.
    pub const LOOPBACK: Self = Self::from_v4(0x7f00_0001_u32.to_be());

    /// From an IPv4 address as it stands in a packet (network order).
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), word])
    }

    /// The IPv4 address in network order; meaningless for IPv6.
    #[inline(always)]
    pub const fn v4(&self) -> u32 {
        self.0[3]
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be()
    }

    /// 127.0.0.0/8.
    #[inline(always)]
    pub const fn is_loopback_v4(&self) -> bool {
        self.is_v4() && u32::from_be(self.0[3]) >> 24 == 127
    }

    /// 0.0.0.0/8 and 127.0.0.0/8, which are on no wire (RFC 1122 §3.2.1.3).
    #[inline(always)]
    pub const fn is_this_host_v4(&self) -> bool {
        self.is_v4() && u32::from_be(self.0[3]) >> 24 == 0 || self.is_loopback_v4()
    }

    /// Multicast and broadcast (224.0.0.0/3), which no Service and no pod route ever serves.
    #[inline(always)]
    pub const fn is_multicast_v4(&self) -> bool {
        self.is_v4() && u32::from_be(self.0[3]) >> 29 == 7
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_v4(u32::from_ne_bytes(address.octets()))
    }
}

impl From<IpAddr> for Addr {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => bytemuck::cast(v6.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(address: Addr) -> Self {
        Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(address)).to_canonical()
    }
}

/// A port in network order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Port(pub u16);

impl Port {
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// Protocol numbers of the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const SCTP: u8 = 132;

    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => Self::TCP,
            Self::Udp => Self::UDP,
            Self::Sctp => Self::SCTP,
        }
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            Self::TCP => Some(Self::Tcp),
            Self::UDP => Some(Self::Udp),
            Self::SCTP => Some(Self::Sctp),
            _ => None,
        }
    }
}
