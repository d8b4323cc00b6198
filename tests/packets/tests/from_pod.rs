use leme_tests_packets::{
    Frame, Row, Verdict, check,
    frame::{ACK, SYN},
    in_namespace,
    node::service,
};

fn row(name: &'static str, packet: Frame, verdict: Verdict, leaves: Option<Frame>) -> Row {
    Row { name, program: "from_pod", device: "pod2", packet, verdict, leaves }
}

#[test]
fn packets_of_a_pod_go_where_their_destination_lives() {
    in_namespace(Vec::new(), |node| {
        let to = |dst| Frame::tcp("10.244.1.2:40000", dst, SYN);
        let same = |dst, verdict| row(dst, to(dst), verdict, Some(to(dst)));
        check(
            node,
            &[
                same("10.244.1.3:80", Verdict::Redirect),
                same("10.244.2.9:80", Verdict::Redirect),
                same("10.89.0.11:10250", Verdict::Pass),
                same("10.244.1.1:53", Verdict::Pass),
                row("an unknown pod of this node", to("10.244.1.77:80"), Verdict::Drop, None),
                row("an unclaimed range", to("10.244.77.1:80"), Verdict::Drop, None),
                row("multicast", to("224.0.0.251:5353"), Verdict::Drop, None),
                row("a foreign source", Frame::tcp("10.244.1.3:1", "10.244.1.2:80", SYN), Verdict::Drop, None),
            ],
        );
        assert_eq!(node.counter("no_endpoint/egress"), 1);
        assert_eq!(node.counter("no_route/egress"), 1);
        assert_eq!(node.counter("multicast/egress"), 1);
        assert_eq!(node.counter("spoofed/egress"), 1);
    });
}

#[test]
fn what_is_not_ip_is_dropped_and_counted() {
    in_namespace(Vec::new(), |node| {
        let mut arp = Frame::udp("10.244.1.2:1", "10.244.1.3:2");
        arp.0[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(node.run("from_pod", "pod2", &arp).0, Verdict::Drop);
        assert_eq!(node.counter("not_ip/egress"), 1);
    });
}

#[test]
fn a_masqueraded_packet_carries_the_nodes_address_and_its_answer_the_pods() {
    in_namespace(Vec::new(), |node| {
        let udp_without = Frame::udp_without_checksum("10.244.1.2:40001", "198.51.100.2:443");
        for packet in [
            Frame::tcp("10.244.1.2:40000", "198.51.100.2:443", SYN),
            Frame::udp("10.244.1.2:40000", "198.51.100.2:443"),
            udp_without,
        ] {
            let (verdict, out) = node.run("from_pod", "pod2", &packet);
            let (sent, was) = (out.facts(), packet.facts());
            assert_eq!(
                (verdict, sent.src.ip().to_string(), sent.dst),
                (Verdict::Redirect, "10.89.0.11".into(), was.dst)
            );
            assert!((12_000..=29_999).contains(&sent.src.port()));
            assert_eq!((sent.ttl, &sent.rest), (63, &was.rest));
            out.check_checksums("masqueraded");
            let (from, to) = (sent.dst.to_string(), sent.src.to_string());
            let answer = if sent.proto == 6 { Frame::tcp(&from, &to, SYN | ACK) } else { Frame::udp(&from, &to) };
            let (verdict, back) = node.run("nic_ingress", "eth0", &answer);
            assert_eq!((verdict, back.facts().src, back.facts().dst), (Verdict::Redirect, was.dst, was.src));
            back.check_checksums("the answer");
        }
    });
}

#[test]
fn an_echo_to_the_outside_keeps_its_sender_through_the_identifier() {
    in_namespace(Vec::new(), |node| {
        let (verdict, out) = node.run("from_pod", "pod2", &Frame::echo(8, "10.244.1.2", "198.51.100.2", 77));
        assert_eq!((verdict, out.facts().src.ip().to_string()), (Verdict::Redirect, "10.89.0.11".into()));
        out.check_checksums("echo");
        let id = u16::from_be_bytes([out.0[38], out.0[39]]);
        let (verdict, back) = node.run("nic_ingress", "eth0", &Frame::echo(0, "198.51.100.2", "10.89.0.11", id));
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(back.facts(), Frame::echo(0, "198.51.100.2", "10.244.1.2", 77).facts());
        back.check_checksums("echo reply");
    });
}

#[test]
fn an_error_about_a_masqueraded_packet_reaches_the_pod_as_if_about_its_own() {
    in_namespace(Vec::new(), |node| {
        for packet in [
            Frame::tcp("10.244.1.2:40000", "198.51.100.2:443", SYN),
            Frame::udp("10.244.1.2:40000", "198.51.100.2:443"),
            Frame::echo(8, "10.244.1.2", "198.51.100.2", 77),
        ] {
            let (_, out) = node.run("from_pod", "pod2", &packet);
            let error = Frame::too_big("203.0.113.1", "10.89.0.11", &out);
            let (verdict, back) = node.run("nic_ingress", "eth0", &error);
            assert_eq!(verdict, Verdict::Redirect);
            let expected = Frame::too_big("203.0.113.1", "10.244.1.2", &packet.clone().routed());
            assert_eq!(back.facts(), expected.facts());
            back.check_checksums("error");
        }
    });
}

#[test]
fn a_service_is_resolved_for_packets_the_socket_layer_missed() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.1.3", "a")]), |node| {
        let (verdict, out) = node.run("from_pod", "pod2", &Frame::tcp("10.244.1.2:40000", "10.96.0.50:80", SYN));
        assert_eq!((verdict, out.facts().dst.to_string()), (Verdict::Redirect, "10.244.1.3:8080".into()));
        out.check_checksums("to the backend");
        let to = format!("10.244.1.2:{}", out.facts().src.port());
        let answer = Frame::tcp("10.244.1.3:8080", &to, SYN | ACK);
        let back = Frame::tcp("10.96.0.50:80", "10.244.1.2:40000", SYN | ACK);
        check(node, &[Row::redirected("the answer", "from_pod", "pod3", answer, back)]);
    });
}

#[test]
fn a_service_without_endpoints_says_so() {
    in_namespace(service("none", "10.96.0.51", 30081, &[]), |node| {
        for packet in
            [Frame::tcp("10.244.1.2:40000", "10.96.0.51:80", SYN), Frame::udp("10.244.1.2:40000", "10.96.0.51:80")]
        {
            let (verdict, out) = node.run("from_pod", "pod2", &packet);
            assert_eq!((verdict, out.0.len()), (Verdict::Redirect, 14 + 56));
            let facts = out.facts();
            assert_eq!(
                (facts.src.ip().to_string(), facts.dst.ip().to_string()),
                ("10.96.0.51".into(), "10.244.1.2".into())
            );
            assert_eq!(out.0[34..36], [3, 3], "port unreachable");
            assert_eq!(out.0[42..70], packet.0[14..42], "the refused packet is quoted");
            out.check_checksums("port unreachable");
        }
        assert_eq!(node.counter("no_backend/egress"), 2);
    });
}
