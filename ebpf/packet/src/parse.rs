//! From bytes to a tuple.
//!
//! An ICMP error is about another packet, the one it quotes: its tuple is the inverse of the quoted one, so that it
//! finds the connection it belongs to and travels its way. Later fragments borrow the ports of the first.

use crate::{
    Bytes, Work,
    header::{ETHERNET, Icmp, Ipv4Header},
    tables::Connections,
};
use leme_abi::{Addr, DropReason, FragmentKey, Port, Ports, Protocol, Tuple};

/// What can be edited in a packet.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
    /// ICMP echo and its reply: the identifier stands for the requester's port.
    Echo,
    /// An ICMP error and the packet it quotes.
    Error,
    /// A later fragment: addresses, no ports.
    Fragment,
    /// Another protocol: addresses, no ports.
    #[default]
    Other,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Which connection it belongs to, as seen in its own direction.
    pub tuple: Tuple,
    /// Its own addresses: those of the tuple, except for errors.
    pub src: Addr,
    pub dst: Addr,
    /// Offset of the transport header.
    pub l4: u32,
    /// Offset of the quoted packet's transport header, in an error.
    pub quoted_l4: u32,
    pub length: u32,
    pub kind: Kind,
    /// Flags of a TCP header.
    pub tcp_flags: u8,
}

impl Packet {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;

    /// The first packet of a TCP connection.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        matches!(self.kind, Kind::Tcp) && self.tcp_flags & (Self::SYN | Self::ACK) == Self::SYN
    }
}

/// Reads the packet behind an Ethernet header of type IPv4 into `work.packet`.
#[inline(always)]
pub fn parse(bytes: &impl Bytes, tables: &impl Connections, work: &mut Work) -> Result<(), DropReason> {
    work.rewrite = false;
    let header: Ipv4Header = bytes.load(ETHERNET).ok_or(DropReason::Malformed)?;
    if header.version_length >> 4 != 4 || header.length() < 20 {
        return Err(DropReason::Malformed);
    }
    let packet = &mut work.packet;
    packet.src = Addr::from_v4(header.src);
    packet.dst = Addr::from_v4(header.dst);
    packet.l4 = ETHERNET + header.length();
    packet.length = bytes.length();
    packet.kind = Kind::Other;
    packet.tcp_flags = 0;
    packet.tuple = Tuple { src: packet.src, dst: packet.dst, proto: header.proto, ..Tuple::default() };
    if !header.more() && !header.is_later() {
        return read_transport(bytes, packet);
    }
    work.fragment =
        FragmentKey { src: packet.src, dst: packet.dst, id: u32::from(header.id), proto: u32::from(header.proto) };
    if header.is_later() {
        let ports = tables.fragment(&work.fragment).ok_or(DropReason::Fragment)?;
        packet.kind = Kind::Fragment;
        packet.tuple.sport = ports.sport;
        packet.tuple.dport = ports.dport;
    } else {
        read_transport(bytes, packet)?;
        tables.remember_fragment(&work.fragment, &Ports { sport: packet.tuple.sport, dport: packet.tuple.dport });
    }
    Ok(())
}

#[inline(always)]
fn read_transport(bytes: &impl Bytes, packet: &mut Packet) -> Result<(), DropReason> {
    match packet.tuple.proto {
        Protocol::TCP => {
            packet.kind = Kind::Tcp;
            packet.tcp_flags = bytes.load(packet.l4 + 13).ok_or(DropReason::Malformed)?;
            read_ports(bytes, packet.l4, &mut packet.tuple)
        }
        Protocol::UDP => {
            packet.kind = Kind::Udp;
            read_ports(bytes, packet.l4, &mut packet.tuple)
        }
        Protocol::ICMP => read_icmp(bytes, packet),
        _ => Ok(()),
    }
}

#[inline(always)]
fn read_ports(bytes: &impl Bytes, offset: u32, tuple: &mut Tuple) -> Result<(), DropReason> {
    let [sport, dport]: [u16; 2] = bytes.load(offset).ok_or(DropReason::Malformed)?;
    tuple.sport = Port(sport);
    tuple.dport = Port(dport);
    Ok(())
}

#[inline(always)]
fn read_icmp(bytes: &impl Bytes, packet: &mut Packet) -> Result<(), DropReason> {
    let kind: u8 = bytes.load(packet.l4).ok_or(DropReason::Malformed)?;
    if kind == Icmp::ECHO || kind == Icmp::ECHO_REPLY {
        packet.kind = Kind::Echo;
        read_echo(bytes, packet.l4, kind, &mut packet.tuple)
    } else if Icmp::is_error(kind) {
        read_error(bytes, packet)
    } else {
        Ok(())
    }
}

#[inline(always)]
fn read_echo(bytes: &impl Bytes, l4: u32, kind: u8, tuple: &mut Tuple) -> Result<(), DropReason> {
    let id = Port(bytes.load(l4 + Icmp::ID).ok_or(DropReason::Malformed)?);
    if kind == Icmp::ECHO {
        tuple.sport = id;
    } else {
        tuple.dport = id;
    }
    Ok(())
}

/// A quoted packet without ports (a fragment, another protocol) still has addresses.
#[inline(always)]
fn read_error(bytes: &impl Bytes, packet: &mut Packet) -> Result<(), DropReason> {
    let quoted = packet.l4 + Icmp::LENGTH;
    let header: Ipv4Header = bytes.load(quoted).ok_or(DropReason::Malformed)?;
    let mut tuple = Tuple {
        src: Addr::from_v4(header.src),
        dst: Addr::from_v4(header.dst),
        proto: header.proto,
        ..Tuple::default()
    };
    packet.quoted_l4 = quoted + header.length();
    match header.proto {
        Protocol::TCP | Protocol::UDP if !header.is_later() => read_ports(bytes, packet.quoted_l4, &mut tuple)?,
        Protocol::ICMP => {
            let kind = bytes.load(packet.quoted_l4).ok_or(DropReason::Malformed)?;
            if kind == Icmp::ECHO || kind == Icmp::ECHO_REPLY {
                read_echo(bytes, packet.quoted_l4, kind, &mut tuple)?;
            }
        }
        _ => {}
    }
    packet.kind = Kind::Error;
    packet.tuple = tuple.inverse();
    Ok(())
}
