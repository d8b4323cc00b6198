//! Real traffic between two nodes, pods, and the world: see `site` for who is where.
#![expect(clippy::unwrap_used, reason = "tests may")]

use leme_datapath::Nic;
use leme_tests_packets::{
    Network, Site,
    device::{Sniffer, set_transmit_offload},
    network,
    node::service,
    site::{A, FAR, GATEWAY},
    traffic::{PATIENCE, connect, soon, tcp, tcp_from, udp},
};
use std::{
    io::{ErrorKind, Write},
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd,
};

const IPV4: u16 = 0x0800;
const KIB: usize = 1024;
/// Larger than any MTU on the way: fragments.
const LARGE: usize = 8 * KIB;
const POD: &str = "10.244.1.2";
const ROUTER_A: &str = "10.244.1.1";
const SERVER: &str = "10.244.2.2:8080";

/// Services by who serves them: a pod of the other node, one of this node, the one that asks, nobody.
const ELSEWHERE: u8 = 0;
const HERE: u8 = 1;
const ITSELF: u8 = 2;
const NOWHERE: u8 = 3;

/// With Services at 10.96.0.50 and following, port 80, and NodePorts 30080 and following.
fn site() -> Site {
    let service = |n: u8, backends: &[(&str, &str)]| {
        service(&format!("s{n}"), &format!("10.96.0.{}", 50 + n), 30080 + u16::from(n), backends)
    };
    let services = [
        service(ELSEWHERE, &[("10.244.2.2", "b")]),
        service(HERE, &[("10.244.1.3", "a")]),
        service(ITSELF, &[("10.244.1.2", "a")]),
        service(NOWHERE, &[]),
    ];
    Site::new(&services.concat()).unwrap_or_else(|error| panic!("{error:?}"))
}

fn cluster_ip(n: u8) -> String {
    format!("10.96.0.{}:80", 50 + n)
}

fn node_port(n: u8) -> String {
    format!("{A}:{}", 30080 + u16::from(n))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// One site for all of these: on an emulated kernel it takes most of the time.
#[test]
fn services_carry_traffic_from_pods_nodes_and_the_outside() {
    let site = site();
    for way in ["per packet", "by socket"] {
        let talk = || {
            println!("{way}");
            pods_reach_pods(&site);
            nodes_reach_pods_of_other_nodes(&site);
            nobody_answers(&site);
        };
        if way == "by socket" { site.a.within_cgroup(talk) } else { talk() }
    }
    the_outside_reaches_pods(&site);
}

fn pods_reach_pods(site: &Site) {
    let near = (&site.a.pods[1], "10.244.1.3:8080");
    let itself = (&site.a.pods[0], "10.244.1.2:8080");
    let asked = [(ELSEWHERE, (&site.b.pods[0], SERVER), POD), (HERE, near, POD), (ITSELF, itself, ROUTER_A)];
    for (n, server, seen) in asked {
        let target = cluster_ip(n);
        println!("{target}");
        // A pod that has named itself by its own address is its own client.
        let is_client = |peer: std::net::SocketAddr| peer.ip() == ip(seen) || (n == ITSELF && peer.ip() == ip(POD));
        for length in [5, 100 * KIB] {
            assert!(is_client(tcp(server, &site.a.pods[0], &target, length).unwrap()));
        }
        for length in [5, 1400, LARGE] {
            assert!(is_client(udp(server, &site.a.pods[0], &target, length).unwrap()));
        }
    }
}

fn nodes_reach_pods_of_other_nodes(site: &Site) {
    for target in [&cluster_ip(ELSEWHERE), SERVER] {
        println!("the node to {target}");
        let peer = tcp((&site.b.pods[0], SERVER), &site.a.network, target, 100 * KIB).unwrap();
        assert_eq!(peer.ip(), ip(ROUTER_A));
    }
}

fn the_outside_reaches_pods(site: &Site) {
    let (there, here) = ((&site.b.pods[0], SERVER), (&site.a.pods[1], "10.244.1.3:8080"));
    for (n, server, seen) in [(ELSEWHERE, there, ROUTER_A), (HERE, here, "198.51.100.2")] {
        let target = node_port(n);
        println!("{target}");
        for length in [5, 300 * KIB] {
            assert_eq!(tcp(server, &site.far, &target, length).unwrap().ip(), ip(seen));
        }
        // The client's fragments are as large as its own network allows, and larger than the overlay does.
        for length in [5, 1400, LARGE] {
            assert_eq!(udp(server, &site.far, &target, length).unwrap().ip(), ip(seen));
        }
    }
    // Unfragmented, and larger than what the pod sends itself.
    udp(here, &site.far, &node_port(HERE), 1472).unwrap();
    let (server, target) = ((&site.far, "198.51.100.2:443"), "198.51.100.2:443");
    for length in [5, 1400, LARGE] {
        assert_eq!(udp(server, &site.a.pods[0], target, length).unwrap().ip(), IpAddr::V4(A));
    }
}

/// The kernel forwards nothing between the node's devices, and is not asked to.
#[test]
fn a_backend_in_another_nodes_own_network_is_reached_by_whichever_device_leads_there() {
    let side = [203, 0, 113, 1].into();
    let mut site = Site::new(&service("host", "10.96.0.60", 30090, &[("203.0.113.9", "c")])).unwrap();
    let c = Network::new().unwrap();
    network::connect((&site.a.network, "eth1"), (&c, "eth0")).unwrap();
    site.a.network.address("eth1", side, 24).unwrap();
    c.address("eth0", [203, 0, 113, 9].into(), 24).unwrap();
    c.default_route(side).unwrap();
    let nics = [("eth0", A), ("eth1", side)].map(|(device, address)| {
        site.a.network.set(&format!("conf/{device}/forwarding"), "0").unwrap();
        Nic { index: site.a.network.index(device).unwrap(), mtu: 1500, addresses: vec![address.into()] }
    });
    assert!(site.a.follow_these(&nics).unwrap());
    let server = (&c, "203.0.113.9:8080");
    for client in [&site.far, &site.a.pods[0]] {
        assert_eq!(tcp(server, client, "10.89.1.11:30090", 100 * KIB).unwrap().ip(), IpAddr::V4(A));
        assert_eq!(udp(server, client, "10.89.1.11:30090", LARGE).unwrap().ip(), IpAddr::V4(A));
    }
}

fn nobody_answers(site: &Site) {
    let refuses = |client: &Network, target: &str| {
        println!("refused by {target}");
        let error = connect(client, None, target).unwrap_err();
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "TCP: {error:?}");
        let socket = client.within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // By socket the connect is refused, per packet the first datagram is.
        let refused = socket.connect(target).and_then(|()| socket.send(b"who")).and_then(|_| socket.recv(&mut [0; 8]));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "UDP");
    };
    refuses(&site.a.pods[0], &cluster_ip(NOWHERE));
    refuses(&site.a.network, &cluster_ip(NOWHERE));
    refuses(&site.far, &node_port(NOWHERE));
}

#[test]
fn two_pods_with_one_source_port_have_connections_to_one_server_at_the_same_time() {
    let site = site();
    let target = format!("{FAR}:443");
    let talk = |pod: usize| {
        let source = format!("10.244.1.{}:40000", pod + 2);
        tcp_from((&site.far, &target), &site.a.pods[pod], Some(&source), &target, KIB).unwrap()
    };
    let server = site.far.within(|| std::net::TcpListener::bind(&target)).unwrap();
    let first = connect(&site.a.pods[0], Some("10.244.1.2:40000"), &target).unwrap();
    let second = connect(&site.a.pods[1], Some("10.244.1.3:40000"), &target).unwrap();
    for (mut stream, text) in [(first, b"first "), (second, b"second")] {
        stream.write_all(text).unwrap();
        let (mut accepted, peer) = server.accept().unwrap();
        assert_eq!(peer.ip(), IpAddr::V4(A), "the outside sees the node");
        let mut heard = [0; 6];
        std::io::Read::read_exact(&mut accepted, &mut heard).unwrap();
        assert_eq!(&heard, text);
    }
    drop(server);
    assert_ne!(talk(0), talk(1));
}

/// Whoever leaves a checksum to others finds somebody who fills it in, and whoever looks at one finds it right.
#[test]
fn checksums_hold_whoever_has_to_fill_them_in() {
    let site = site();
    let (pod, backend) = (&site.a.pods[0], (&site.b.pods[0], SERVER));
    let (outside, node_port) = (format!("{FAR}:443"), node_port(ELSEWHERE));
    for (pods_offload, nics_offload) in [(true, true), (true, false), (false, true), (false, false)] {
        let name = format!("pods {pods_offload}, NICs {nics_offload}");
        for pod in site.a.pods.iter().chain(&site.b.pods) {
            set_transmit_offload(pod, "eth0", pods_offload).unwrap();
        }
        for (network, device) in [(&site.a.network, "eth0"), (&site.b.network, "eth0"), (&site.far, "eth0")] {
            set_transmit_offload(network, device, nics_offload).unwrap();
        }
        let (at_router, at_pod) =
            (Sniffer::open(&site.router, IPV4).unwrap(), Sniffer::open(&site.b.pods[0], IPV4).unwrap());
        for length in [5, 100 * KIB] {
            tcp(backend, pod, &cluster_ip(ELSEWHERE), length).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            tcp((&site.far, &outside), pod, &outside, length).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            tcp(backend, &site.far, &node_port, length).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        }
        for length in [5, 1400, LARGE] {
            udp(backend, pod, &cluster_ip(ELSEWHERE), length).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            udp((&site.far, &outside), pod, &outside, length).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            udp(backend, &site.far, &node_port, length).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        }
        at_router.check_checksums(&name, !nics_offload).unwrap();
        // The kernel may have put segments together on their way out of the tunnel, having looked at each.
        at_pod.check_checksums(&name, false).unwrap();
    }
}

/// The refusal is built from a packet whose own checksum nobody had filled in yet; the client's side fills in what it
/// is told to.
#[test]
fn a_refusal_is_whole_where_checksums_are_filled_in_late() {
    let site = site();
    set_transmit_offload(&site.a.network, "eth0", false).unwrap();
    let sniffer = Sniffer::open(&site.router, IPV4).unwrap();
    let target = node_port(NOWHERE);
    connect(&site.far, None, &target).unwrap_err();
    let client = site.far.within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.connect(&target).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send(b"who").unwrap();
    client.recv(&mut [0; 8]).unwrap_err();
    let refusals: Vec<_> = sniffer.caught().unwrap().into_iter().filter(|caught| caught.frame.0[23] == 1).collect();
    assert_eq!(refusals.len(), 2);
    for refusal in refusals {
        assert!(!refusal.partial);
        refusal.frame.check_checksums("a refusal");
        assert_eq!(refusal.frame.0[34..36], [3, 3]);
    }
}

/// A narrower link than the sender knows of: the router says so, and its word reaches the sender through translation.
#[test]
fn path_mtu_discovery_works_through_masquerade_and_node_ports() {
    let site = site();
    site.router.set_mtu("to-far", 1300).unwrap();
    let outside = format!("{FAR}:443");
    let server = site.far.within(|| UdpSocket::bind(&outside)).unwrap();
    let client = site.a.pods[0].within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.connect(&outside).unwrap();
    assert_eq!(learned_mtu(&client), 1300, "masquerade over UDP");
    drop(server);
    // TCP in one direction only: what comes back through the narrow link is small.
    send_tcp((&site.far, &outside), &site.a.pods[0], &outside);
    answer_tcp((&site.b.pods[0], SERVER), &site.far, &node_port(ELSEWHERE));
}

/// An outside client knows nothing of the tunnel's overhead.
#[test]
fn a_packet_too_large_for_the_overlay_is_answered_and_its_sender_learns() {
    let site = site();
    let client = site.far.within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.connect(node_port(ELSEWHERE)).unwrap();
    assert_eq!(learned_mtu(&client), 1450);
    // A pod that has lost its route's MTU goes by its device's.
    site.a.pods[0].default_route(GATEWAY).unwrap();
    let client = site.a.pods[0].within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.connect(SERVER).unwrap();
    assert_eq!(learned_mtu(&client), 1450);
    assert_eq!(site.a.counter("too_big/egress") + site.a.counter("too_big/ingress"), 2);
}

/// Links between nodes may be narrower than their NICs: tunnelled packets are fragmented on the way and put together.
#[test]
fn a_narrow_way_between_nodes_loses_nothing() {
    let site = site();
    site.router.set_mtu("to-b", 1400).unwrap();
    let sniffer = Sniffer::open(&site.b.network, IPV4).unwrap();
    let client = site.a.pods[0].within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let server = site.b.pods[0].within(|| UdpSocket::bind(SERVER)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..4 {
        client.send_to(&[7; 1400], SERVER).unwrap();
        assert_eq!(server.recv(&mut [0; 2000]).unwrap(), 1400);
    }
    assert!(sniffer.caught().unwrap().iter().any(|caught| caught.frame.is_fragment()));
}

/// Sends the largest datagram that must not be fragmented until the kernel has learnt that it is too large.
fn learned_mtu(client: &UdpSocket) -> i32 {
    set_option(client, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = usize::try_from(get_option(client, libc::IP_MTU)).unwrap() - 28;
    client.send(&vec![1; length]).unwrap();
    // What comes is the error, which the kernel has told the socket of.
    let error = client.recv(&mut [0; 8]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
    get_option(client, libc::IP_MTU)
}

fn set_option(socket: &UdpSocket, name: i32, value: i32) {
    // SAFETY: the value is an int and its size says so.
    let code = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, name, (&raw const value).cast(), 4) };
    assert_eq!(code, 0);
}

fn get_option(socket: &UdpSocket, name: i32) -> i32 {
    let (mut value, mut length) = (0, 4);
    // SAFETY: the value is an int and its size says so.
    let code =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, name, (&raw mut value).cast(), &mut length) };
    assert_eq!(code, 0);
    value
}

const MUCH: usize = 100 * KIB;

/// The client sends much, the server counts.
fn send_tcp((server, listen): (&Network, &str), client: &Network, target: &str) {
    let listener = server.within(|| std::net::TcpListener::bind(listen)).unwrap();
    let mut stream = connect(client, None, target).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    std::thread::scope(|scope| {
        let read = scope.spawn(|| count(accepted));
        stream.write_all(&vec![3; MUCH]).unwrap();
        drop(stream);
        assert_eq!(read.join().unwrap(), MUCH);
    });
}

/// The client asks, the server sends much.
fn answer_tcp((server, listen): (&Network, &str), client: &Network, target: &str) {
    let listener = server.within(|| std::net::TcpListener::bind(listen)).unwrap();
    let stream = connect(client, None, target).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    std::thread::scope(|scope| {
        let read = scope.spawn(|| count(stream));
        accepted.write_all(&vec![3; MUCH]).unwrap();
        drop(accepted);
        assert_eq!(read.join().unwrap(), MUCH);
    });
}

fn count(mut stream: std::net::TcpStream) -> usize {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut all).unwrap();
    all.len()
}

#[test]
fn nobody_hears_what_a_pod_makes_up() {
    use leme_tests_packets::{Frame, device::inject, frame::SYN};
    let site = site();
    let (pod, hosts) = (&site.a.pods[0], [&site.a.pods[1], &site.router]);
    let sniffers = hosts.map(|host| Sniffer::open(host, 3).unwrap());
    let arp = {
        // "10.244.1.3 is at my address", to all.
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 2, 0, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 2, 0, 10, 244, 1, 3]);
        frame.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 10, 244, 1, 3]);
        Frame(frame)
    };
    let tagged = {
        let mut frame = Frame::tcp("10.244.1.2:1", "10.244.1.3:80", SYN);
        frame.0.splice(12..12, [0x81, 0, 0, 7]);
        frame
    };
    let made_up = [
        arp,
        tagged,
        Frame::tcp("10.244.1.3:1", "10.244.1.3:80", SYN),
        Frame::tcp("10.89.1.11:1", "198.51.100.2:80", SYN),
        Frame::udp("127.0.0.1:1", "10.244.1.3:80"),
        Frame::udp("0.0.0.0:68", "255.255.255.255:67"),
        // Not even a header.
        Frame::udp("10.244.1.2:68", "10.244.1.3:67").cut(33),
    ];
    for frame in &made_up {
        inject(pod, "eth0", frame).unwrap();
    }
    // Pods' stacks say other things in IPv6 at the same time.
    let counted = || ["spoofed/egress", "malformed/egress", "not_ip/egress"].map(|name| site.a.counter(name));
    soon(|| matches!(counted(), [4, 1, other] if other >= 2));
    for sniffer in sniffers {
        for caught in sniffer.caught().unwrap() {
            assert!(!made_up.iter().any(|frame| caught.frame.0[14..] == frame.0[14..]), "{:?}", caught.frame);
        }
    }
}

/// A network behind the router that has a route to the pods: both sides know each other by their own addresses.
#[test]
fn who_is_excluded_from_masquerade_sees_pods_and_speaks_to_them() {
    let site =
        Site::with(&[], |config| config.non_masquerade_cidrs = vec!["198.51.100.0/24".parse().unwrap()]).unwrap();
    site.router.route("10.244.1.0".parse().unwrap(), 24, A).unwrap();
    let outside = format!("{FAR}:443");
    for length in [5, LARGE] {
        assert_eq!(udp((&site.far, &outside), &site.a.pods[0], &outside, length).unwrap().ip(), ip(POD));
        assert_eq!(tcp((&site.far, &outside), &site.a.pods[0], &outside, length).unwrap().ip(), ip(POD));
        let (pod, listen) = (&site.a.pods[0], format!("{POD}:8080"));
        assert_eq!(tcp((pod, &listen), &site.far, &listen, length).unwrap().ip(), IpAddr::V4(FAR));
    }
    // Other nodes are never excluded, and others see the node.
    let node = "10.89.2.12:443";
    assert_eq!(tcp((&site.b.network, node), &site.a.pods[0], node, 5).unwrap().ip(), IpAddr::V4(A));
}
