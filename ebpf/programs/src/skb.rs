//! Reading and editing packets. Only the kernel's helpers write: they keep partial and complete checksums right.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::bpf_skb_load_bytes,
    programs::TcContext,
};
use bytemuck::Pod;
use core::mem::MaybeUninit;
use leme_abi::{DropReason, Tuple};
use leme_packet::{Bytes, ETHERNET, EthernetHeader, Icmp, Ipv4Header, Kind, Packet, ethertype};

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

/// Whether the frame carries IPv4 or ARP, from its EtherType.
#[inline(always)]
pub fn frame_type(ctx: &TcContext) -> u16 {
    match u16::from_be(ctx.skb.protocol() as u16) {
        ethertype::IPV4 => ethertype::IPV4,
        other => other,
    }
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
        // One identifier serves as the requester's port; the other port is zero on both sides.
        Kind::Echo => {
            let (old, new) = (from.sport.0 | from.dport.0, to.sport.0 | to.dport.0);
            replace_port(ctx, packet.l4 + Icmp::ID, (old, new), port)
        }
        _ => Ok(()),
    }
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

/// Turns the packet into "port unreachable" for its sender, Ethernet addresses swapped.
#[inline(always)]
pub fn turn_unreachable(ctx: &TcContext) -> Edit {
    let refused: [u8; 28] = Skb(ctx).load(ETHERNET).ok_or(DropReason::Malformed)?;
    if refused[0] != 0x45 {
        return Err(DropReason::Malformed);
    }
    let frame: EthernetHeader = Skb(ctx).load(0).ok_or(DropReason::Malformed)?;
    let length = ETHERNET + leme_packet::UNREACHABLE as u32;
    // SAFETY: the context is the one this program was called with.
    let code = unsafe { aya_ebpf::helpers::bpf_skb_change_tail(ctx.skb.skb, length, 0) };
    if code != 0 {
        return Err(DropReason::Helper);
    }
    let answer = leme_packet::unreachable(&refused);
    done(ctx.store(ETHERNET as usize, &answer, u64::from(BPF_F_RECOMPUTE_CSUM)))?;
    set_macs(ctx, frame.src, frame.dst)
}
