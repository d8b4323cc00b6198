//! Devices come and go; the programs are on those that there are.
#![expect(clippy::unwrap_used, reason = "tests may")]

use leme_datapath::{find_nics, keep_overlay};
use leme_tests_packets::{
    Frame, Network, Node,
    device::inject,
    frame::SYN,
    in_namespace,
    node::{ADDRESS, service},
};
use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

const NODE_PORT: &str = "10.89.0.11:30080";
const BACKEND: &str = "10.89.0.11:8080";

/// What the agent does when the kernel tells of a change.
fn follow(node: &mut Node) -> bool {
    let config = node.datapath.config().clone();
    let overlay = node.wait(keep_overlay(&config)).unwrap();
    let nics = node.wait(find_nics(ADDRESS.into(), &[&config.vxlan])).unwrap();
    node.datapath.follow(overlay, &nics).unwrap()
}

/// A connection from outside to a NodePort, whose other end answers.
fn is_served(outside: &Network, listener: &TcpListener) {
    let address: SocketAddr = NODE_PORT.parse().unwrap();
    let mut client = outside.within(|| TcpStream::connect_timeout(&address, Duration::from_secs(3))).unwrap();
    drop(listener.accept().unwrap());
    client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "closed by the backend");
}

#[test]
fn a_nic_that_is_replaced_serves_again() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.89.0.11", "a")]), |node| {
        // A namespace that goes takes its devices along, and with them this end of the wire.
        let mut kept = Vec::new();
        for _ in 0..2 {
            let outside = node.replace_nic();
            assert!(follow(node));
            assert!(!follow(node), "nothing has changed since");
            let listener = TcpListener::bind(BACKEND).unwrap();
            is_served(&outside, &listener);
            kept.push(outside);
        }
        let links = fs::read_dir(node.datapath.config().pin_dir.join("links")).unwrap().count();
        assert_eq!(links, node.datapath.attachments().unwrap().len(), "links of removed devices are forgotten");
    });
}

#[test]
fn addresses_of_the_nodes_devices_serve_node_ports_while_they_are_there() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.89.0.11", "a")]), |node| {
        assert!(!follow(node));
        let has =
            |node: &Node| node.datapath.dump().unwrap().node_addresses.contains_key(&"10.89.0.77".parse().unwrap());
        ip("address add 10.89.0.77/24 dev eth0");
        assert!(follow(node) && has(node));
        ip("address del 10.89.0.77/24 dev eth0");
        assert!(follow(node) && !has(node));
        assert_eq!(node.datapath.config().addresses, [std::net::IpAddr::V4(ADDRESS)]);
    });
}

#[test]
fn a_device_on_top_of_a_nic_gets_programs_with_its_address_and_loses_them_with_it() {
    in_namespace(Vec::new(), |node| {
        let places =
            |node: &Node| node.datapath.attachments().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        // As a VLAN would be, which the kernel of the test machines lacks.
        ip("link add link eth0 name upper0 type macvlan");
        ip("link set upper0 up");
        assert!(!follow(node), "it has no address yet");
        ip("address add 192.0.2.7/24 dev upper0");
        assert!(follow(node));
        assert!(places(node).contains(&"nic_ingress on upper0".to_owned()), "{:?}", places(node));
        let attachments = node.datapath.attachments().unwrap();
        assert!(node.wait(leme_datapath::inspect(attachments)).unwrap().detached.is_empty());
        ip("link del upper0");
        assert!(follow(node));
        assert_eq!(places(node).iter().filter(|place| place.starts_with("nic_ingress")).count(), 1);
    });
}

#[test]
fn the_tunnel_that_somebody_removes_is_made_again() {
    in_namespace(Vec::new(), |node| {
        ip("link del leme-vxlan");
        assert!(follow(node));
        let attachments = node.datapath.attachments().unwrap();
        assert!(node.wait(leme_datapath::inspect(attachments)).unwrap().detached.is_empty());
        assert!(!follow(node));
    });
}

#[test]
fn what_the_tunnel_lost_while_it_was_off_comes_back() {
    in_namespace(Vec::new(), |node| {
        let (routes, addresses) =
            (|| said("-4 route show dev leme-vxlan"), || said("-o -4 address show dev leme-vxlan"));
        let before = (routes(), addresses());
        // On again before anybody has looked: nothing shows but what is missing.
        ip("link set leme-vxlan down");
        ip("link set leme-vxlan up");
        assert_ne!(routes(), before.0);
        assert!(!follow(node), "it is the same device");
        assert_eq!((routes(), addresses()), before);
        ip("address flush dev leme-vxlan");
        follow(node);
        assert_eq!((routes(), addresses()), before);
    });
}

#[test]
fn a_vlans_frame_is_left_to_the_vlans_own_device() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.1.2", "a")]), |node| {
        let outside = node.far_namespace();
        let plain = Frame::tcp("198.51.100.2:5000", NODE_PORT, SYN);
        let tagged = Frame([&plain.0[..12], &[0x81, 0x00, 0, 7], &plain.0[12..]].concat());
        inject(&outside, "wire", &tagged).unwrap();
        // Frames stay in order: when the second one has been counted, the first has passed.
        inject(&outside, "wire", &plain).unwrap();
        while node.counter("forwarded/ingress") == 0 {
            std::thread::yield_now();
        }
        assert_eq!(node.counter("forwarded/ingress"), 1);
    });
}

fn said(words: &str) -> String {
    let done = Command::new("ip").args(words.split(' ')).output().expect("these tests need ip");
    String::from_utf8(done.stdout).unwrap()
}

fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).status().expect("these tests need ip");
    assert!(done.success(), "ip {words}");
}
