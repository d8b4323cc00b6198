//! From bytes to a tuple.
//!
//! An ICMP error is about another packet, the one it quotes: its tuple is the inverse of the quoted one, so that it
//! finds the connection it belongs to and travels its way. Later fragments borrow the ports of the first, once that
//! was let through.
//!
//! What contradicts itself is malformed: nothing is read beyond the length that the IP header states, which may be less
//! than the frame's.

use crate::{
    Bytes, Work,
    header::{ETHERNET, Icmp, Ipv4Header, Sctp},
    tables::Connections,
};
use leme_abi::{Addr, DropReason, FragmentKey, Port, Ports, Protocol, Tuple};

/// What can be edited in a packet.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
    Sctp,
    /// ICMP echo and its reply: the identifier stands for the requester's port.
    Echo,
    /// An ICMP error and the packet it quotes.
    Error,
    /// A later fragment: its ports are those of the first, and not in it.
    Fragment,
    /// A later fragment whose first was not seen: nobody knows its ports.
    Stray,
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
    /// Flags of a TCP header, or what an SCTP packet's first chunk amounts to.
    pub tcp_flags: u8,
    /// Length of the SCTP packet, the checksum's range; 0 if it is in fragments.
    pub sctp_length: u16,
}

impl Packet {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;

    /// The first packet of a TCP connection or SCTP association.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        matches!(self.kind, Kind::Tcp | Kind::Sctp) && self.tcp_flags & (Self::SYN | Self::ACK) == Self::SYN
    }
}

/// Reads the packet behind an Ethernet header of type IPv4 into `work.packet`.
#[inline(always)]
pub fn parse(bytes: &impl Bytes, tables: &impl Connections, work: &mut Work) -> Result<(), DropReason> {
    work.rewrite = false;
    work.first_fragment = false;
    let header: Ipv4Header = bytes.load(ETHERNET).ok_or(DropReason::Malformed)?;
    let packet = &mut work.packet;
    packet.length = bytes.length();
    packet.l4 = ETHERNET + header.length();
    let end = end(&header, packet.length);
    if !header.is_sane() || end > packet.length || end < packet.l4 {
        return Err(DropReason::Malformed);
    }
    packet.src = Addr::from_v4(header.src);
    packet.dst = Addr::from_v4(header.dst);
    packet.kind = Kind::Other;
    packet.tcp_flags = 0;
    packet.sctp_length = 0;
    packet.tuple = Tuple { src: packet.src, dst: packet.dst, proto: header.proto, ..Tuple::default() };
    if !header.is_later() {
        work.first_fragment = header.more();
        work.fragment = fragment_key(&header);
        packet.sctp_length = if header.more() { 0 } else { (end - packet.l4) as u16 };
        return read_transport(bytes, packet, end);
    }
    // A second fragment so early would overwrite the flags that the first was judged by (RFC 1858).
    if header.proto == Protocol::TCP && header.offset() == 1 {
        return Err(DropReason::Malformed);
    }
    work.fragment = fragment_key(&header);
    packet.kind = Kind::Stray;
    if let Some(ports) = tables.fragment(&work.fragment) {
        packet.kind = Kind::Fragment;
        packet.tuple.sport = ports.sport;
        packet.tuple.dport = ports.dport;
    }
    Ok(())
}

/// Where the packet ends in its frame. Beyond 64 KiB, which only this host's own stack makes, the header cannot say.
#[inline(always)]
fn end(header: &Ipv4Header, length: u32) -> u32 {
    match u32::from(u16::from_be(header.total_length)) {
        0 if length > ETHERNET + 0xffff => length,
        total => ETHERNET + total,
    }
}

#[inline(always)]
fn fragment_key(header: &Ipv4Header) -> FragmentKey {
    FragmentKey {
        src: Addr::from_v4(header.src),
        dst: Addr::from_v4(header.dst),
        id: u32::from(header.id),
        proto: u32::from(header.proto),
    }
}

/// The packet goes on: later fragments of it may follow. Not before this is certain, or one that was refused would lend
/// its ports to others.
#[inline(always)]
pub fn remember_fragment(tables: &impl Connections, work: &Work) {
    if work.first_fragment && !matches!(work.packet.kind, Kind::Error) {
        let Tuple { sport, dport, .. } = work.packet.tuple;
        tables.remember_fragment(&work.fragment, &Ports { sport, dport });
    }
}

/// Least lengths of transport headers, and of what an ICMP error quotes of one (RFC 792).
const TCP: u32 = 20;
const UDP: u32 = 8;
/// The common header and that of a chunk.
const SCTP: u32 = 16;
const QUOTED: u32 = 8;

#[inline(always)]
fn read_transport(bytes: &impl Bytes, packet: &mut Packet, end: u32) -> Result<(), DropReason> {
    let least = match packet.tuple.proto {
        Protocol::TCP => TCP,
        Protocol::UDP => UDP,
        Protocol::SCTP => SCTP,
        Protocol::ICMP => Icmp::LENGTH,
        _ => return Ok(()),
    };
    if packet.l4 + least > end {
        return Err(DropReason::Malformed);
    }
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
        Protocol::SCTP => {
            packet.kind = Kind::Sctp;
            let chunk = bytes.load(packet.l4 + Sctp::CHUNK).ok_or(DropReason::Malformed)?;
            packet.tcp_flags = Sctp::as_tcp(chunk);
            read_ports(bytes, packet.l4, &mut packet.tuple)
        }
        _ => read_icmp(bytes, packet, end),
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
fn read_icmp(bytes: &impl Bytes, packet: &mut Packet, end: u32) -> Result<(), DropReason> {
    let kind: u8 = bytes.load(packet.l4).ok_or(DropReason::Malformed)?;
    if kind == Icmp::ECHO || kind == Icmp::ECHO_REPLY {
        packet.kind = Kind::Echo;
        read_echo(bytes, packet.l4, kind, &mut packet.tuple)
    } else if Icmp::is_error(kind) {
        read_error(bytes, packet, end)
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

/// What an error quotes must be the start of a packet: header and eight bytes. (The standards have nobody send errors
/// about later fragments.) A quoted packet of another protocol has addresses and no ports.
#[inline(always)]
fn read_error(bytes: &impl Bytes, packet: &mut Packet, end: u32) -> Result<(), DropReason> {
    let quoted = packet.l4 + Icmp::LENGTH;
    let header: Ipv4Header = bytes.load(quoted).ok_or(DropReason::Malformed)?;
    packet.quoted_l4 = quoted + header.length();
    if !header.is_sane() || header.is_later() || packet.quoted_l4 + QUOTED > end {
        return Err(DropReason::Malformed);
    }
    let mut tuple = Tuple {
        src: Addr::from_v4(header.src),
        dst: Addr::from_v4(header.dst),
        proto: header.proto,
        ..Tuple::default()
    };
    match header.proto {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => read_ports(bytes, packet.quoted_l4, &mut tuple)?,
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
