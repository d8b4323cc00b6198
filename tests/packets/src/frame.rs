//! Packets: an Ethernet header, IPv4, and TCP, UDP or ICMP with checksums that hold.

use leme_abi::{Addr, Port, Tuple};
use leme_packet::{ETHERNET, Ipv4Header};
use std::net::{Ipv4Addr, SocketAddrV4};

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

/// What tests compare: everything that is not a checksum.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    pub src: SocketAddrV4,
    pub dst: SocketAddrV4,
    pub proto: u8,
    pub ttl: u8,
    pub rest: Vec<u8>,
}

fn address(text: &str) -> SocketAddrV4 {
    text.parse().expect("an address and a port")
}

impl Frame {
    pub fn tcp(src: &str, dst: &str, flags: u8) -> Self {
        let (src, dst) = (address(src), address(dst));
        let mut segment = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
        segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        segment.extend(b"payload");
        seal(6, *src.ip(), *dst.ip(), &mut segment, Some(16));
        Self::ip(6, *src.ip(), *dst.ip(), &segment)
    }

    pub fn udp(src: &str, dst: &str) -> Self {
        let mut frame = Self::udp_without_checksum(src, dst);
        let (src, dst) = (address(src), address(dst));
        seal(17, *src.ip(), *dst.ip(), &mut frame.0[34..], Some(6));
        frame
    }

    /// A checksum of zero says there is none.
    pub fn udp_without_checksum(src: &str, dst: &str) -> Self {
        let (src, dst) = (address(src), address(dst));
        let mut datagram = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
        datagram.extend([0, 15, 0, 0]);
        datagram.extend(b"payload");
        Self::ip(17, *src.ip(), *dst.ip(), &datagram)
    }

    /// `chunk` is the type of its only chunk, which has no value.
    pub fn sctp(src: &str, dst: &str, chunk: u8) -> Self {
        let (src, dst) = (address(src), address(dst));
        let mut packet = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
        packet.extend([0, 0, 0, 9, 0, 0, 0, 0, chunk, 0, 0, 4]);
        let sum = crc32c(&packet);
        packet[8..12].copy_from_slice(&sum.to_le_bytes());
        Self::ip(132, *src.ip(), *dst.ip(), &packet)
    }

    /// The same packet without a checksum, as a pod's kernel sends it that leaves the checksum to the device.
    pub fn sctp_unsummed(src: &str, dst: &str, chunk: u8) -> Self {
        let mut frame = Self::sctp(src, dst, chunk);
        frame.0[42..46].fill(0);
        frame
    }

    /// ICMP echo request (8) or reply (0).
    pub fn echo(kind: u8, src: &str, dst: &str, id: u16) -> Self {
        let mut message = vec![kind, 0, 0, 0];
        message.extend(id.to_be_bytes());
        message.extend([0, 1, 1, 2]);
        Self::icmp(src, dst, message)
    }

    /// "Fragmentation needed", about a packet.
    pub fn too_big(src: &str, dst: &str, about: &Frame) -> Self {
        let mut message = vec![3, 4, 0, 0, 0, 0, 5, 120];
        message.extend(&about.0[14..42]);
        Self::icmp(src, dst, message)
    }

    fn icmp(src: &str, dst: &str, mut message: Vec<u8>) -> Self {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        Self::ip(1, src.parse().expect("an address"), dst.parse().expect("an address"), &message)
    }

    fn ip(proto: u8, src: Ipv4Addr, dst: Ipv4Addr, payload: &[u8]) -> Self {
        let mut header = vec![0x45, 0];
        header.extend((20 + payload.len() as u16).to_be_bytes());
        header.extend([0, 7, 0x40, 0, 64, proto, 0, 0]);
        header.extend(src.octets());
        header.extend(dst.octets());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend(header);
        frame.extend(payload);
        Self(frame)
    }

    /// A packet of a protocol nobody translates ports of, or a piece of one.
    pub fn raw(proto: u8, src: &str, dst: &str, payload: &[u8]) -> Self {
        Self::ip(proto, src.parse().expect("an address"), dst.parse().expect("an address"), payload)
    }

    /// An ICMP error of any kind that quotes these bytes.
    pub fn error(kind: u8, src: &str, dst: &str, quoted: &[u8]) -> Self {
        Self::icmp(src, dst, [&[kind, 1, 0, 0, 0, 0, 0, 0], quoted].concat())
    }

    /// The same with other bytes at a place in the IP header or behind it; the header's checksum holds again.
    pub fn with(mut self, at: u32, bytes: &[u8]) -> Self {
        let at = (ETHERNET + at) as usize;
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self.0[24..26].fill(0);
        let sum = checksum(&self.0[14..34]);
        self.0[24..26].copy_from_slice(&sum.to_be_bytes());
        self
    }

    /// The same with four bytes of options that say nothing.
    pub fn with_options(mut self) -> Self {
        self.0.splice(34..34, [1; 4]);
        let total = (self.0.len() - 14) as u16;
        self.with(0, &[0x46]).with(2, &total.to_be_bytes())
    }

    /// The same frame with another EtherType.
    pub fn of_type(mut self, ethertype: u16) -> Self {
        self.0[12..14].copy_from_slice(&ethertype.to_be_bytes());
        self
    }

    /// The same with a payload of so many bytes, whose checksum nobody looks at.
    pub fn long(mut self, length: usize) -> Self {
        self.0.resize(14 + 20 + length, 5);
        self.with(2, &(20 + length as u16).to_be_bytes())
    }

    /// The same packet one hop further.
    pub fn routed(mut self) -> Self {
        self.0[(ETHERNET + Ipv4Header::TTL) as usize] -= 1;
        self
    }

    pub fn with_ttl(mut self, ttl: u8) -> Self {
        self.0[(ETHERNET + Ipv4Header::TTL) as usize] = ttl;
        let header = ETHERNET as usize..ETHERNET as usize + 20;
        let at = (ETHERNET + Ipv4Header::CHECKSUM) as usize;
        self.0[at..at + 2].fill(0);
        let sum = checksum(&self.0[header]);
        self.0[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self
    }

    /// Its first bytes.
    pub fn cut(mut self, length: usize) -> Self {
        self.0.truncate(length);
        self
    }

    /// A fragment from further behind, whose first nobody has seen. Its checksum is that of the whole packet.
    pub fn later_fragment(mut self) -> Self {
        self.0[20..22].copy_from_slice(&[0, 100]);
        self
    }

    /// A fragment has no transport checksum of its own.
    pub fn is_fragment(&self) -> bool {
        u16::from_be_bytes([self.0[20], self.0[21]]) & 0x3fff != 0
    }

    fn ip_payload(&self) -> &[u8] {
        &self.0[34..]
    }

    /// The tuple of a whole TCP or UDP packet.
    pub fn tuple(&self) -> Option<Tuple> {
        let header: Ipv4Header = bytemuck::pod_read_unaligned(self.0.get(14..34)?);
        let ports: [u16; 2] = bytemuck::pod_read_unaligned(self.0.get(34..38)?);
        let is_whole = header.version_length == 0x45 && matches!(header.proto, 6 | 17) && !self.is_fragment();
        is_whole.then(|| Tuple {
            src: Addr::from_v4(header.src),
            dst: Addr::from_v4(header.dst),
            sport: Port(ports[0]),
            dport: Port(ports[1]),
            proto: header.proto,
            reserved: [0; 3],
        })
    }

    pub fn facts(&self) -> Facts {
        let octets = |at: usize| <[u8; 4]>::try_from(&self.0[at..at + 4]).expect("four bytes");
        let proto = self.0[23];
        let port = |at: usize| u16::from_be_bytes([self.ip_payload()[at], self.ip_payload()[at + 1]]);
        let (sport, dport, rest) = match proto {
            1 => (0, 0, [&self.ip_payload()[..2], &self.quoted_without_checksums()].concat()),
            6 => (port(0), port(2), [&self.ip_payload()[4..16], &self.ip_payload()[18..]].concat()),
            132 => (port(0), port(2), [&self.ip_payload()[4..8], &self.ip_payload()[12..]].concat()),
            _ => (port(0), port(2), self.ip_payload()[8..].to_vec()),
        };
        let (src, dst) = (octets(26).into(), octets(30).into());
        Facts { src: SocketAddrV4::new(src, sport), dst: SocketAddrV4::new(dst, dport), proto, ttl: self.0[22], rest }
    }

    /// An ICMP message behind its checksum; of a quoted packet neither its header's nor its own checksum.
    fn quoted_without_checksums(&self) -> Vec<u8> {
        let mut message = self.ip_payload()[4..].to_vec();
        if self.ip_payload()[0] == 3 {
            message[4 + 10..4 + 12].fill(0);
            message[4 + 26..4 + 28].fill(0);
        }
        message
    }

    pub fn check_checksums(&self, name: &str) {
        assert_eq!(checksum(&self.0[14..34]), 0, "{name}: checksum of the IP header");
        let payload = self.ip_payload();
        match self.0[23] {
            1 => {
                assert_eq!(checksum(payload), 0, "{name}: checksum of the ICMP message");
                if payload[0] == 3 {
                    assert_eq!(checksum(&payload[8..28]), 0, "{name}: checksum of the quoted IP header");
                }
            }
            17 if payload[6..8] == [0, 0] => {}
            132 if payload[8..12] == [0; 4] => {}
            132 => {
                let unsummed = [&payload[..8], &[0; 4], &payload[12..]].concat();
                assert_eq!(payload[8..12], crc32c(&unsummed).to_le_bytes(), "{name}: checksum of SCTP");
            }
            proto => {
                let facts = self.facts();
                let sum =
                    checksum(&[&pseudo(proto, *facts.src.ip(), *facts.dst.ip(), payload.len()), payload].concat());
                assert_eq!(sum, 0, "{name}: transport checksum");
            }
        }
    }
}

fn pseudo(proto: u8, src: Ipv4Addr, dst: Ipv4Addr, length: usize) -> Vec<u8> {
    [&src.octets()[..], &dst.octets(), &[0, proto], &(length as u16).to_be_bytes()].concat()
}

/// Writes the transport checksum at `at`.
fn seal(proto: u8, src: Ipv4Addr, dst: Ipv4Addr, payload: &mut [u8], at: Option<usize>) {
    let Some(at) = at else { return };
    payload[at..at + 2].fill(0);
    let sum = checksum(&[&pseudo(proto, src, dst, payload.len())[..], payload].concat());
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// RFC 1071, odd lengths padded.
pub fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}
