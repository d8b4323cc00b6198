//! A frame as plain bytes.

use bytemuck::Pod;
use leme_abi::{Protocol, Tuple};
use leme_packet::{Bytes, Ipv4Header};

#[derive(Clone, Debug, Default)]
pub struct Frame(pub Vec<u8>);

impl Bytes for Frame {
    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let at = offset as usize;
        self.0.get(at..at + size_of::<T>()).map(bytemuck::pod_read_unaligned)
    }

    fn length(&self) -> u32 {
        self.0.len() as u32
    }
}

impl Frame {
    /// A whole IPv4 packet behind an Ethernet header. Its IP checksum holds.
    pub(crate) fn ip(tuple: &Tuple, id: u16, fragment: u16, payload: &[u8]) -> Self {
        let mut header = Ipv4Header {
            version_length: 0x45,
            total_length: (20 + payload.len() as u16).to_be(),
            id: id.to_be(),
            fragment: fragment.to_be(),
            ttl: 64,
            proto: tuple.proto,
            src: tuple.src.v4(),
            dst: tuple.dst.v4(),
            ..Ipv4Header::default()
        };
        header.checksum = checksum(bytemuck::bytes_of(&header)).to_be();
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend(bytemuck::bytes_of(&header));
        frame.extend(payload);
        Self(frame)
    }
}

/// A transport header for a tuple, and some payload. No checksum: UDP needs none, and nobody here looks at TCP's.
pub(crate) fn transport(tuple: &Tuple, flags: u8, icmp: u8, length: usize) -> Vec<u8> {
    let mut bytes = [tuple.sport.number().to_be_bytes(), tuple.dport.number().to_be_bytes()].concat();
    match tuple.proto {
        Protocol::TCP => bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]),
        Protocol::UDP => bytes.extend([((8 + length) >> 8) as u8, (8 + length) as u8, 0, 0]),
        Protocol::ICMP => {
            let id = if icmp == 0 { tuple.dport } else { tuple.sport };
            bytes = vec![icmp, 0, 0, 0];
            bytes.extend(id.number().to_be_bytes());
            bytes.extend([0, 1]);
        }
        _ => {}
    }
    bytes.resize(bytes.len() + length, 7);
    if tuple.proto == Protocol::ICMP {
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}
