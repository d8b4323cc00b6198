//! Egress by test runs. Those have no tunnel key to give, so ingress is shown with what node `b` really sends: VXLAN over
//! UDP (RFC 7348) from the far end of the NIC.

use leme_tests_packets::{Frame, Network, Node, Row, Verdict, check, frame::SYN, in_namespace, node::service};
use std::{net::UdpSocket, time::Duration};

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

const VXLAN: usize = 8;
const OURS: u32 = 1;

/// Node `b`'s end of the tunnel.
struct Tunnel(UdpSocket);

impl Tunnel {
    fn new(far: &Network) -> Self {
        Self(far.within(|| listen("10.89.0.12:4789")))
    }

    fn send(&self, network: u32, inner: &Frame) {
        let mut packet = vec![8, 0, 0, 0];
        packet.extend((network << 8).to_be_bytes());
        packet.extend(&inner.0);
        self.0.send_to(&packet, "10.89.0.11:4789").expect("a way to the node");
    }

    /// The frame inside the next packet, which must be of our network.
    fn receive(&self) -> Frame {
        let mut packet = [0; 2048];
        let (length, from) = self.0.recv_from(&mut packet).expect("a packet");
        assert_eq!(from.ip().to_string(), "10.89.0.11");
        assert_eq!(packet[..VXLAN], [8, 0, 0, 0, 0, 0, OURS as u8, 0]);
        Frame(packet[VXLAN..length].to_vec())
    }
}

fn listen(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("the address is there");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("sockets may");
    socket
}

fn receive(socket: &UdpSocket) -> (String, String) {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram");
    (String::from_utf8_lossy(&buffer[..length]).into_owned(), from.to_string())
}

fn ports() -> Vec<serde_json::Value> {
    service("web", "10.96.0.50", 30080, &[("10.244.2.9", "b")])
}

#[test]
fn a_pods_packets_from_another_node_arrive_and_its_answers_go_back_through_the_tunnel() {
    in_namespace(Vec::new(), |node| {
        let (pod, far) = (node.pod_namespace("pod2"), node.far_namespace());
        let tunnel = Tunnel::new(&far);
        let server = pod.within(|| listen("10.244.1.2:8080"));
        tunnel.send(OURS, &Frame::udp("10.244.2.9:40000", "10.244.1.2:8080"));
        assert_eq!(receive(&server), ("payload".into(), "10.244.2.9:40000".into()));
        server.send_to(b"payload", "10.244.2.9:40000").unwrap();
        let answer = tunnel.receive();
        let expected = Frame::udp("10.244.1.2:8080", "10.244.2.9:40000").facts();
        assert_eq!((answer.facts().src, answer.facts().dst), (expected.src, expected.dst));
    });
}

#[test]
fn the_node_itself_is_reached_through_the_tunnel() {
    in_namespace(Vec::new(), |node| {
        let far = node.far_namespace();
        let tunnel = Tunnel::new(&far);
        for address in ["10.244.1.1:5353", "10.89.0.11:5353"] {
            let server = listen(address);
            tunnel.send(OURS, &Frame::udp("10.244.2.9:40000", address));
            assert_eq!(receive(&server), ("payload".into(), "10.244.2.9:40000".into()), "{address}");
        }
    });
}

#[test]
fn an_outside_client_is_served_by_a_pod_of_another_node_and_answered_by_this_one() {
    in_namespace(ports(), |node| {
        let far = node.far_namespace();
        let (tunnel, client) = (Tunnel::new(&far), far.within(|| listen("198.51.100.2:5000")));
        client.send_to(b"payload", "10.89.0.11:30080").unwrap();
        let forwarded = tunnel.receive();
        let facts = forwarded.facts();
        assert_eq!(
            (facts.src.ip().to_string(), facts.dst.to_string()),
            ("10.244.1.1".into(), "10.244.2.9:8080".into())
        );
        tunnel.send(OURS, &Frame::udp("10.244.2.9:8080", &facts.src.to_string()));
        assert_eq!(receive(&client), ("payload".into(), "10.89.0.11:30080".into()));
    });
}

#[test]
fn the_nodes_own_connection_to_a_remote_pod_gets_its_answer() {
    in_namespace(Vec::new(), |node| {
        let far = node.far_namespace();
        let tunnel = Tunnel::new(&far);
        let client = listen("10.89.0.11:5000");
        client.send_to(b"payload", "10.244.2.9:8080").unwrap();
        let sent = tunnel.receive().facts();
        assert_eq!((sent.src.ip().to_string(), sent.dst.to_string()), ("10.244.1.1".into(), "10.244.2.9:8080".into()));
        tunnel.send(OURS, &Frame::udp("10.244.2.9:8080", &sent.src.to_string()));
        assert_eq!(receive(&client), ("payload".into(), "10.244.2.9:8080".into()));
    });
}

#[test]
fn what_must_not_come_through_the_tunnel_is_dropped_under_its_reason() {
    in_namespace(ports(), |node| {
        let far = node.far_namespace();
        let (tunnel, client) = (Tunnel::new(&far), far.within(|| listen("198.51.100.2:5000")));
        client.send_to(b"payload", "10.89.0.11:30080").unwrap();
        let forwarded = tunnel.receive().facts();
        let to_pod = || Frame::udp("10.244.2.9:8080", "10.244.1.2:8080");
        let mut arp = to_pod();
        arp.0[12..14].copy_from_slice(&[8, 6]);
        let dropped = |node: &Node, reason: &str, network, packet: Frame| {
            let before = node.counter(reason);
            tunnel.send(network, &packet);
            node.await_counter(reason, before + 1);
        };
        dropped(node, "tunnel/ingress", 7, to_pod());
        dropped(node, "tunnel/ingress", OURS, arp);
        dropped(node, "malformed/ingress", OURS, to_pod().cut(36));
        dropped(node, "fragment/ingress", OURS, to_pod().later_fragment());
        for (nobody, src) in [("an unknown pod", "10.244.1.77:80"), ("carried on to the outside", "198.51.100.2:80")] {
            let packet = Frame::udp("10.244.2.9:8080", src);
            assert_eq!(packet.facts().dst.to_string(), src, "{nobody}");
            dropped(node, "no_endpoint/ingress", OURS, packet);
        }
        let answer = Frame::udp("10.244.2.9:8080", &forwarded.src.to_string());
        dropped(node, "time_to_live/ingress", OURS, answer.with_ttl(1));
    });
}

/// A test run has no tunnel key at all.
#[test]
fn a_packet_without_our_network_identifier_is_refused() {
    in_namespace(Vec::new(), |node| {
        let packet = Frame::tcp("10.244.2.9:80", "10.244.1.2:40000", SYN);
        assert_eq!(node.run("overlay_ingress", "leme-vxlan", &packet).0, Verdict::Drop);
        assert_eq!(node.counter("tunnel/ingress"), 1);
    });
}
