use super::fake::{Fake, ip, ports, read, tcp, tuple, udp};
use crate::{Kind, Packet, unreachable};
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
    assert_eq!(read(&tables, &later).err(), Some(DropReason::Fragment));
    read(&tables, &ip(Protocol::UDP, "10.0.0.1", "10.0.0.2", 0x2000, &first)).unwrap();
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
    let answer = unreachable(&refused);
    assert_eq!((answer[9], answer[20], answer[21]), (Protocol::ICMP, 3, 3));
    assert_eq!(answer[12..16], [10, 96, 0, 1]);
    assert_eq!(answer[16..20], [10, 244, 1, 2]);
    assert_eq!(answer[28..], refused);
    for part in [&answer[..20], &answer[20..]] {
        let sum: u32 = part.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
