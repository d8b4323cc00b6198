//! Ports of the node that lead to one of its pods.
#![expect(clippy::unwrap_used, reason = "tests may")]

use leme_datapath::{HostPort, Protocol};
use leme_tests_packets::{
    Frame, Node, Row, Verdict, check,
    frame::{ACK, SYN},
    in_namespace,
    node::service,
};
use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

const POD: &str = "10.244.1.2";

fn port(addr: Option<&str>, protocol: Protocol) -> HostPort {
    HostPort { addr: addr.map(ip), port: 8081, protocol, target: 80 }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn all() -> [HostPort; 3] {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| port(None, protocol))
}

/// Frontend → backends, as `leme bpf services` shows them.
fn table(node: &Node) -> Vec<(String, String)> {
    let rows = node.datapath.dump().unwrap().services;
    rows.into_iter().map(|row| (row.frontends.join(" "), row.backends.join(" "))).collect()
}

#[test]
fn outside_clients_reach_the_pod_with_their_own_address() {
    in_namespace(Vec::new(), |node| {
        node.datapath.set_host_ports(ip(POD), &all()).unwrap();
        check(
            node,
            &[
                Row::inwards(8081, 80, SYN),
                Row::outwards(8081, 80, SYN | ACK),
                Row::redirected(
                    "in over UDP",
                    "nic_ingress",
                    "eth0",
                    Frame::udp("198.51.100.2:5000", "10.89.0.11:8081"),
                    Frame::udp("198.51.100.2:5000", "10.244.1.2:80"),
                ),
                Row::redirected(
                    "in over SCTP",
                    "nic_ingress",
                    "eth0",
                    Frame::sctp("198.51.100.2:5000", "10.89.0.11:8081", 1),
                    Frame::sctp("198.51.100.2:5000", "10.244.1.2:80", 1),
                ),
                Row::redirected(
                    "a pod of another node, whose node masquerades it",
                    "nic_ingress",
                    "eth0",
                    Frame::tcp("10.89.0.12:14000", "10.89.0.11:8081", SYN),
                    Frame::tcp("10.89.0.12:14000", "10.244.1.2:80", SYN),
                ),
                Row::untouched(
                    "loopback",
                    "nic_ingress",
                    "eth0",
                    Frame::tcp("198.51.100.2:5000", "127.0.0.1:8081", SYN),
                ),
                Row::untouched(
                    "other ports",
                    "nic_ingress",
                    "eth0",
                    Frame::tcp("198.51.100.2:5000", "10.89.0.11:80", SYN),
                ),
                Row::untouched(
                    "of another node",
                    "nic_egress",
                    "eth0",
                    Frame::tcp("10.89.0.11:40000", "10.89.0.12:8081", SYN),
                ),
            ],
        );
    });
}

#[test]
fn pods_reach_it_at_their_own_node_and_are_masqueraded_towards_others() {
    in_namespace(Vec::new(), |node| {
        node.datapath.set_host_ports(ip(POD), &all()).unwrap();
        let (verdict, out) = node.run("from_pod", "pod3", &Frame::tcp("10.244.1.3:40000", "10.89.0.11:8081", SYN));
        assert_eq!((verdict, out.facts().dst.to_string()), (Verdict::Redirect, "10.244.1.2:80".into()));
        assert_eq!(out.facts().src.ip().to_string(), "10.244.1.3");
        let (_, own) = node.run("from_pod", "pod2", &Frame::tcp("10.244.1.2:40000", "10.89.0.11:8081", SYN));
        assert_eq!(own.facts().src.ip().to_string(), "10.244.1.1", "itself, as the router");
        let (_, away) = node.run("from_pod", "pod3", &Frame::tcp("10.244.1.3:40000", "10.89.0.12:8081", SYN));
        assert_eq!(away.facts().dst.to_string(), "10.89.0.12:8081");
        assert_eq!(away.facts().src.ip().to_string(), "10.89.0.11");
    });
}

fn connect(address: &str) -> Result<TcpStream, ErrorKind> {
    let address: SocketAddr = address.parse().unwrap();
    TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(|error| error.kind())
}

/// The kernel has no test run for socket hooks: the node itself plays the pod.
#[test]
fn sockets_of_the_node_reach_it_on_every_address_or_on_the_one_that_was_named() {
    in_namespace(Vec::new(), |node| {
        let listener = TcpListener::bind("10.89.0.11:80").unwrap();
        let all = ["127.0.0.1:8081", "10.89.0.11:8081", "10.244.1.1:8081"];
        for (addr, reached) in [(None, &all[..]), (Some("127.0.0.1"), &all[..1]), (Some("10.89.0.11"), &all[1..2])] {
            node.datapath.set_host_ports(ip("10.89.0.11"), &[port(addr, Protocol::Tcp)]).unwrap();
            node.within_cgroup(|| {
                for address in all {
                    let found = connect(address).map(|client| client.peer_addr().unwrap().to_string());
                    let wanted = reached.contains(&address).then(|| address.to_owned());
                    assert_eq!(found.ok(), wanted, "{address} where {addr:?} is served");
                    wanted.map(|_| listener.accept().unwrap());
                }
            });
        }
    });
}

#[test]
fn datagrams_of_the_node_are_answered_from_the_port_they_named() {
    in_namespace(Vec::new(), |node| {
        node.datapath.set_host_ports(ip("10.89.0.11"), &[port(Some("127.0.0.1"), Protocol::Udp)]).unwrap();
        node.within_cgroup(|| {
            let server = UdpSocket::bind("10.89.0.11:80").unwrap();
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            for socket in [&server, &client] {
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            }
            client.send_to(b"who", "127.0.0.1:8081").unwrap();
            let mut buffer = [0; 16];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..length], from).unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (3, "127.0.0.1:8081".parse().unwrap()));
        });
    });
}

#[test]
fn it_is_listed_and_goes_with_the_pod() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.1.3", "a")]), |node| {
        let before = table(node);
        node.datapath.set_host_ports(ip(POD), &all()).unwrap();
        let shown = table(node);
        for frontend in ["*:8081/TCP", "*:8081/UDP", "*:8081/SCTP"] {
            assert!(shown.contains(&(frontend.into(), "10.244.1.2:80".into())), "{shown:?}");
        }
        node.datapath.remove_endpoint(ip(POD)).unwrap();
        assert_eq!(table(node), before);
        let knock = Frame::tcp("198.51.100.2:5000", "10.89.0.11:8081", SYN);
        check(node, &[Row::untouched("after the pod", "nic_ingress", "eth0", knock)]);
    });
}

#[test]
fn it_comes_before_a_node_port_of_the_same_number_which_gets_it_back() {
    in_namespace(service("web", "10.96.0.50", 8081, &[("10.244.1.3", "a")]), |node| {
        let on_port = |node: &Node| {
            let mut rows = table(node);
            rows.retain(|(frontends, _)| frontends.contains("*:8081/TCP"));
            rows.into_iter().map(|(_, backends)| backends).collect::<Vec<_>>()
        };
        node.datapath.set_host_ports(ip(POD), &[port(None, Protocol::Tcp)]).unwrap();
        assert_eq!(on_port(node), ["10.244.1.2:80"]);
        for object in service("web", "10.96.0.50", 8081, &[("10.244.1.3", "a"), ("10.244.2.9", "b")]) {
            node.feed(&object);
        }
        assert_eq!(on_port(node), ["10.244.1.2:80"]);
        node.datapath.set_host_ports(ip(POD), &[]).unwrap();
        assert_eq!(on_port(node), ["10.244.1.3:8080 10.244.2.9:8080"]);
    });
}

#[test]
fn another_pod_takes_a_port_over_and_the_first_ones_end_does_not_take_it_away() {
    in_namespace(Vec::new(), |node| {
        node.datapath.set_host_ports(ip(POD), &[port(None, Protocol::Tcp)]).unwrap();
        node.datapath.set_host_ports(ip("10.244.1.3"), &[port(None, Protocol::Tcp)]).unwrap();
        node.datapath.remove_endpoint(ip(POD)).unwrap();
        assert_eq!(table(node), [("*:8081/TCP".to_owned(), "10.244.1.3:80".to_owned())]);
    });
}

#[test]
fn reconciling_the_cluster_leaves_it_alone_also_after_a_restart() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.1.3", "a")]), |node| {
        node.datapath.set_host_ports(ip(POD), &all()).unwrap();
        let before = table(node);
        node.datapath.reconcile_all(&node.snapshot).unwrap();
        assert_eq!(table(node), before);
        node.restart();
        assert_eq!(table(node), before, "served while nobody has claimed it yet");
        node.datapath.set_host_ports(ip(POD), &all()).unwrap();
        assert_eq!(node.datapath.reconcile_all(&node.snapshot).unwrap().operations, 0);
        assert_eq!(table(node), before);
        // Its pod went while no agent was there.
        node.restart();
        node.datapath.reconcile_all(&node.snapshot).unwrap();
        assert!(table(node).iter().all(|(frontends, _)| !frontends.contains("8081")), "{:?}", table(node));
    });
}
