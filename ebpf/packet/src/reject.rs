//! The answer to a packet that cannot go on: ICMP destination unreachable (RFC 792, 1191).

use crate::{Ipv4Header, header::Icmp};

/// How much of a refused packet the answer quotes: its IP header, which must be without options, and eight bytes.
pub const QUOTED: usize = 28;
/// Length of the answer: IP header, ICMP header, and what is quoted.
pub const UNREACHABLE: usize = 20 + 8 + QUOTED;

/// What the answer says: an ICMP code, and the most that may be sent where that is the matter.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable {
    pub code: u8,
    pub mtu: u16,
}

impl Unreachable {
    /// Nobody serves here: connecting sockets report "connection refused".
    pub const PORT: Self = Self { code: 3, mtu: 0 };

    /// Larger than this many bytes, and not to be fragmented.
    #[inline(always)]
    pub const fn too_big(mtu: u16) -> Self {
        Self { code: 4, mtu }
    }
}

/// Builds the answer around what it quotes, which stands at its end already.
#[inline(always)]
pub fn unreachable(answer: &mut [u8; UNREACHABLE], why: Unreachable) {
    let (headers, quoted) = answer.split_at_mut(UNREACHABLE - QUOTED);
    headers.fill(0);
    headers[0] = 0x45;
    headers[2..4].copy_from_slice(&(UNREACHABLE as u16).to_be_bytes());
    headers[Ipv4Header::TTL as usize] = 64;
    headers[9] = leme_abi::Protocol::ICMP;
    headers[12..16].copy_from_slice(&quoted[16..20]);
    headers[16..20].copy_from_slice(&quoted[12..16]);
    let sum = checksum(&headers[..20]);
    headers[10..12].copy_from_slice(&sum.to_be_bytes());
    headers[20] = Icmp::UNREACHABLE;
    headers[21] = why.code;
    headers[26..28].copy_from_slice(&why.mtu.to_be_bytes());
    let sum = checksum(&answer[20..]);
    answer[22..24].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
#[inline(always)]
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for i in 0..bytes.len() / 2 {
        sum += u32::from(bytes[2 * i]) << 8 | u32::from(bytes[2 * i + 1]);
    }
    sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}
