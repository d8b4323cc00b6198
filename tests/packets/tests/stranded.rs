//! UDP sockets that are connected to a backend when it goes.

use leme_datapath::{HostPort, ObjectKey, Protocol};
use leme_tests_packets::{Node, in_namespace, node::service};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::Path,
};

const VIP: &str = "10.96.0.50:80";
const MAPPED: &str = "[::ffff:10.96.0.50]:80";
const BACKEND: &str = "10.89.0.11";
const OTHER: &str = "10.244.1.1";
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);

fn dns(backends: &[&str]) -> Vec<Value> {
    let backends: Vec<_> = backends.iter().map(|address| (*address, "a")).collect();
    service("dns", "10.96.0.50", 30053, &backends)
}

fn change(node: &mut Node, objects: &[Value]) {
    objects.iter().for_each(|object| node.feed(object));
}

fn connected(address: &str) -> UdpSocket {
    let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).expect("a free port");
    socket.connect(address).expect("the Service has backends");
    socket
}

/// Ends what has to be ended, and tells how many that were.
fn end(node: &Node) -> usize {
    let sockets = node.datapath.sockets().expect("maps are pinned");
    let found = sockets.connected().expect("the kernel lists sockets");
    sockets.end(&node.datapath.deserted(found)).expect("the kernel ends sockets")
}

/// Its owner is told, and may connect it anew.
fn expect_ended(socket: &UdpSocket) {
    let told = socket.take_error().expect("a socket").expect("an error is pending");
    assert_eq!(told.kind(), std::io::ErrorKind::ConnectionAborted);
    assert!(socket.send(b"who").is_err(), "it is not connected any more");
    socket
        .connect(if socket.local_addr().expect("it is bound").is_ipv4() { VIP } else { MAPPED })
        .expect("the Service has backends");
    socket.send(b"who").expect("it is connected");
}

#[test]
fn sockets_of_the_node_and_of_pods_are_ended_when_their_backend_goes() {
    in_namespace(dns(&[BACKEND]), |node| {
        let pod = node.pod_namespace("pod2");
        node.datapath.add_namespace(IpAddr::V4(POD), Path::new(&pod.path())).unwrap();
        node.change_within_cgroup(|node| {
            let here = [VIP, MAPPED, "10.89.0.11:30053", "127.0.0.1:30053"].map(connected);
            let in_pod = pod.within(|| [VIP, MAPPED].map(connected));
            assert_eq!(end(node), 0, "their backend serves");
            let _server = UdpSocket::bind((OTHER, 8080)).unwrap();
            change(node, &dns(&[OTHER]));
            assert_eq!(end(node), 6);
            here.iter().chain(&in_pod).for_each(expect_ended);
            assert_eq!(end(node), 0, "they have the new one");
        });
    });
}

#[test]
fn sockets_are_ended_when_nobody_is_left_and_when_the_service_goes() {
    in_namespace(dns(&[BACKEND]), |node| {
        node.change_within_cgroup(|node| {
            let socket = connected(VIP);
            change(node, &dns(&[]));
            assert_eq!(end(node), 1);
            assert!(socket.send(b"who").is_err());

            change(node, &dns(&[BACKEND]));
            let _socket = connected(VIP);
            let key = ObjectKey::new("default", "dns");
            node.snapshot.delete_service(&key);
            node.datapath.reconcile_all(&node.snapshot).unwrap();
            assert_eq!(end(node), 1);
        });
    });
}

#[test]
fn sockets_are_ended_when_the_pod_behind_a_port_of_the_node_goes() {
    in_namespace(Vec::new(), |node| {
        let port = |protocol, port| HostPort { addr: None, port, protocol, target: 80 };
        let ports = [port(Protocol::Udp, 8081), port(Protocol::Tcp, 8082)];
        let pod = IpAddr::V4(POD);
        node.change_within_cgroup(|node| {
            assert!(!node.datapath.set_host_ports(pod, &ports).unwrap().deserted);
            let sockets = ["10.89.0.11:8081", "127.0.0.1:8081"].map(connected);
            assert_eq!(end(node), 0);
            assert!(!node.datapath.set_host_ports(pod, &ports[..1]).unwrap().deserted, "TCP tells by itself");
            assert!(node.datapath.remove_endpoint(pod).unwrap().deserted);
            assert_eq!(end(node), sockets.len());
            for socket in sockets {
                assert!(socket.send(b"who").is_err());
            }
        });
    });
}

#[test]
fn sockets_that_did_not_get_there_through_the_service_are_left_alone() {
    let mut objects = dns(&[BACKEND]);
    objects.extend(service("other", "10.96.0.51", 30054, &[(BACKEND, "a")]));
    in_namespace(objects, |node| {
        node.change_within_cgroup(|node| {
            let _server = UdpSocket::bind((BACKEND, 8080)).unwrap();
            let by_address = connected("10.89.0.11:8080");
            let by_another = connected("10.96.0.51:80");
            let unconnected = UdpSocket::bind("0.0.0.0:0").unwrap();
            unconnected.send_to(b"who", VIP).unwrap();
            let elsewhere_since = connected(VIP);
            elsewhere_since.connect("10.89.0.11:8080").unwrap();
            change(node, &dns(&[]));
            assert_eq!(end(node), 0);
            for socket in [by_address, by_another, elsewhere_since] {
                socket.send(b"who").unwrap();
            }
        });
    });
}

#[test]
fn a_backend_that_still_serves_while_it_terminates_keeps_its_sockets() {
    in_namespace(dns(&[BACKEND, OTHER]), |node| {
        let conditions = |serving: bool| {
            let mut objects = dns(&[BACKEND, OTHER]);
            for (n, terminating) in [(0, true), (1, false)] {
                let serving = serving || !terminating;
                objects[1]["endpoints"][n]["conditions"] =
                    json!({"ready": !terminating, "serving": serving, "terminating": terminating});
            }
            objects
        };
        node.change_within_cgroup(|node| {
            let _sockets: Vec<_> = (0..16).map(|_| connected(VIP)).collect();
            change(node, &conditions(true));
            assert_eq!(end(node), 0);
            change(node, &conditions(false));
            let ended = end(node);
            assert!((1..16).contains(&ended), "{ended} of 16 had the one that went");
        });
    });
}

#[test]
fn what_happened_while_the_agent_was_away_is_made_up_for() {
    in_namespace(dns(&[BACKEND]), |node| {
        node.change_within_cgroup(|node| {
            let _socket = connected(VIP);
            node.restart();
            assert_eq!(end(node), 0, "nothing is known before the first complete list");
            let report = node.datapath.reconcile_all(&node.snapshot).unwrap();
            assert!(report.deserted);
            assert_eq!(end(node), 0);
            node.restart();
            change(node, &dns(&[OTHER]));
            assert_eq!(end(node), 1);
        });
    });
}

#[test]
fn what_a_closed_socket_asked_for_is_forgotten() {
    in_namespace(dns(&[BACKEND]), |node| {
        let remembered = |node: &Node| {
            let fill = node.datapath.fill().unwrap();
            fill.iter().find(|map| map.map == "udp_origin").unwrap().entries
        };
        node.within_cgroup(|| {
            let sockets = [VIP, MAPPED].map(connected);
            assert_eq!(remembered(node), 2);
            drop(sockets);
            assert_eq!(remembered(node), 0);
        });
    });
}
