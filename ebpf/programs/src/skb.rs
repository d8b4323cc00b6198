//! Reading and editing packets. Only the kernel's helpers write: they keep partial and complete checksums right.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::{bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes},
    programs::TcContext,
};
use bytemuck::Pod;
use core::mem::MaybeUninit;
use leme_abi::{DropReason, Tuple};
use leme_packet::{
    Bytes, ETHERNET, EthernetHeader, Icmp, Ipv4Header, Kind, Packet, QUOTED, Sctp, Unreachable, ethertype,
    replace_ports,
};

/// A packet's bytes, through the helper that also reaches paged data.
pub struct Skb<'a>(pub &'a TcContext);

impl Bytes for Skb<'_> {
    #[inline(always)]
    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the buffer has room for `size_of::<T>()` bytes, and on success the helper has filled it.
        unsafe {
            let code = bpf_skb_load_bytes(self.0.as_ptr(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32);
            (code == 0).then(|| value.assume_init())
        }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.0.len()
    }
}

/// Whether the frame carries IPv4. With a VLAN's tag it is not for this device: the kernel has taken the tag out of the
/// frame and not yet out of its mind. (VLAN devices have hooks of their own.)
#[inline(always)]
pub fn is_ipv4(ctx: &TcContext) -> bool {
    // SAFETY: a field of the context.
    let tagged = unsafe { (*ctx.skb.skb).vlan_present } != 0;
    !tagged && u16::from_be(ctx.skb.protocol() as u16) == ethertype::IPV4
}

type Edit = Result<(), DropReason>;

#[inline(always)]
fn done(result: Result<(), aya_ebpf::cty::c_long>) -> Edit {
    result.map_err(|_| DropReason::Helper)
}

/// Turns a packet with tuple `packet.tuple` into one with tuple `to`.
#[inline(always)]
pub fn rewrite(ctx: &TcContext, packet: &Packet, to: &Tuple) -> Edit {
    if matches!(packet.kind, Kind::Error) {
        return rewrite_error(ctx, packet, to);
    }
    let from = &packet.tuple;
    let address = transport_checksum(packet, true);
    let port = transport_checksum(packet, false);
    replace_address(ctx, Ipv4Header::SRC, (from.src.v4(), to.src.v4()), address)?;
    replace_address(ctx, Ipv4Header::DST, (from.dst.v4(), to.dst.v4()), address)?;
    match packet.kind {
        Kind::Tcp | Kind::Udp => {
            replace_port(ctx, packet.l4, (from.sport.0, to.sport.0), port)?;
            replace_port(ctx, packet.l4 + 2, (from.dport.0, to.dport.0), port)
        }
        Kind::Sctp => replace_sctp_ports(ctx, packet, to),
        // One identifier serves as the requester's port; the other port is zero on both sides.
        Kind::Echo => {
            let (old, new) = (from.sport.0 | from.dport.0, to.sport.0 | to.dport.0);
            replace_port(ctx, packet.l4 + Icmp::ID, (old, new), port)
        }
        _ => Ok(()),
    }
}

/// The checksum knows no addresses; for other ports all of the packet must be here.
#[inline(always)]
fn replace_sctp_ports(ctx: &TcContext, packet: &Packet, to: &Tuple) -> Edit {
    let from = &packet.tuple;
    if from.sport == to.sport && from.dport == to.dport {
        return Ok(());
    }
    if packet.sctp_length == 0 {
        return Err(DropReason::Fragment);
    }
    let at = packet.l4 + Sctp::CHECKSUM;
    let checksum: u32 = Skb(ctx).load(at).ok_or(DropReason::Malformed)?;
    let word = |sport: u16, dport: u16| u32::from(sport) | u32::from(dport) << 16;
    let (old, new) = (word(from.sport.0, from.dport.0), word(to.sport.0, to.dport.0));
    let checksum = sctp_checksum(checksum.to_le(), old.to_le(), new.to_le(), packet.sctp_length).to_le();
    done(ctx.store(at as usize, &checksum, 0))?;
    done(ctx.store(packet.l4 as usize, &new, 0))
}

/// A function of its own: its many words would take the programs' stack.
#[inline(never)]
fn sctp_checksum(checksum: u32, old: u32, new: u32, length: u16) -> u32 {
    replace_ports(checksum, old, new, length)
}

/// Offset and flags of the transport checksum, where there is one to keep.
#[inline(always)]
fn transport_checksum(packet: &Packet, address: bool) -> Option<(u32, u32)> {
    let pseudo = if address { BPF_F_PSEUDO_HDR } else { 0 };
    match packet.kind {
        Kind::Tcp => Some((packet.l4 + 16, pseudo)),
        Kind::Udp => Some((packet.l4 + 6, pseudo | BPF_F_MARK_MANGLED_0)),
        Kind::Echo if !address => Some((packet.l4 + Icmp::CHECKSUM, 0)),
        _ => None,
    }
}

#[inline(always)]
fn replace_address(ctx: &TcContext, field: u32, (from, to): (u32, u32), checksum: Option<(u32, u32)>) -> Edit {
    if from == to {
        return Ok(());
    }
    if let Some((offset, flags)) = checksum {
        done(ctx.l4_csum_replace(offset as usize, from.into(), to.into(), u64::from(flags | 4)))?;
    }
    let at = ETHERNET + Ipv4Header::CHECKSUM;
    done(ctx.l3_csum_replace(at as usize, from.into(), to.into(), 4))?;
    done(ctx.store((ETHERNET + field) as usize, &to, 0))
}

#[inline(always)]
fn replace_port(ctx: &TcContext, at: u32, (from, to): (u16, u16), checksum: Option<(u32, u32)>) -> Edit {
    if from == to {
        return Ok(());
    }
    if let Some((offset, flags)) = checksum {
        done(ctx.l4_csum_replace(offset as usize, from.into(), to.into(), u64::from(flags | 2)))?;
    }
    done(ctx.store(at as usize, &to, 0))
}

/// An error travels like its connection's next packet and quotes what that side once sent.
///
/// The ICMP checksum covers the quoted IP header, whose own checksum cancels the change of its addresses: only ports
/// and a quoted transport checksum would show, and the latter stays as it is (receivers do not look at it).
#[inline(always)]
fn rewrite_error(ctx: &TcContext, packet: &Packet, to: &Tuple) -> Edit {
    let src = if packet.src == packet.tuple.src { to.src } else { packet.src };
    replace_address(ctx, Ipv4Header::SRC, (packet.src.v4(), src.v4()), None)?;
    replace_address(ctx, Ipv4Header::DST, (packet.dst.v4(), to.dst.v4()), None)?;
    let (was, is) = (packet.tuple.inverse(), to.inverse());
    let quoted = packet.l4 + Icmp::LENGTH;
    replace_quoted_address(ctx, quoted, Ipv4Header::SRC, (was.src.v4(), is.src.v4()))?;
    replace_quoted_address(ctx, quoted, Ipv4Header::DST, (was.dst.v4(), is.dst.v4()))?;
    let checksum = Some((packet.l4 + Icmp::CHECKSUM, 0));
    if was.proto == leme_abi::Protocol::ICMP {
        let (old, new) = (was.sport.0 | was.dport.0, is.sport.0 | is.dport.0);
        // The quoted echo's own checksum makes up for its identifier.
        done(ctx.l4_csum_replace((packet.quoted_l4 + Icmp::CHECKSUM) as usize, old.into(), new.into(), 2))?;
        return replace_port(ctx, packet.quoted_l4 + Icmp::ID, (old, new), None);
    }
    replace_port(ctx, packet.quoted_l4, (was.sport.0, is.sport.0), checksum)?;
    replace_port(ctx, packet.quoted_l4 + 2, (was.dport.0, is.dport.0), checksum)
}

#[inline(always)]
fn replace_quoted_address(ctx: &TcContext, quoted: u32, field: u32, (from, to): (u32, u32)) -> Edit {
    if from == to {
        return Ok(());
    }
    done(ctx.l3_csum_replace((quoted + Ipv4Header::CHECKSUM) as usize, from.into(), to.into(), 4))?;
    done(ctx.store((quoted + field) as usize, &to, 0))
}

/// Writes the Ethernet addresses of the next hop.
#[inline(always)]
pub fn set_macs(ctx: &TcContext, dst: [u8; 6], src: [u8; 6]) -> Edit {
    let mut macs = [0u8; 12];
    macs[..6].copy_from_slice(&dst);
    macs[6..].copy_from_slice(&src);
    done(ctx.store(0, &macs, 0))
}

/// One hop further. The packet dies if it has no hops left.
#[inline(always)]
pub fn decrement_ttl(ctx: &TcContext) -> Edit {
    let offset = ETHERNET + Ipv4Header::TTL;
    // TTL and protocol are one 16-bit word of the header's checksum.
    let [ttl, proto]: [u8; 2] = Skb(ctx).load(offset).ok_or(DropReason::Malformed)?;
    if ttl <= 1 {
        return Err(DropReason::TimeToLive);
    }
    let (from, to) = (u16::from_ne_bytes([ttl, proto]), u16::from_ne_bytes([ttl - 1, proto]));
    done(ctx.l3_csum_replace((ETHERNET + Ipv4Header::CHECKSUM) as usize, from.into(), to.into(), 2))?;
    done(ctx.store(offset as usize, &(ttl - 1), 0))
}

/// Whether a packet that must not be fragmented is larger than `mtu`: of one that is yet to be cut into segments, each of
/// those.
#[inline(always)]
pub fn exceeds(ctx: &TcContext, packet: &Packet, mtu: u32) -> bool {
    if packet.length <= ETHERNET + mtu || matches!(packet.kind, Kind::Error | Kind::Fragment) {
        return false;
    }
    // SAFETY: a field of the context.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    if segment != 0 && packet.l4 + transport_length(ctx, packet) + segment <= ETHERNET + mtu {
        return false;
    }
    let flags: Option<u16> = Skb(ctx).load(ETHERNET + Ipv4Header::FRAGMENT);
    flags.is_some_and(|flags| u16::from_be(flags) & Ipv4Header::DONT_FRAGMENT != 0)
}

/// Length of the transport header that every segment repeats.
#[inline(always)]
fn transport_length(ctx: &TcContext, packet: &Packet) -> u32 {
    match packet.kind {
        // The upper half of the 13th byte counts words.
        Kind::Tcp => Skb(ctx).load::<u8>(packet.l4 + 12).map_or(20, |offset| u32::from(offset >> 4) * 4),
        _ => 8,
    }
}

/// How far a packet is cut at its front so that the kernel forgets about a checksum that was still to be filled in: to
/// behind the start of any transport header without IP options before it.
const FORGET: u32 = 40;

/// Turns the packet into "unreachable" for its sender, Ethernet addresses swapped.
///
/// A packet whose checksum somebody was yet to fill in would have it filled in at the old place, in the middle of the
/// answer. Cutting that place off is what makes the kernel forget it.
#[inline(always)]
pub fn turn_unreachable(ctx: &TcContext, why: Unreachable, answer: &mut [u8; leme_packet::UNREACHABLE]) -> Edit {
    // SAFETY: behind its own headers the answer has room for as much of the packet.
    let code = unsafe {
        let quoted = answer.as_mut_ptr().add(leme_packet::UNREACHABLE - QUOTED);
        bpf_skb_load_bytes(ctx.as_ptr(), ETHERNET, quoted.cast(), QUOTED as u32)
    };
    if code != 0 || answer[leme_packet::UNREACHABLE - QUOTED] != 0x45 {
        return Err(DropReason::Malformed);
    }
    let frame: EthernetHeader = Skb(ctx).load(0).ok_or(DropReason::Malformed)?;
    let length = ETHERNET + leme_packet::UNREACHABLE as u32;
    let skb = ctx.skb.skb;
    // SAFETY: the context is the one this program was called with.
    let code = unsafe {
        match bpf_skb_change_tail(skb, length + FORGET, 0) {
            0 => bpf_skb_adjust_room(skb, -(FORGET as i32), BPF_ADJ_ROOM_MAC, 0),
            code => code,
        }
    };
    if code != 0 {
        return Err(DropReason::Helper);
    }
    leme_packet::unreachable(answer, why);
    done(ctx.store(ETHERNET as usize, &*answer, u64::from(BPF_F_RECOMPUTE_CSUM)))?;
    set_macs(ctx, frame.src, frame.dst)
}
