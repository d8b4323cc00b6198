//! The answer to a packet nobody serves: ICMP destination unreachable, port unreachable (RFC 792), which connecting
//! sockets report as "connection refused".

use crate::{Ipv4Header, header::Icmp};

/// Length of the answer: IP header, ICMP header, the refused packet's IP header and eight bytes behind it.
pub const UNREACHABLE: usize = 20 + 8 + 28;

/// Builds the answer from the first 28 bytes of a refused packet without IP options.
#[inline(always)]
pub fn unreachable(refused: &[u8; 28]) -> [u8; UNREACHABLE] {
    let mut answer = [0u8; UNREACHABLE];
    answer[0] = 0x45;
    answer[2..4].copy_from_slice(&(UNREACHABLE as u16).to_be_bytes());
    answer[Ipv4Header::TTL as usize] = 64;
    answer[9] = leme_abi::Protocol::ICMP;
    answer[12..16].copy_from_slice(&refused[16..20]);
    answer[16..20].copy_from_slice(&refused[12..16]);
    let sum = checksum(&answer[..20]);
    answer[10..12].copy_from_slice(&sum.to_be_bytes());
    answer[20] = Icmp::UNREACHABLE;
    answer[21] = 3;
    answer[28..].copy_from_slice(refused);
    let sum = checksum(&answer[20..]);
    answer[22..24].copy_from_slice(&sum.to_be_bytes());
    answer
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
