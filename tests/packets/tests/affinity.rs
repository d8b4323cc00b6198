//! Session affinity: one client, one backend, whichever hook chooses it.
//!
//! The two backends are servers on the node itself. A client that is not kept with one meets both in sixteen tries, but for
//! once in thirty thousand times.

use leme_tests_packets::{Frame, Node, in_namespace, node::service};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

const VIP: &str = "10.96.0.50:80";
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const ADDRESSES: [&str; 2] = ["10.89.0.11", "10.244.1.1"];
const TIMES: u16 = 16;

fn sticky(backends: &[&str]) -> Vec<Value> {
    let backends: Vec<_> = backends.iter().map(|address| (*address, "a")).collect();
    let mut objects = service("web", "10.96.0.50", 30080, &backends);
    objects[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    objects
}

/// The backends, listening.
struct Servers(Vec<UdpSocket>);

impl Servers {
    fn start() -> Self {
        let bind = |address: &&str| UdpSocket::bind((*address, 8080)).expect("the address is the node's");
        let servers: Vec<_> = ADDRESSES.iter().map(bind).collect();
        servers.iter().for_each(|server| server.set_nonblocking(true).expect("sockets may"));
        Self(servers)
    }

    /// Which of them got the next datagram, answered.
    fn served(&self) -> SocketAddr {
        let patience = Instant::now() + Duration::from_secs(5);
        loop {
            for server in &self.0 {
                match server.recv_from(&mut [0; 16]) {
                    Ok((_, from)) => {
                        server.send_to(b"answer", from).expect("the client is there");
                        return server.local_addr().expect("it is bound");
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            assert!(Instant::now() < patience, "no server was asked");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Who serves new sockets, connected and not, in the namespace of `bind`.
    fn asked_by(&self, bind: impl Fn() -> UdpSocket, address: &str) -> BTreeSet<SocketAddr> {
        let mut found = BTreeSet::new();
        for n in 0..TIMES {
            let client = bind();
            client.set_read_timeout(Some(Duration::from_secs(5))).expect("sockets may");
            if n % 2 == 0 {
                client.connect(address).expect("the Service has backends");
                client.send(b"ask").expect("it is connected");
            } else {
                client.send_to(b"ask", address).expect("the Service has backends");
            }
            found.insert(self.served());
            let (_, from) = client.recv_from(&mut [0; 16]).expect("an answer");
            assert_eq!(from.to_string(), address, "the answer is the Service's");
        }
        found
    }
}

fn any_port() -> UdpSocket {
    UdpSocket::bind("0.0.0.0:0").expect("a free port")
}

/// Who serves packets of a client, as a hook translates them.
fn chosen(node: &Node, program: &str, device: &str, src: &str, dst: &str) -> BTreeSet<SocketAddr> {
    let packets = (40_000..40_000 + TIMES).map(|port| Frame::udp(&format!("{src}:{port}"), dst));
    packets.map(|packet| SocketAddr::V4(node.run(program, device, &packet).1.facts().dst)).collect()
}

#[test]
fn a_pod_has_one_backend_for_its_sockets_and_its_packets() {
    in_namespace(sticky(&ADDRESSES), |node| {
        let pod = node.pod_namespace("pod2");
        node.datapath.add_namespace(IpAddr::V4(POD), Path::new(&pod.path())).unwrap();
        let servers = Servers::start();
        node.within_cgroup(|| {
            let at_sockets = servers.asked_by(|| pod.within(any_port), VIP);
            assert_eq!(at_sockets.len(), 1);
            assert_eq!(node.datapath.dump().unwrap().connections, 0, "nothing was left to be translated per packet");
            assert_eq!(servers.asked_by(|| pod.within(any_port), "10.89.0.11:30080"), at_sockets, "the NodePort");
            assert_eq!(chosen(node, "from_pod", "pod2", "10.244.1.2", VIP), at_sockets);
        });
    });
}

#[test]
fn a_pod_whose_namespace_is_unknown_has_one_backend_per_packet() {
    in_namespace(sticky(&ADDRESSES), |node| {
        let pod = node.pod_namespace("pod2");
        let servers = Servers::start();
        node.within_cgroup(|| {
            let asked = servers.asked_by(|| pod.within(any_port), VIP);
            assert_eq!(asked.len(), 1);
            assert_ne!(node.datapath.dump().unwrap().connections, 0);
            assert_eq!(chosen(node, "from_pod", "pod2", "10.244.1.2", VIP), asked);
        });
    });
}

#[test]
fn the_node_has_one_backend_for_its_sockets_and_its_packets() {
    in_namespace(sticky(&ADDRESSES), |node| {
        let servers = Servers::start();
        node.within_cgroup(|| {
            let at_sockets = servers.asked_by(any_port, VIP);
            assert_eq!(at_sockets.len(), 1);
            for address in ["10.89.0.11:30080", "10.244.1.1:30080", "127.0.0.1:30080"] {
                assert_eq!(servers.asked_by(any_port, address), at_sockets, "{address}");
            }
            assert_eq!(chosen(node, "nic_egress", "eth0", "10.89.0.11", VIP), at_sockets);
        });
    });
}

#[test]
fn outside_clients_stay_with_their_backends_whichever_address_they_ask() {
    in_namespace(sticky(&["10.244.1.2", "10.244.1.3"]), |node| {
        let mut all = BTreeSet::new();
        for n in 1..=TIMES {
            let client = format!("198.51.100.{n}");
            let found = chosen(node, "nic_ingress", "eth0", &client, "10.89.0.11:30080");
            assert_eq!(found.len(), 1, "{client}");
            assert_eq!(chosen(node, "nic_ingress", "eth0", &client, "10.244.1.1:30080"), found, "{client}");
            all.extend(found);
        }
        assert_eq!(all.len(), 2, "clients differ from each other");
    });
}

#[test]
fn a_local_policy_shares_affinity_with_the_cluster_ip() {
    let mut objects = sticky(&["10.244.1.2", "10.244.1.3"]);
    objects[0]["spec"]["externalTrafficPolicy"] = json!("Local");
    in_namespace(objects, |node| {
        for n in 1..=TIMES {
            let client = format!("198.51.100.{n}");
            let outward = chosen(node, "nic_ingress", "eth0", &client, "10.89.0.11:30080");
            assert_eq!(chosen(node, "nic_ingress", "eth0", &client, VIP), outward, "{client}");
        }
    });
}

#[test]
fn a_client_whose_backend_leaves_gets_another_and_stays_with_it() {
    in_namespace(sticky(&["10.244.1.2", "10.244.1.3"]), |node| {
        let before = chosen(node, "nic_ingress", "eth0", "198.51.100.2", "10.89.0.11:30080");
        let other = |address: &&str| before.iter().all(|chosen| chosen.ip().to_string() != **address);
        let left: Vec<_> = ["10.244.1.2", "10.244.1.3"].into_iter().filter(other).collect();
        sticky(&left).iter().for_each(|object| node.feed(object));
        let later = |node: &Node, port: u16| {
            let packet = Frame::udp(&format!("198.51.100.2:{port}"), "10.89.0.11:30080");
            node.run("nic_ingress", "eth0", &packet).1.facts().dst
        };
        assert_eq!(left, [later(node, 50_000).ip().to_string()]);
        sticky(&["10.244.1.2", "10.244.1.3"]).iter().for_each(|object| node.feed(object));
        let stays: BTreeSet<SocketAddrV4> = (50_001..50_001 + TIMES).map(|port| later(node, port)).collect();
        assert_eq!(stays.len(), 1);
        assert_eq!(left, [stays.first().unwrap().ip().to_string()]);
    });
}
