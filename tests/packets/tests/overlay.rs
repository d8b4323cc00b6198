use leme_tests_packets::{Frame, Row, Verdict, check, frame::SYN, in_namespace};

#[test]
fn the_nodes_packets_to_remote_pods_get_a_tunnel_and_the_router_address() {
    in_namespace(Vec::new(), |node| {
        let row = |name, packet: Frame, verdict, leaves| Row {
            name,
            program: "overlay_egress",
            device: "leme-vxlan",
            packet,
            verdict,
            leaves,
        };
        let own = Frame::tcp("10.244.1.1:40000", "10.244.2.9:80", SYN);
        check(
            node,
            &[
                row("from the router address", own.clone(), Verdict::Pass, Some(own)),
                row(
                    "to an unclaimed range",
                    Frame::tcp("10.244.1.1:40000", "10.244.77.9:80", SYN),
                    Verdict::Drop,
                    None,
                ),
            ],
        );
        let (verdict, out) =
            node.run("overlay_egress", "leme-vxlan", &Frame::tcp("10.89.0.11:40000", "10.244.2.9:80", SYN));
        assert_eq!((verdict, out.facts().src.ip().to_string()), (Verdict::Pass, "10.244.1.1".into()));
        out.check_checksums("from the node's address");
        assert_eq!(node.counter("no_route/egress"), 1);
    });
}

/// A test run has no tunnel key to give: what arrives without ours is refused. `ebpf/packet` walks the rest.
#[test]
fn a_packet_without_our_network_identifier_is_refused() {
    in_namespace(Vec::new(), |node| {
        let packet = Frame::tcp("10.244.2.9:80", "10.244.1.2:40000", SYN);
        assert_eq!(node.run("overlay_ingress", "leme-vxlan", &packet).0, Verdict::Drop);
        assert_eq!(node.counter("tunnel/ingress"), 1);
    });
}
