//! The kernel has no test run for socket hooks: real sockets, in the node's namespace and cgroup.

use leme_datapath::SocketLb;
use leme_tests_packets::{Node, in_namespace, node::service};
use serde_json::json;
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

const VIP: &str = "10.96.0.50:80";
const BACKEND: &str = "10.89.0.11:8080";

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// The same address as an IPv6 socket names it: Go, Java and most servers' clients do.
fn mapped(text: &str) -> SocketAddr {
    match addr(text) {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        v6 => v6,
    }
}

#[test]
fn a_connect_to_a_service_reaches_its_backend_and_the_peer_is_the_service() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.89.0.11", "a")]), |node| {
        node.within_cgroup(|| {
            let listener = TcpListener::bind(BACKEND).unwrap();
            let addresses = [VIP, "10.89.0.11:30080", "10.89.0.12:30080", "10.244.1.1:30080", "127.0.0.1:30080"];
            for address in addresses.map(addr).into_iter().chain(addresses.map(mapped)) {
                let mut client = TcpStream::connect_timeout(&address, Duration::from_secs(2))
                    .unwrap_or_else(|error| panic!("{address}: {error}"));
                assert_eq!(client.peer_addr().unwrap(), address);
                let (mut server, _) = listener.accept().unwrap();
                server.write_all(b"hello").unwrap();
                let mut hello = [0; 5];
                client.read_exact(&mut hello).unwrap();
            }
        });
    });
}

#[test]
fn datagrams_go_to_the_backend_and_answers_come_from_the_service() {
    in_namespace(service("dns", "10.96.0.50", 30053, &[("10.89.0.11", "a")]), |node| {
        node.within_cgroup(|| {
            let server = UdpSocket::bind(BACKEND).unwrap();
            let answer = || {
                let mut buffer = [0; 16];
                let (length, from) = server.recv_from(&mut buffer).unwrap();
                server.send_to(&buffer[..length], from).unwrap();
            };
            for (any, form) in [("0.0.0.0:0", addr as fn(&str) -> SocketAddr), ("[::]:0", mapped)] {
                let client = UdpSocket::bind(any).unwrap();
                client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                let mut buffer = [0; 16];
                for address in [VIP, "10.89.0.11:30053", "127.0.0.1:30053"].map(form) {
                    client.send_to(b"who", address).unwrap();
                    answer();
                    assert_eq!(client.recv_from(&mut buffer).unwrap(), (3, address), "unconnected");
                }
                client.connect(form(VIP)).unwrap();
                client.send(b"who").unwrap();
                answer();
                assert_eq!(client.recv_from(&mut buffer).unwrap(), (3, form(VIP)), "connected");
                assert_eq!(client.peer_addr().unwrap(), form(VIP));
            }
        });
    });
}

#[test]
fn a_service_without_endpoints_refuses() {
    in_namespace(service("none", "10.96.0.50", 30080, &[]), |node| {
        node.within_cgroup(|| {
            let addresses = [VIP, "10.89.0.11:30080", "127.0.0.1:30080"];
            for address in addresses.map(addr).into_iter().chain(addresses.map(mapped)) {
                let refused = TcpStream::connect_timeout(&address, Duration::from_secs(2)).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}");
                let client = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
                assert_eq!(client.send_to(b"who", address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            }
        });
    });
}

#[test]
fn sockets_are_refused_ports_that_a_service_does_not_have() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.89.0.11", "a")]), |node| {
        node.within_cgroup(|| {
            for address in [addr("10.96.0.50:81"), mapped("10.96.0.50:81")] {
                let refused = TcpStream::connect_timeout(&address, Duration::from_secs(2)).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}");
                let client = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
                assert_eq!(client.send_to(b"who", address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            }
        });
    });
}

#[test]
fn a_socket_follows_a_service_that_gets_its_first_endpoint() {
    in_namespace(service("web", "10.96.0.50", 30080, &[]), |node| {
        let listener = TcpListener::bind(BACKEND).unwrap();
        for object in service("web", "10.96.0.50", 30080, &[("10.89.0.11", "a")]) {
            node.feed(&object);
        }
        node.within_cgroup(|| {
            TcpStream::connect_timeout(&addr(VIP), Duration::from_secs(2)).unwrap();
            listener.accept().unwrap();
        });
    });
}

#[test]
fn other_addresses_are_left_alone() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.89.0.11", "a")]), |node| {
        node.within_cgroup(|| {
            let addresses = ["127.0.0.1:8081", "[::1]:8081", "[::1]:30080"].map(addr);
            for address in addresses {
                let listener = TcpListener::bind(address).unwrap();
                let client = TcpStream::connect(address).unwrap();
                assert_eq!(client.peer_addr().unwrap(), address);
                assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
            }
        });
    });
}

/// The unspecified address is what NodePorts have in the table, and must not be found there.
#[test]
fn the_unspecified_ipv6_address_is_the_kernels_to_understand() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.89.0.11", "a")]), |node| {
        node.within_cgroup(|| {
            let listener = TcpListener::bind("[::]:30080").unwrap();
            let client = TcpStream::connect_timeout(&addr("[::]:30080"), Duration::from_secs(2)).unwrap();
            assert_eq!(client.peer_addr().unwrap(), addr("[::1]:30080"));
            assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
        });
    });
}

/// What a sidecar sees, and where the packets go all the same.
#[test]
fn pods_name_services_undisturbed_where_only_the_hosts_sockets_are_resolved() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.89.0.11", "a")]), |node| {
        let pod = node.pod_namespace("pod2");
        node.restart_with(|config| config.socket_lb = SocketLb::HostOnly);
        node.within_cgroup(|| {
            let listener = TcpListener::bind(BACKEND).unwrap();
            let translated = |node: &Node| node.datapath.dump().unwrap().connections;
            for address in [addr(VIP), mapped(VIP)] {
                TcpStream::connect_timeout(&address, Duration::from_secs(2)).unwrap();
                listener.accept().unwrap();
            }
            assert_eq!(translated(node), 0, "the node's sockets have a backend");
            for (n, address) in [addr(VIP), mapped(VIP), addr("10.89.0.11:30080")].into_iter().enumerate() {
                let client = pod.within(|| TcpStream::connect_timeout(&address, Duration::from_secs(2)).unwrap());
                assert_eq!(client.peer_addr().unwrap(), address);
                listener.accept().unwrap();
                assert_eq!(translated(node), n + 1, "the pod's packets get one");
            }
            let server = UdpSocket::bind(BACKEND).unwrap();
            let client = pod.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            client.send_to(b"who", addr(VIP)).unwrap();
            let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
            server.send_to(b"me", from).unwrap();
            assert_eq!(client.recv_from(&mut [0; 16]).unwrap(), (2, addr(VIP)));
        });
    });
}

#[test]
fn another_nodes_port_under_a_local_policy_is_asked_over_there() {
    let mut objects = service("web", "10.96.0.50", 30080, &[("10.89.0.11", "a")]);
    objects[0]["spec"]["externalTrafficPolicy"] = json!("Local");
    in_namespace(objects, |node| {
        let (pod, far) = (node.pod_namespace("pod2"), node.far_namespace());
        let other = addr("10.89.0.12:30080");
        let open = |address: SocketAddr| {
            let socket = UdpSocket::bind(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket
        };
        let server = far.within(|| open(other));
        node.within_cgroup(|| {
            for client in [open(addr("0.0.0.0:0")), pod.within(|| open(addr("0.0.0.0:0")))] {
                client.send_to(b"who", other).unwrap();
                let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
                assert_eq!(from.ip().to_string(), "10.89.0.11");
                server.send_to(b"me", from).unwrap();
                assert_eq!(client.recv_from(&mut [0; 16]).unwrap(), (2, other));
            }
        });
    });
}
