use leme_abi::Protocol;
use leme_tests_packets::{
    Frame, Verdict,
    frame::{ACK, SYN},
    lan::{MACS, in_lan},
};

const OUTSIDE: &str = "198.51.100.2:443";

/// Destination and source of the Ethernet header.
fn macs(packet: &Frame) -> ([u8; 6], [u8; 6]) {
    let mac = |at: usize| packet.0[at..at + 6].try_into().expect("six bytes");
    (mac(0), mac(6))
}

#[test]
fn nodes_reach_each_other_past_the_machine() {
    in_lan(|machine| {
        let packet = Frame::tcp("10.89.0.11:40000", "10.89.0.12:6443", SYN);
        let (verdict, out) = machine.run("lan", "lan1", &packet);
        assert_eq!((verdict, macs(&out)), (Verdict::Redirect, MACS[1]));
        assert_eq!(out.facts(), packet.facts(), "nothing but its Ethernet addresses changes");
        out.check_checksums("between nodes");
    });
}

#[test]
fn nodes_leave_with_the_machines_address_and_their_answers_come_back() {
    in_lan(|machine| {
        for packet in [
            Frame::tcp("10.89.0.11:40000", OUTSIDE, SYN),
            Frame::udp("10.89.0.11:40000", OUTSIDE),
            Frame::udp_without_checksum("10.89.0.11:40001", OUTSIDE),
        ] {
            let (verdict, out) = machine.run("lan", "lan1", &packet);
            let (sent, was) = (out.facts(), packet.facts());
            assert_eq!((verdict, sent.src.ip().to_string()), (Verdict::Redirect, "192.0.2.7".into()));
            assert_eq!((sent.dst, sent.ttl, &sent.rest), (was.dst, 63, &was.rest));
            assert!((12_000..=29_999).contains(&sent.src.port()));
            out.check_checksums("to the outside");
            let (verdict, again) = machine.run("lan", "lan1", &packet);
            assert_eq!((verdict, again.facts().src), (Verdict::Redirect, sent.src), "one connection, one port");

            let (from, to) = (sent.dst.to_string(), sent.src.to_string());
            let answer = if sent.proto == 6 { Frame::tcp(&from, &to, SYN | ACK) } else { Frame::udp(&from, &to) };
            let (verdict, back) = machine.run("lan_uplink", "uplink", &answer);
            assert_eq!((verdict, back.facts().src, back.facts().dst), (Verdict::Redirect, was.dst, was.src));
            assert_eq!(macs(&back), MACS[0]);
            back.check_checksums("the answer");
        }
    });
}

#[test]
fn an_error_about_a_nodes_packet_comes_back_to_the_node() {
    in_lan(|machine| {
        let packet = Frame::udp("10.89.0.12:40000", OUTSIDE);
        let (_, out) = machine.run("lan", "lan2", &packet);
        let (verdict, back) = machine.run("lan_uplink", "uplink", &Frame::too_big("203.0.113.1", "192.0.2.7", &out));
        let expected = Frame::too_big("203.0.113.1", "10.89.0.12", &packet.routed());
        assert_eq!((verdict, back.facts(), macs(&back)), (Verdict::Redirect, expected.facts(), MACS[1]));
        back.check_checksums("error");
    });
}

#[test]
fn a_client_that_addresses_a_node_gets_its_answer_from_that_address() {
    in_lan(|machine| {
        let (verdict, inward) =
            machine.run("lan_uplink", "uplink", &Frame::tcp("192.0.2.50:5000", "10.89.0.12:30080", SYN));
        assert_eq!((verdict, macs(&inward)), (Verdict::Redirect, MACS[1]));
        inward.check_checksums("inward");
        let answer = Frame::tcp("10.89.0.12:30080", "192.0.2.50:5000", SYN | ACK);
        let (verdict, outward) = machine.run("lan", "lan2", &answer);
        assert_eq!((verdict, outward.facts()), (Verdict::Redirect, answer.routed().facts()));
        outward.check_checksums("outward");
    });
}

#[test]
fn what_is_for_the_machine_or_not_ours_passes_untouched() {
    in_lan(|machine| {
        let mut arp = Frame::udp("10.89.0.11:1", "10.89.0.1:2");
        arp.0[12..14].copy_from_slice(&[8, 6]);
        let rows = [
            ("the machine itself", "lan", "lan1", Frame::tcp("10.89.0.11:40000", "10.89.0.1:5000", SYN)),
            ("a network where nodes may not go", "lan", "lan1", Frame::tcp("10.89.0.11:1", "172.16.0.9:80", SYN)),
            ("ARP of a node", "lan", "lan1", arp.clone()),
            ("ARP from outside", "lan_uplink", "uplink", arp),
            ("to the machine", "lan_uplink", "uplink", Frame::tcp("198.51.100.2:5000", "192.0.2.7:22", SYN)),
            ("to nobody here", "lan_uplink", "uplink", Frame::udp("198.51.100.2:5000", "203.0.113.9:53")),
            ("cut short", "lan_uplink", "uplink", Frame::udp("198.51.100.2:5000", "192.0.2.7:53").cut(36)),
        ];
        for (name, program, device, packet) in rows {
            let (verdict, out) = machine.run(program, device, &packet);
            assert_eq!((verdict, out.0), (Verdict::Pass, packet.0), "{name}");
        }
    });
}

#[test]
fn what_a_node_must_not_send_is_dropped_and_counted() {
    in_lan(|machine| {
        let packet = Frame::udp("10.89.0.11:40000", OUTSIDE);
        let about_nothing = Frame::too_big("10.89.0.11", "198.51.100.2", &Frame::udp(OUTSIDE, "10.89.0.11:9"));
        let rows = [
            ("malformed/egress", packet.clone().cut(36)),
            ("fragment/egress", packet.clone().later_fragment()),
            ("time_to_live/egress", packet.with_ttl(1)),
            ("untracked/egress", about_nothing),
        ];
        for (counter, packet) in rows {
            assert_eq!(machine.run("lan", "lan1", &packet).0, Verdict::Drop, "{counter}");
            assert_eq!(machine.counter(counter), 1, "{counter}");
        }
    });
}

#[test]
fn without_a_free_port_the_packet_is_dropped() {
    in_lan(|machine| {
        machine.occupy_ports(OUTSIDE.parse().unwrap(), Protocol::Udp);
        assert_eq!(machine.run("lan", "lan1", &Frame::udp("10.89.0.11:40000", OUTSIDE)).0, Verdict::Drop);
        assert_eq!(machine.counter("no_port/egress"), 1);
        let over_tcp = Frame::tcp("10.89.0.11:40000", OUTSIDE, SYN);
        assert_eq!(machine.run("lan", "lan1", &over_tcp).0, Verdict::Redirect, "they are free for another protocol");
    });
}
