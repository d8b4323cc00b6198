//! Every reason to drop a packet, at every hook that knows it, with packets that mean harm. The tables below name every
//! reason: a new one does not compile until it has its row. Rates of pods have theirs in `rates.rs`.
#![expect(clippy::unwrap_used, reason = "tests may")]

use aya::maps::{HashMap, Map, MapData};
use leme_abi::{Addr, DropReason, Port, Translation, Tuple};
use leme_datapath::{Config, Limits, Rate};
use leme_tests_packets::{
    Frame, Node, Site, Verdict,
    frame::{ACK, SYN},
    in_namespace, in_namespace_with,
    node::service,
    site::A,
    traffic::soon,
};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

/// Served by: nobody; a pod that is not there; a pod of a range that is nobody's; a pod of the other node; somebody
/// outside; somebody outside to whom no port is left.
fn services() -> Vec<Value> {
    [
        service("none", "10.96.0.51", 30081, &[]),
        service("gone", "10.96.0.52", 30082, &[("10.244.1.77", "a")]),
        service("unclaimed", "10.96.0.53", 30083, &[("10.244.77.9", "b")]),
        service("remote", "10.96.0.54", 30084, &[("10.244.2.9", "b")]),
        service("outside", "10.96.0.55", 30085, &[("192.0.2.77", "")]),
        service("full", "10.96.0.58", 30088, &[("192.0.2.78", "")]),
        tunnel(),
        elsewhere(),
        guarded(),
        vec![range()],
    ]
    .concat()
}

/// Where cluster IPs come from.
fn range() -> Value {
    serde_json::json!({"kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}})
}

/// Only pods of this node serve here, and there are none.
fn elsewhere() -> Vec<Value> {
    let mut objects = service("elsewhere", "10.96.0.56", 30086, &[("10.244.2.9", "b")]);
    objects[0]["spec"]["internalTrafficPolicy"] = "Local".into();
    objects[0]["spec"]["externalTrafficPolicy"] = "Local".into();
    objects
}

/// Of the other node's end of the tunnel.
fn tunnel() -> Vec<Value> {
    let mut objects = service("tunnel", "10.96.0.59", 30089, &[("10.89.0.12", "b")]);
    for port in objects[1]["ports"].as_array_mut().unwrap() {
        port["port"] = 4789.into();
    }
    objects
}

/// At 203.0.113.7 only for others than the outside of these tests.
fn guarded() -> Vec<Value> {
    let mut objects = service("guarded", "10.96.0.57", 30087, &[("10.244.2.9", "b")]);
    objects[0]["spec"]["type"] = "LoadBalancer".into();
    objects[0]["spec"]["loadBalancerSourceRanges"] = serde_json::json!(["192.0.2.0/24"]);
    objects[0]["status"] = serde_json::json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    objects
}

const POD: &str = "10.244.1.2:40000";
const OUTSIDE: &str = "198.51.100.2:5000";
/// What a Service for others is reached at.
const GUARDED: &str = "203.0.113.7:80";
/// Offsets in the IP header.
const VERSION: u32 = 0;
const TOTAL: u32 = 2;
const PLACE: u32 = 6;
const TTL: u32 = 8;
const MORE: [u8; 2] = [0x20, 0];
const DONT: [u8; 2] = [0x40, 0];

/// Packets from `src` to `dst` that contradict themselves.
fn malformed(src: &str, dst: &str) -> Vec<Frame> {
    let (from, to) = (src.split(':').next().unwrap(), dst.split(':').next().unwrap());
    let tcp = || Frame::tcp(src, dst, SYN);
    let quoted = &Frame::udp(dst, src).0[14..];
    let later = Frame::udp(dst, src).with(PLACE, &[0, 9]);
    vec![
        tcp().with(VERSION, &[0x44]),
        tcp().with(VERSION, &[0x4f]),
        tcp().with(VERSION, &[0x65]),
        tcp().with(TOTAL, &[0, 0]),
        tcp().with(TOTAL, &[0, 19]),
        tcp().with(TOTAL, &[0, 39]),
        tcp().with(TOTAL, &[0xff, 0xff]),
        tcp().cut(14 + 20 + 13).with(TOTAL, &[0, 33]),
        Frame::udp(src, dst).cut(14 + 20 + 7).with(TOTAL, &[0, 27]),
        Frame::raw(1, from, to, &[8, 0, 0, 0, 0]),
        // Too little of the first fragment, and a second one on top of its flags.
        tcp().with(PLACE, &MORE).with(TOTAL, &[0, 28]),
        tcp().with(PLACE, &[0, 1]),
        Frame::error(3, from, to, &quoted[..27]),
        Frame::error(3, from, to, &[&[0x44], &quoted[1..]].concat()),
        Frame::error(11, from, to, &[&[0x4f], &quoted[1..]].concat()),
        Frame::error(12, from, to, &later.0[14..]),
    ]
}

/// Data of a connection, one that opened it earlier or never.
fn later(src: &str, dst: &str) -> Frame {
    Frame::udp(src, dst).with(PLACE, &[0, 9])
}

fn from_pod(reason: DropReason) -> Vec<Frame> {
    let to = |dst| Frame::tcp(POD, dst, SYN);
    let from = |src| Frame::tcp(src, "10.244.1.3:80", SYN);
    match reason {
        DropReason::Forwarded => vec![to("10.244.1.3:80"), to("10.244.2.9:80"), to("10.89.0.11:22"), to(OUTSIDE)],
        // A refusal cannot quote options.
        DropReason::Malformed => {
            let options = to("10.96.0.51:80").with_options();
            [malformed(POD, "10.244.1.3:80"), malformed(POD, OUTSIDE), vec![options]].concat()
        }
        DropReason::NotIp => [0x0806, 0x86dd, 0x8100, 0x88a8, 0x8847].map(|kind| to(OUTSIDE).of_type(kind)).into(),
        DropReason::Spoofed => {
            // "Your connection is broken", to somebody else's peer.
            let anothers = Frame::error(3, "10.244.1.2", "198.51.100.2", &Frame::udp(OUTSIDE, "10.244.1.3:9").0[14..]);
            let sources = ["10.244.1.3:1", "10.244.1.1:1", "10.89.0.11:1", "127.0.0.1:1", "0.0.0.0:1", OUTSIDE];
            [sources.map(from).to_vec(), vec![anothers]].concat()
        }
        DropReason::NoEndpoint => vec![to("10.244.1.77:80"), to("10.96.0.52:80")],
        DropReason::NoRoute => vec![to("10.244.77.1:80"), to("10.96.0.53:80")],
        DropReason::NoBackend => vec![to("10.96.0.51:80"), Frame::udp(POD, "10.96.0.51:80"), to("10.89.0.12:30081")],
        DropReason::NoLocalBackend => vec![to("10.96.0.56:80")],
        DropReason::NoServicePort => {
            let ping = Frame::raw(1, "10.244.1.2", "10.96.0.54", &[8, 0, 0, 0, 0, 9, 0, 1]);
            vec![to("10.96.0.54:81"), Frame::udp(POD, "10.96.0.54:81"), ping]
        }
        DropReason::NoService => {
            let ping = Frame::raw(1, "10.244.1.2", "10.96.9.9", &[8, 0, 0, 0, 0, 9, 0, 1]);
            vec![to("10.96.9.9:80"), Frame::udp(POD, "10.96.9.9:80"), ping]
        }
        DropReason::NoPort => vec![to(FULL), to("10.96.0.58:80")],
        DropReason::SourceRange => vec![to(GUARDED)],
        DropReason::Multicast => vec![to("224.0.0.251:5353"), to("255.255.255.255:67")],
        DropReason::Martian => vec![to("127.0.0.1:80"), to("127.255.0.1:80"), to("0.0.0.0:80"), to("0.1.2.3:80")],
        DropReason::Fragment => vec![
            later(POD, "10.244.1.3:80"),
            later(POD, OUTSIDE),
            // The first of this one was refused above.
            later(POD, "10.96.0.51:80"),
            // Its checksum covers what is in other fragments.
            Frame::sctp(POD, OUTSIDE, 1).with(PLACE, &MORE),
            // So the others have no first.
            Frame::sctp(POD, OUTSIDE, 1).with(PLACE, &[0, 9]),
        ],
        DropReason::TimeToLive => [0, 1].map(|ttl| to(OUTSIDE).with(TTL, &[ttl])).into(),
        DropReason::Untracked => {
            vec![Frame::error(3, "10.244.1.2", "198.51.100.2", &Frame::udp(OUTSIDE, POD).0[14..])]
        }
        DropReason::TooBig => {
            let large = |dst| Frame::udp(POD, dst).long(1431).with(PLACE, &DONT);
            vec![large("10.244.2.9:80"), large("10.96.0.54:80")]
        }
        // To the nodes' end of it, whether by their addresses or through a Service.
        DropReason::Tunnel => ["10.89.0.11:4789", "10.244.1.1:4789", "10.89.0.12:4789", "10.96.0.59:80"]
            .map(|dst| Frame::udp(POD, dst))
            .into(),
        // The kernel's maps make room by themselves, and it refuses no edit of a packet that was parsed.
        DropReason::RateLimited | DropReason::MapFull | DropReason::Helper => Vec::new(),
    }
}

fn nic_ingress(reason: DropReason) -> Vec<Frame> {
    let to = |dst| Frame::tcp(OUTSIDE, dst, SYN);
    match reason {
        DropReason::Forwarded => vec![
            to("10.89.0.11:22"),
            to("10.89.0.11:30084"),
            // A fragment that overtook its first is for the stack to keep.
            later(OUTSIDE, "10.89.0.11:30084"),
            later(OUTSIDE, "10.89.0.11:22"),
        ],
        DropReason::Malformed => malformed(OUTSIDE, "10.89.0.11:30084"),
        DropReason::Spoofed => {
            let sources =
                ["127.0.0.1:1", "0.0.0.0:1", "224.0.0.1:1", "10.89.0.11:30084", "10.244.1.1:1", POD, "10.244.2.9:1"];
            sources.map(|src| Frame::tcp(src, "10.89.0.11:30084", SYN)).into()
        }
        DropReason::NoEndpoint => vec![to("10.89.0.11:30082")],
        DropReason::NoRoute => vec![to("10.89.0.11:30083")],
        DropReason::NoBackend => vec![to("10.89.0.11:30081"), Frame::udp(OUTSIDE, "10.89.0.11:30081")],
        DropReason::NoLocalBackend => vec![to("10.89.0.11:30086")],
        DropReason::NoServicePort => vec![to("10.96.0.54:81")],
        DropReason::NoService => vec![to("10.96.9.9:80")],
        DropReason::SourceRange => vec![to(GUARDED)],
        DropReason::NoPort => vec![to("10.89.0.11:30088")],
        DropReason::TimeToLive => [0, 1].map(|ttl| to("10.89.0.11:30085").with(TTL, &[ttl])).into(),
        DropReason::TooBig => {
            vec![Frame::udp(OUTSIDE, "10.89.0.11:30084").long(1431).with(PLACE, &DONT)]
        }
        // What is not of a Service is the stack's to judge.
        DropReason::NotIp | DropReason::Multicast | DropReason::Martian | DropReason::Fragment => Vec::new(),
        DropReason::Untracked => Vec::new(),
        DropReason::RateLimited | DropReason::MapFull | DropReason::Helper | DropReason::Tunnel => Vec::new(),
    }
}

fn nic_egress(reason: DropReason) -> Vec<Frame> {
    let to = |dst| Frame::tcp("10.89.0.11:40000", dst, SYN);
    match reason {
        DropReason::Forwarded => vec![to(OUTSIDE), to("10.96.0.54:80"), later("10.89.0.11:40000", OUTSIDE)],
        DropReason::Malformed => malformed("10.89.0.11:40000", OUTSIDE),
        DropReason::NoEndpoint => vec![to("10.96.0.52:80")],
        DropReason::NoRoute => vec![to("10.96.0.53:80")],
        DropReason::NoBackend => vec![to("10.96.0.51:80"), Frame::udp("10.89.0.11:40000", "10.96.0.51:80")],
        DropReason::TooBig => vec![Frame::udp("10.89.0.11:40000", "10.96.0.54:80").long(1431).with(PLACE, &DONT)],
        DropReason::TimeToLive => vec![to("10.96.0.55:80").with(TTL, &[1])],
        DropReason::NoLocalBackend => vec![to("10.96.0.56:80")],
        DropReason::NoServicePort => vec![to("10.96.0.54:81"), Frame::udp("10.89.0.11:40000", "10.96.0.54:81")],
        DropReason::NoService => vec![to("10.96.9.9:80"), Frame::udp("10.89.0.11:40000", "10.96.9.9:80")],
        DropReason::SourceRange => vec![to(GUARDED)],
        DropReason::NoPort => vec![to("10.96.0.58:80")],
        DropReason::Spoofed | DropReason::NotIp | DropReason::Multicast | DropReason::Martian => Vec::new(),
        DropReason::Fragment | DropReason::Untracked => Vec::new(),
        DropReason::RateLimited | DropReason::MapFull | DropReason::Helper | DropReason::Tunnel => Vec::new(),
    }
}

fn to_pod(reason: DropReason) -> Vec<Frame> {
    let node = "10.89.0.11:40000";
    match reason {
        DropReason::Forwarded => vec![Frame::tcp(node, "10.244.1.2:80", SYN), later(node, "10.244.1.2:80")],
        DropReason::Malformed => malformed(node, "10.244.1.2:80"),
        // What the node's own stack sends to a pod is not judged any further.
        DropReason::NotIp | DropReason::Spoofed | DropReason::NoEndpoint | DropReason::NoRoute => Vec::new(),
        DropReason::NoBackend
        | DropReason::NoPort
        | DropReason::RateLimited
        | DropReason::MapFull
        | DropReason::Helper => Vec::new(),
        DropReason::Multicast | DropReason::Fragment | DropReason::Tunnel | DropReason::TimeToLive => Vec::new(),
        DropReason::Untracked | DropReason::TooBig | DropReason::NoLocalBackend => Vec::new(),
        DropReason::SourceRange | DropReason::Martian | DropReason::NoServicePort | DropReason::NoService => Vec::new(),
    }
}

fn overlay_egress(reason: DropReason) -> Vec<Frame> {
    let to = |dst| Frame::tcp("10.89.0.11:40000", dst, SYN);
    match reason {
        DropReason::Forwarded => vec![to("10.244.2.9:80")],
        DropReason::Malformed => malformed("10.89.0.11:40000", "10.244.2.9:80"),
        DropReason::NotIp => [0x0806, 0x86dd, 0x8100].map(|kind| to("10.244.2.9:80").of_type(kind)).into(),
        DropReason::NoRoute => vec![to("10.244.77.1:80"), to("10.89.0.11:1"), to(OUTSIDE)],
        DropReason::Fragment => vec![later("10.89.0.11:40000", "10.244.2.9:80")],
        DropReason::NoPort => vec![to(FULL_POD)],
        // Refused as unrouted before anything else.
        DropReason::NoEndpoint | DropReason::Spoofed | DropReason::Multicast | DropReason::Martian => Vec::new(),
        DropReason::NoBackend | DropReason::Untracked | DropReason::NoServicePort | DropReason::NoService => Vec::new(),
        DropReason::TimeToLive | DropReason::TooBig | DropReason::NoLocalBackend | DropReason::SourceRange => {
            Vec::new()
        }
        DropReason::RateLimited | DropReason::MapFull | DropReason::Helper | DropReason::Tunnel => Vec::new(),
    }
}

/// What arrives inside of a tunnel, with its network's number.
fn overlay_ingress(reason: DropReason) -> Vec<(u32, Frame)> {
    let to = |dst| (1, Frame::tcp("10.244.2.2:40000", dst, SYN));
    match reason {
        DropReason::Forwarded => vec![to("10.244.1.2:80"), to("10.244.1.1:80")],
        DropReason::Malformed => malformed("10.244.2.2:1", "10.244.1.2:80").into_iter().map(|it| (1, it)).collect(),
        DropReason::NoEndpoint => vec![to("10.244.1.77:80"), to("10.244.77.1:80"), to(OUTSIDE), to("224.0.0.1:1")],
        DropReason::Fragment => vec![(1, later("10.244.2.2:1", "10.244.1.2:80"))],
        DropReason::Tunnel => {
            let (_, frame) = to("10.244.1.2:80");
            // Another tunnel's, not IP, and a tunnel in the tunnel.
            let nested = (1, Frame::udp("10.244.2.2:40000", "10.244.1.1:4789"));
            vec![(2, frame.clone()), (1, frame.clone().of_type(0x0806)), (1, frame.of_type(0x86dd)), nested]
        }
        DropReason::NotIp | DropReason::Spoofed | DropReason::Multicast | DropReason::Martian => Vec::new(),
        DropReason::NoRoute | DropReason::NoBackend | DropReason::NoPort | DropReason::Untracked => Vec::new(),
        DropReason::NoLocalBackend | DropReason::SourceRange | DropReason::NoServicePort | DropReason::NoService => {
            Vec::new()
        }
        DropReason::TimeToLive
        | DropReason::TooBig
        | DropReason::RateLimited
        | DropReason::MapFull
        | DropReason::Helper => Vec::new(),
    }
}

/// Who is told gets a packet back; of all others nothing is heard again.
fn is_told(reason: DropReason) -> bool {
    matches!(reason, DropReason::NoBackend | DropReason::NoServicePort | DropReason::TooBig)
}

fn check(node: &Node, program: &str, device: &str, direction: &str, rows: fn(DropReason) -> Vec<Frame>) {
    for reason in DropReason::ALL {
        // Answers are counted as what they are: packets that leave.
        let counter = format!("{}/{}", reason.name(), if is_told(*reason) { "egress" } else { direction });
        for (n, frame) in rows(*reason).into_iter().enumerate() {
            let before = node.counter(&counter);
            let (verdict, out) = node.run(program, device, &frame);
            let name = format!("{program}, {} {n}: {:02x?}", reason.name(), frame.0);
            assert_eq!(node.counter(&counter), before + 1, "{name}");
            if is_told(*reason) {
                assert_eq!((verdict, out.0.len(), out.0[34]), (Verdict::Redirect, 70, 3), "{name}");
                assert_eq!(out.0[42..70], frame.0[14..42], "{name}: quotes another packet");
                out.check_checksums(&name);
            } else {
                assert_eq!(verdict == Verdict::Drop, *reason != DropReason::Forwarded, "{name}");
            }
        }
    }
}

/// Where no source port is left: outside, behind a Service, at a pod of the other node.
const FULL: &str = "198.51.100.9:443";
const FULL_BACKEND: &str = "192.0.2.78:8080";
const FULL_POD: &str = "10.244.2.78:80";

/// So few ports that they are soon taken, and room for who takes them.
fn crowd(config: &mut Config) {
    config.ports = (12_000, 13_000);
    config.sizes.connections = 16_384;
}

/// Makes all connections that the node could have to those.
fn take_all_ports(node: &Node) {
    for (remote, own) in [(FULL, "10.89.0.11"), (FULL_BACKEND, "10.89.0.11"), (FULL_POD, "10.244.1.1")] {
        take_ports(node, remote.parse().unwrap(), own.parse().unwrap());
    }
}

fn take_ports(node: &Node, remote: SocketAddrV4, own: Ipv4Addr) {
    let map = MapData::from_pin(node.datapath.config().pin_dir.join("nat")).unwrap();
    let mut map: HashMap<_, [u8; 40], [u8; 44]> = HashMap::try_from(Map::LruHashMap(map)).unwrap();
    let (min, max) = node.datapath.config().ports;
    for port in min..=max {
        let answer = Tuple {
            src: (*remote.ip()).into(),
            dst: own.into(),
            sport: Port::new(remote.port()),
            dport: Port::new(port),
            proto: 6,
            reserved: [0; 3],
        };
        let to = Tuple { dst: Addr::from(Ipv4Addr::new(10, 244, 1, 3)), ..answer };
        let value = Translation { to, leg: 1, reserved: [0; 3] };
        let (key, value) = (bytemuck::bytes_of(&answer), bytemuck::bytes_of(&value));
        map.insert(<[u8; 40]>::try_from(key).unwrap(), <[u8; 44]>::try_from(value).unwrap(), 0).unwrap();
    }
}

#[test]
fn a_pod_is_told_or_counted() {
    in_namespace_with(services(), crowd, |node| {
        take_all_ports(node);
        check(node, "from_pod", "pod2", "egress", from_pod);
    });
}

#[test]
fn the_outside_is_told_or_counted() {
    in_namespace_with(services(), crowd, |node| {
        take_all_ports(node);
        check(node, "nic_ingress", "eth0", "ingress", nic_ingress);
    });
}

#[test]
fn the_node_is_told_or_counted() {
    in_namespace_with(services(), crowd, |node| {
        take_all_ports(node);
        check(node, "nic_egress", "eth0", "egress", nic_egress);
        check(node, "to_pod", "pod2", "ingress", to_pod);
        check(node, "overlay_egress", "leme-vxlan", "egress", overlay_egress);
    });
}

#[test]
fn what_comes_through_the_tunnel_is_counted() {
    let site = Site::new(&services()).unwrap();
    let socket = site.router.within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    for reason in DropReason::ALL {
        let counter = format!("{}/ingress", reason.name());
        for (network, frame) in overlay_ingress(*reason) {
            let before = site.a.counter(&counter);
            let head = [&[8, 0, 0, 0][..], &(network << 8).to_be_bytes()].concat();
            socket.send_to(&[&head, &frame.0[..]].concat(), (A, 4789)).unwrap();
            // The outer packet is itself forwarded.
            let expected = before + if *reason == DropReason::Forwarded { 2 } else { 1 };
            println!("{counter}: {:02x?}", frame.0);
            soon(|| site.a.counter(&counter) >= expected);
            assert_eq!(site.a.counter(&counter), expected);
        }
    }
}

/// Sent through the tunnel to node `a`.
fn through_the_tunnel(site: &Site, frame: &Frame) {
    let socket = site.router.within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.send_to(&[&[8, 0, 0, 0, 0, 0, 1, 0], &frame.0[..]].concat(), (A, 4789)).unwrap();
}

#[test]
fn an_answer_that_has_come_too_far_is_counted_on_its_way_out_of_the_tunnel() {
    let site = Site::new(&services()).unwrap();
    let client = site.far.within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.send_to(b"who", "10.89.1.11:30084").unwrap();
    let known = || leme_datapath::connections(&site.a.datapath.config().pin_dir).unwrap().pop();
    soon(|| known().is_some());
    let there = known().unwrap().translated.unwrap();
    let answer = Frame::udp(&there.destination.to_string(), &there.source.to_string());
    through_the_tunnel(&site, &answer.with(TTL, &[1]));
    soon(|| site.a.counter("time_to_live/ingress") == 1);
}

#[test]
fn what_a_pod_may_not_receive_is_counted_on_its_way_out_of_the_tunnel() {
    let mut site = Site::new(&[]).unwrap();
    let slowest = Some(Rate { bytes_per_second: 1, burst: 0 });
    site.a.limit("10.244.1.3", Limits { ingress: slowest, egress: None }).unwrap();
    for _ in 0..2 {
        through_the_tunnel(&site, &Frame::udp("10.244.2.2:40000", "10.244.1.3:80"));
    }
    soon(|| site.a.counter("rate_limited/ingress") == 1);
}

#[test]
fn an_answer_to_nothing_changes_nothing() {
    in_namespace(services(), |node| {
        let connections = node.datapath.dump().unwrap().connections;
        for frame in [Frame::tcp(OUTSIDE, "10.89.0.11:12345", SYN | ACK), Frame::udp(OUTSIDE, "10.89.0.11:12345")] {
            let (verdict, out) = node.run("nic_ingress", "eth0", &frame);
            assert_eq!((verdict, out), (Verdict::Pass, frame));
        }
        assert_eq!(node.datapath.dump().unwrap().connections, connections);
    });
}
