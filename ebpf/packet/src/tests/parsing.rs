use super::fake::{Fake, ip, ports, read, tcp, tuple, udp};
use crate::{Kind, Packet, UNREACHABLE, Unreachable, remember_fragment, unreachable};
use leme_abi::{DropReason, Protocol};
use std::vec::Vec;

#[test]
fn a_tcp_packet_has_ports_and_flags() {
    let work = read(&Fake::new(), &tcp("10.0.0.1", 4000, "10.0.0.2", 80, Packet::SYN)).unwrap();
    assert_eq!(work.packet.tuple, tuple(Protocol::TCP, "10.0.0.1", 4000, "10.0.0.2", 80));
    assert_eq!((work.packet.kind, work.packet.l4, work.packet.opens()), (Kind::Tcp, 34, true));
}

#[test]
fn a_synack_opens_nothing() {
    let work = read(&Fake::new(), &tcp("10.0.0.1", 4000, "10.0.0.2", 80, Packet::SYN | Packet::ACK)).unwrap();
    assert!(!work.packet.opens());
}

#[test]
fn cut_headers_are_malformed() {
    let mut frame = tcp("10.0.0.1", 4000, "10.0.0.2", 80, Packet::SYN);
    for length in (14..48).rev() {
        frame.0.truncate(length);
        assert_eq!(read(&Fake::new(), &frame).err(), Some(DropReason::Malformed), "{} bytes", frame.0.len());
    }
}

#[test]
fn a_later_fragment_borrows_the_ports_of_the_first() {
    let tables = Fake::new();
    let mut first = ports(53, 9999);
    first.extend([0; 4]);
    let later = ip(Protocol::UDP, "10.0.0.1", "10.0.0.2", 1, b"more");
    assert_eq!(read(&tables, &later).unwrap().packet.kind, Kind::Stray);
    let work = read(&tables, &ip(Protocol::UDP, "10.0.0.1", "10.0.0.2", 0x2000, &first)).unwrap();
    assert_eq!(read(&tables, &later).unwrap().packet.kind, Kind::Stray, "the first may yet be dropped");
    remember_fragment(&tables, &work);
    let work = read(&tables, &later).unwrap();
    assert_eq!(work.packet.tuple, tuple(Protocol::UDP, "10.0.0.1", 53, "10.0.0.2", 9999));
    assert_eq!(work.packet.kind, Kind::Fragment);
}

#[test]
fn an_error_belongs_to_the_connection_it_quotes() {
    let quoted = udp("10.0.0.1", 4000, "10.0.0.2", 53);
    let mut payload: Vec<u8> = [3, 4, 0, 0, 0, 0, 5, 120].into();
    payload.extend(&quoted.0[14..]);
    let work = read(&Fake::new(), &ip(Protocol::ICMP, "192.0.2.1", "10.0.0.1", 0, &payload)).unwrap();
    assert_eq!(work.packet.tuple, tuple(Protocol::UDP, "10.0.0.2", 53, "10.0.0.1", 4000));
    assert_eq!(work.packet.kind, Kind::Error);
    assert_eq!(work.packet.src, super::fake::addr("192.0.2.1"));
}

#[test]
fn an_echo_and_its_reply_are_one_connection() {
    let tables = Fake::new();
    let echo = |kind: u8, src, dst| read(&tables, &ip(Protocol::ICMP, src, dst, 0, &[kind, 0, 0, 0, 0x12, 0x34, 0, 1]));
    let (request, reply) = (echo(8, "10.0.0.1", "10.0.0.2").unwrap(), echo(0, "10.0.0.2", "10.0.0.1").unwrap());
    assert_eq!(request.packet.tuple.inverse(), reply.packet.tuple);
}

#[test]
fn the_refusal_quotes_the_packet_and_its_checksums_hold() {
    let refused: [u8; 28] = udp("10.244.1.2", 4000, "10.96.0.1", 53).0[14..42].try_into().unwrap();
    let mut answer = [0; UNREACHABLE];
    answer[28..].copy_from_slice(&refused);
    unreachable(&mut answer, Unreachable::PORT);
    assert_eq!((answer[9], answer[20], answer[21]), (Protocol::ICMP, 3, 3));
    assert_eq!(answer[12..16], [10, 96, 0, 1]);
    assert_eq!(answer[16..20], [10, 244, 1, 2]);
    assert_eq!(answer[28..], refused);
    for part in [&answer[..20], &answer[20..]] {
        let sum: u32 = part.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}

#[test]
fn nothing_is_read_beyond_the_length_that_the_header_states() {
    let mut frame = tcp("10.0.0.1", 4000, "10.0.0.2", 80, Packet::SYN);
    frame.0.extend([0; 20]);
    assert_eq!(read(&Fake::new(), &frame).unwrap().packet.kind, Kind::Tcp, "padding is not looked at");
    for total in [0, 19, 20, 39, 61, 0xffff] {
        frame.0[16..18].copy_from_slice(&u16::to_be_bytes(total));
        assert_eq!(read(&Fake::new(), &frame).err(), Some(DropReason::Malformed), "{total} bytes");
    }
}

#[test]
fn a_header_that_lies_about_itself_is_malformed() {
    for version_length in [0x00, 0x40, 0x44, 0x46, 0x4f, 0x55, 0x65] {
        let mut frame = tcp("10.0.0.1", 4000, "10.0.0.2", 80, Packet::SYN);
        frame.0[14] = version_length;
        assert_eq!(read(&Fake::new(), &frame).err(), Some(DropReason::Malformed), "{version_length:02x}");
    }
}

#[test]
fn tiny_fragments_are_malformed() {
    let first = ip(Protocol::TCP, "10.0.0.1", "10.0.0.2", 0x2000, &ports(4000, 80));
    let second = ip(Protocol::TCP, "10.0.0.1", "10.0.0.2", 1, &[0; 8]);
    for frame in [first, second] {
        assert_eq!(read(&Fake::new(), &frame).err(), Some(DropReason::Malformed));
    }
}

#[test]
fn an_error_must_quote_the_start_of_a_packet() {
    let error = |quoted: &[u8]| {
        let payload = [&[3, 4, 0, 0, 0, 0, 5, 120], quoted].concat();
        read(&Fake::new(), &ip(Protocol::ICMP, "192.0.2.1", "10.0.0.1", 0, &payload)).map(|work| work.packet.kind)
    };
    let whole = udp("10.0.0.1", 4000, "10.0.0.2", 53).0[14..].to_vec();
    assert_eq!(error(&whole), Ok(Kind::Error));
    for length in 0..28 {
        assert_eq!(error(&whole[..length]), Err(DropReason::Malformed), "{length} bytes");
    }
    for (at, byte) in [(0, 0x44), (0, 0x65), (0, 0x46), (7, 1)] {
        let mut bent = whole.clone();
        bent[at] = byte;
        assert_eq!(error(&bent), Err(DropReason::Malformed), "byte {at} is {byte:02x}");
    }
}

#[test]
fn a_redirect_is_about_no_connection() {
    let payload = [&[5, 1, 0, 0, 10, 0, 0, 9][..], &udp("10.0.0.1", 4000, "10.0.0.2", 53).0[14..]].concat();
    let work = read(&Fake::new(), &ip(Protocol::ICMP, "192.0.2.1", "10.0.0.1", 0, &payload)).unwrap();
    assert_eq!(
        (work.packet.kind, work.packet.tuple),
        (Kind::Other, tuple(Protocol::ICMP, "192.0.2.1", 0, "10.0.0.1", 0))
    );
}
