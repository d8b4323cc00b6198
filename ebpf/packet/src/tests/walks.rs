//! Whole connections, packet by packet, through the hooks they pass.

use super::fake::{Fake, Frame, addr, ip, read, sctp, tcp, tuple, udp};
use crate::{
    Next, Packet, Resolved, Target, Work, choose_backend, from_pod, nic_egress, nic_ingress, overlay_egress,
    overlay_ingress, to_pod,
};
use leme_abi::{Addr, DropReason, NodeAddress, Port, Protocol, Scope, Service, Tuple};
use std::{collections::BTreeSet, vec::Vec};

const TCP: u8 = Protocol::TCP;
const SYN: u8 = Packet::SYN;
const ACK: u8 = Packet::ACK;

type Hook = fn(&Fake, &mut Work) -> Next;

fn pod2(tables: &Fake, work: &mut Work) -> Next {
    from_pod(tables, work, 2)
}

fn pod3(tables: &Fake, work: &mut Work) -> Next {
    from_pod(tables, work, 3)
}

/// What a hook makes of a frame: where it goes, and the tuple it leaves with.
fn walk(tables: &Fake, hook: Hook, frame: &Frame) -> (Next, Tuple) {
    let mut work = read(tables, frame).unwrap();
    let next = hook(tables, &mut work);
    (next, if work.rewrite { work.to } else { work.packet.tuple })
}

fn dropped(tables: &Fake, hook: Hook, frame: &Frame) -> Option<DropReason> {
    let mut work = read(tables, frame).unwrap();
    (hook(tables, &mut work) == Next::Drop).then_some(work.reason)
}

fn answer(tuple: &Tuple, flags: u8) -> Frame {
    let text = |addr: Addr| std::string::ToString::to_string(&core::net::IpAddr::from(addr));
    tcp(&text(tuple.dst), tuple.dport.number(), &text(tuple.src), tuple.sport.number(), flags)
}

fn cluster_ip(tables: &mut Fake, backends: &[(&str, u16)]) {
    tables.serve(1, &[(addr("10.96.0.10"), 80, Scope::Cluster)], backends, 0);
}

fn node_port(tables: &mut Fake, backends: &[(&str, u16)]) {
    tables.serve(2, &[(Addr::ANY, 30080, Scope::Cluster)], backends, 0);
}

#[test]
fn an_association_opens_through_a_node_port_and_chooses_again_after_its_end() {
    let mut tables = Fake::new();
    node_port(&mut tables, &[("10.244.1.2", 8080)]);
    const INIT: u8 = 1;
    let opening = sctp("198.51.100.2", 5000, "10.89.0.11", 30080, INIT);
    let (next, out) = walk(&tables, nic_ingress, &opening);
    assert_eq!((next, out), (Next::Pod, tuple(Protocol::SCTP, "198.51.100.2", 5000, "10.244.1.2", 8080)));
    let answer = |chunk| sctp("10.244.1.2", 8080, "198.51.100.2", 5000, chunk);
    let (next, back) = walk(&tables, pod2, &answer(2));
    assert_eq!((next, back), (Next::Outside, tuple(Protocol::SCTP, "10.89.0.11", 30080, "198.51.100.2", 5000)));
    node_port(&mut tables, &[("10.244.1.3", 8080)]);
    assert_eq!(walk(&tables, nic_ingress, &sctp("198.51.100.2", 5000, "10.89.0.11", 30080, 0)).1, out);
    walk(&tables, nic_ingress, &sctp("198.51.100.2", 5000, "10.89.0.11", 30080, 7));
    walk(&tables, pod2, &answer(8));
    assert_eq!(walk(&tables, nic_ingress, &opening).1.dst, addr("10.244.1.3"));
}

#[test]
fn an_association_to_the_outside_is_masqueraded() {
    let tables = Fake::new();
    let (next, out) = walk(&tables, pod2, &sctp("10.244.1.2", 40000, "198.51.100.2", 3868, 1));
    assert_eq!((next, out.src), (Next::Outside, addr("10.89.0.11")));
    assert!((12_000..=29_999).contains(&out.sport.number()));
}

#[test]
fn pods_of_a_node_talk_directly() {
    let (next, to) = walk(&Fake::new(), pod2, &tcp("10.244.1.2", 40000, "10.244.1.3", 80, SYN));
    assert_eq!((next, to), (Next::Pod, tuple(TCP, "10.244.1.2", 40000, "10.244.1.3", 80)));
}

#[test]
fn pods_of_other_nodes_are_behind_the_overlay() {
    let tables = Fake::new();
    let mut work = read(&tables, &tcp("10.244.1.2", 40000, "10.244.2.9", 80, SYN)).unwrap();
    assert_eq!(from_pod(&tables, &mut work, 2), Next::Overlay);
    assert_eq!((work.node, work.rewrite), (addr("10.89.0.12"), false));
}

#[test]
fn a_pod_sends_from_its_own_address_and_device_only() {
    let frame = tcp("10.244.1.2", 40000, "10.244.1.3", 80, SYN);
    assert_eq!(dropped(&Fake::new(), pod3, &frame), Some(DropReason::Spoofed));
    let frame = tcp("10.89.0.11", 40000, "10.244.1.3", 80, SYN);
    assert_eq!(dropped(&Fake::new(), pod2, &frame), Some(DropReason::Spoofed));
}

#[test]
fn nothing_for_an_unknown_pod_leaves_the_cluster() {
    let to = |dst| dropped(&Fake::new(), pod2, &tcp("10.244.1.2", 40000, dst, 80, SYN));
    assert_eq!(to("10.244.1.77"), Some(DropReason::NoEndpoint));
    assert_eq!(to("10.244.9.1"), Some(DropReason::NoRoute));
    assert_eq!(to("239.1.1.1"), Some(DropReason::Multicast));
}

#[test]
fn the_outside_sees_the_node_and_its_answers_come_back() {
    let tables = Fake::new();
    let (next, out) = walk(&tables, pod2, &tcp("10.244.1.2", 40000, "198.51.100.2", 443, SYN));
    assert_eq!((next, out.src, out.dst), (Next::Outside, addr("10.89.0.11"), addr("198.51.100.2")));
    assert!((12_000..=29_999).contains(&out.sport.number()));
    let (next, back) = walk(&tables, nic_ingress, &answer(&out, SYN | ACK));
    assert_eq!((next, back), (Next::Pod, tuple(TCP, "198.51.100.2", 443, "10.244.1.2", 40000)));
    let (_, again) = walk(&tables, pod2, &tcp("10.244.1.2", 40000, "198.51.100.2", 443, ACK));
    assert_eq!(again, out);
}

#[test]
fn other_nodes_see_the_node_too() {
    let (next, out) = walk(&Fake::new(), pod2, &tcp("10.244.1.2", 40000, "10.89.0.12", 10250, SYN));
    assert_eq!((next, out.src), (Next::Outside, addr("10.89.0.11")));
}

#[test]
fn two_pods_with_one_source_port_are_told_apart() {
    let mut tables = Fake::new();
    tables.ports = (12_000, 12_003);
    let out = |src, hook: Hook| walk(&tables, hook, &tcp(src, 40000, "198.51.100.2", 443, SYN)).1;
    let (first, second) = (out("10.244.1.2", pod2), out("10.244.1.3", pod3));
    assert_ne!(first, second);
    assert_eq!(walk(&tables, nic_ingress, &answer(&second, ACK)).1.dst, addr("10.244.1.3"));
}

#[test]
fn without_a_free_port_the_packet_is_dropped_and_nothing_is_left_behind() {
    let mut tables = Fake::new();
    tables.ports = (12_000, 12_000);
    walk(&tables, pod2, &tcp("10.244.1.2", 40000, "198.51.100.2", 443, SYN));
    let before = tables.nat.borrow().len();
    let frame = tcp("10.244.1.3", 40000, "198.51.100.2", 443, SYN);
    assert_eq!(dropped(&tables, pod3, &frame), Some(DropReason::NoPort));
    assert_eq!(tables.nat.borrow().len(), before);
}

/// One port for masqueraded connections, and a connection of the first pod that has it and has come this far.
fn one_port_taken(flags: [u8; 2]) -> (Fake, Tuple) {
    let mut tables = Fake::new();
    tables.ports = (12_000, 12_000);
    let from = |flags| tcp("10.244.1.2", 40000, "198.51.100.2", 443, flags);
    let out = walk(&tables, pod2, &from(SYN)).1;
    walk(&tables, nic_ingress, &answer(&out, SYN | ACK));
    walk(&tables, pod2, &from(ACK | flags[0]));
    walk(&tables, nic_ingress, &answer(&out, ACK | flags[1]));
    (tables, out)
}

fn seconds(tables: &Fake, count: u64) {
    tables.now.set(tables.now.get() + count * 1_000_000_000);
}

const FIN: u8 = Packet::FIN;
const RST: u8 = Packet::RST;

#[test]
fn the_port_of_a_connection_that_has_ended_is_taken_over_whole() {
    for flags in [[FIN, FIN], [RST, 0], [0, RST]] {
        let (tables, out) = one_port_taken(flags);
        seconds(&tables, 2);
        let next = walk(&tables, pod3, &tcp("10.244.1.3", 50000, "198.51.100.2", 443, SYN)).1;
        assert_eq!(next, out, "{flags:?}");
        assert_eq!(
            (tables.nat.borrow().len(), tables.conntrack.borrow().len()),
            (2, 1),
            "nothing of the old one is left"
        );
        let back = walk(&tables, nic_ingress, &answer(&next, SYN | ACK)).1;
        assert_eq!(back, tuple(TCP, "198.51.100.2", 443, "10.244.1.3", 50000));
    }
}

#[test]
fn a_port_stays_with_whoever_may_still_need_it() {
    let second = tcp("10.244.1.3", 50000, "198.51.100.2", 443, SYN);
    for (what, flags, since) in [
        ("it is open", [0, 0], 60),
        ("one side has more to say", [FIN, 0], 60),
        ("the other side has", [0, FIN], 60),
        ("something of it may be on its way", [FIN, FIN], 1),
        ("user space is about to collect it", [FIN, FIN], 9),
        ("user space collects it", [FIN, FIN], 20),
    ] {
        let (tables, out) = one_port_taken(flags);
        seconds(&tables, since);
        assert_eq!(dropped(&tables, pod3, &second), Some(DropReason::NoPort), "{what}");
        assert_eq!(walk(&tables, nic_ingress, &answer(&out, ACK)).1.dst, addr("10.244.1.2"), "{what}");
    }
    let (tables, _) = one_port_taken([FIN, FIN]);
    seconds(&tables, 2);
    let late = tcp("10.244.1.3", 50000, "198.51.100.2", 443, ACK);
    assert_eq!(dropped(&tables, pod3, &late), Some(DropReason::NoPort), "only a new connection takes one");
}

#[test]
fn whoever_lost_its_port_and_opens_again_does_not_harm_its_heir() {
    let (mut tables, _) = one_port_taken([FIN, FIN]);
    seconds(&tables, 2);
    let heir = walk(&tables, pod3, &tcp("10.244.1.3", 50000, "198.51.100.2", 443, SYN)).1;
    tables.ports = (12_000, 12_003);
    let again = walk(&tables, pod2, &tcp("10.244.1.2", 40000, "198.51.100.2", 443, SYN)).1;
    assert_ne!(again, heir);
    assert_eq!(walk(&tables, nic_ingress, &answer(&heir, ACK)).1.dst, addr("10.244.1.3"));
    assert_eq!(walk(&tables, nic_ingress, &answer(&again, ACK)).1.dst, addr("10.244.1.2"));
}

/// Where no other backend can be chosen the translation stays; the connection is a new one nevertheless.
#[test]
fn a_tuple_that_is_opened_again_lives_as_long_as_any_other() {
    let tables = Fake::new();
    let from = |flags| tcp("10.89.0.11", 40000, "10.244.2.9", 443, flags);
    let out = walk(&tables, overlay_egress, &from(SYN)).1;
    for flags in [[FIN, FIN], [RST, 0]] {
        walk(&tables, overlay_egress, &from(ACK | flags[0]));
        walk(&tables, overlay_ingress, &answer(&out, ACK | flags[1]));
        assert_eq!(walk(&tables, overlay_egress, &from(SYN)).1, out);
        walk(&tables, overlay_ingress, &answer(&out, SYN | ACK));
        let connections = tables.conntrack.borrow();
        let connection = connections.values().next().unwrap();
        assert_eq!(connection.state, leme_abi::ConntrackState::Established as u8, "{flags:?}");
    }
}

#[test]
fn a_service_missed_by_the_socket_is_resolved_per_packet() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &[("10.244.2.9", 8080)]);
    let (next, out) = walk(&tables, pod2, &tcp("10.244.1.2", 40000, "10.96.0.10", 80, SYN));
    assert_eq!(
        (next, out.src, out.dst, out.dport.number()),
        (Next::Overlay, addr("10.244.1.2"), addr("10.244.2.9"), 8080)
    );
    let (next, back) = walk(&tables, overlay_ingress, &answer(&out, SYN | ACK));
    assert_eq!((next, back), (Next::Pod, tuple(TCP, "10.96.0.10", 80, "10.244.1.2", 40000)));
}

#[test]
fn a_pod_that_reaches_itself_through_a_service_sees_the_router() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &[("10.244.1.2", 8080)]);
    let (next, out) = walk(&tables, pod2, &tcp("10.244.1.2", 40000, "10.96.0.10", 80, SYN));
    assert_eq!((next, out.src, out.dst), (Next::Pod, addr("10.244.1.1"), addr("10.244.1.2")));
    let (next, back) = walk(&tables, pod2, &answer(&out, SYN | ACK));
    assert_eq!((next, back), (Next::Pod, tuple(TCP, "10.96.0.10", 80, "10.244.1.2", 40000)));
}

#[test]
fn the_nodes_own_answer_to_a_pod_gets_the_services_address() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &[("10.89.0.11", 6443)]);
    let (next, out) = walk(&tables, pod2, &tcp("10.244.1.2", 40000, "10.96.0.10", 80, SYN));
    assert_eq!((next, out.src, out.dst), (Next::Pass, addr("10.244.1.2"), addr("10.89.0.11")));
    let (next, back) = walk(&tables, to_pod, &answer(&out, SYN | ACK));
    assert_eq!((next, back), (Next::Pass, tuple(TCP, "10.96.0.10", 80, "10.244.1.2", 40000)));
}

#[test]
fn a_service_without_endpoints_is_refused_everywhere() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &[]);
    node_port(&mut tables, &[]);
    assert_eq!(walk(&tables, pod2, &tcp("10.244.1.2", 40000, "10.96.0.10", 80, SYN)).0, Next::Reject);
    assert_eq!(walk(&tables, nic_egress, &tcp("10.89.0.11", 40000, "10.96.0.10", 80, SYN)).0, Next::Reject);
    assert_eq!(walk(&tables, nic_ingress, &tcp("198.51.100.2", 40000, "10.89.0.11", 30080, SYN)).0, Next::Reject);
}

fn ping(src: &str, dst: &str) -> Frame {
    ip(Protocol::ICMP, src, dst, 0, &[8, 0, 0, 0, 0, 9, 0, 1])
}

/// What the pod, the node and the outside get for a packet to `dst:port` over TCP, UDP, and as a ping.
fn answers(tables: &Fake, dst: &str, port: u16) -> BTreeSet<(&'static str, &'static str)> {
    let hooks: [(Hook, &str); 3] = [(pod2, "10.244.1.2"), (nic_egress, "10.89.0.11"), (nic_ingress, "198.51.100.2")];
    let frames = |src| [tcp(src, 40000, dst, port, SYN), udp(src, 40000, dst, port), ping(src, dst)];
    let all = hooks.into_iter().flat_map(|(hook, src)| frames(src).map(|frame| (hook, frame)));
    let verdicts = all.map(|(hook, frame)| {
        let mut work = read(tables, &frame).unwrap();
        match hook(tables, &mut work) {
            Next::Reject => ("refused", work.reason.name()),
            Next::Drop => ("dropped", work.reason.name()),
            _ => ("sent", ""),
        }
    });
    verdicts.collect()
}

#[test]
fn a_cluster_ip_refuses_other_ports_and_one_that_nobody_has_is_silent() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &BACKENDS);
    tables.own(1, addr("10.96.0.10"));
    assert_eq!(answers(&tables, "10.96.0.99", 80), BTreeSet::from([("sent", "")]), "the range is not known");
    let refused = BTreeSet::from([("refused", "no_service_port")]);
    assert_eq!(answers(&tables, "10.96.0.10", 81), refused, "though the range is not known");
    tables.know_range();
    assert_eq!(answers(&tables, "10.96.0.10", 81), refused);
    assert_eq!(answers(&tables, "10.96.0.99", 80), BTreeSet::from([("dropped", "no_service")]));
    // Others' addresses, a load balancer's too, are others'.
    tables.serve(5, &[(addr("203.0.113.7"), 80, Scope::Cluster)], &BACKENDS, 0);
    assert_eq!(answers(&tables, "203.0.113.7", 81), BTreeSet::from([("sent", "")]));
}

#[test]
fn errors_and_running_connections_are_no_reason_to_refuse() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &BACKENDS);
    tables.own(1, addr("10.96.0.10"));
    tables.know_range();
    let running = tcp("10.89.0.11", 40000, "10.96.0.10", 81, ACK);
    assert_eq!(walk(&tables, nic_egress, &running).0, Next::Pass);
    let quoted = udp("10.96.0.10", 81, "10.244.1.2", 9);
    let error =
        ip(Protocol::ICMP, "10.244.1.2", "10.96.0.10", 0, &[&[3, 3, 0, 0, 0, 0, 0, 0], &quoted.0[14..]].concat());
    assert_eq!(dropped(&tables, pod2, &error), Some(DropReason::NoService));
}

#[test]
fn a_socket_is_refused_a_port_that_a_service_does_not_have() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &BACKENDS);
    let ask = |tables: &Fake, service: &str, port| {
        let client = || addr("10.244.1.2");
        choose_backend(tables, &addr(service), Port::new(port), TCP, false, client, 3, &mut Target::default())
    };
    assert_eq!(ask(&tables, "10.96.0.10", 81), Resolved::Unknown);
    tables.own(1, addr("10.96.0.10"));
    assert_eq!(ask(&tables, "10.96.0.10", 80), Resolved::Backend);
    assert_eq!(ask(&tables, "10.96.0.10", 81), Resolved::Empty);
    assert_eq!(ask(&tables, "10.96.0.99", 80), Resolved::Unknown);
}

#[test]
fn a_node_port_keeps_the_client_towards_a_pod_of_the_node() {
    let mut tables = Fake::new();
    node_port(&mut tables, &[("10.244.1.2", 8080)]);
    let (next, out) = walk(&tables, nic_ingress, &tcp("198.51.100.2", 5000, "10.89.0.11", 30080, SYN));
    assert_eq!((next, out), (Next::Pod, tuple(TCP, "198.51.100.2", 5000, "10.244.1.2", 8080)));
    let (next, back) = walk(&tables, pod2, &answer(&out, SYN | ACK));
    assert_eq!((next, back), (Next::Outside, tuple(TCP, "10.89.0.11", 30080, "198.51.100.2", 5000)));
}

#[test]
fn a_node_without_the_pod_forwards_and_the_answer_returns_through_it() {
    let mut tables = Fake::new();
    node_port(&mut tables, &[("10.244.2.9", 8080)]);
    let (next, out) = walk(&tables, nic_ingress, &tcp("198.51.100.2", 5000, "10.89.0.11", 30080, SYN));
    assert_eq!((next, out.src, out.dst), (Next::Overlay, addr("10.244.1.1"), addr("10.244.2.9")));
    let (next, back) = walk(&tables, overlay_ingress, &answer(&out, SYN | ACK));
    assert_eq!((next, back), (Next::Outside, tuple(TCP, "10.89.0.11", 30080, "198.51.100.2", 5000)));
}

#[test]
fn two_node_ports_of_one_pod_do_not_mix_up_a_client_that_reuses_its_port() {
    let mut tables = Fake::new();
    node_port(&mut tables, &[("10.244.1.2", 8080)]);
    tables.serve(3, &[(Addr::ANY, 30081, Scope::Cluster)], &[("10.244.1.2", 8080)], 0);
    let (_, first) = walk(&tables, nic_ingress, &tcp("198.51.100.2", 5000, "10.89.0.11", 30080, SYN));
    let (_, second) = walk(&tables, nic_ingress, &tcp("198.51.100.2", 5000, "10.89.0.11", 30081, SYN));
    assert_ne!(first, second);
    assert_eq!(walk(&tables, pod2, &answer(&first, SYN | ACK)).1.sport.number(), 30080);
    assert_eq!(walk(&tables, pod2, &answer(&second, SYN | ACK)).1.sport.number(), 30081);
}

#[test]
fn the_outside_sees_the_external_entry_where_there_is_one() {
    let mut tables = Fake::new();
    tables.serve(2, &[(Addr::ANY, 30080, Scope::Cluster)], &[("10.244.2.9", 8080)], Service::EXTERNAL_LOCAL);
    tables.serve(3, &[(Addr::ANY, 30080, Scope::External)], &[("10.244.1.2", 8080)], Service::EXTERNAL_LOCAL);
    let outside = walk(&tables, nic_ingress, &tcp("198.51.100.2", 5000, "10.89.0.11", 30080, SYN));
    assert_eq!((outside.0, outside.1.dst), (Next::Pod, addr("10.244.1.2")));
    let inside = walk(&tables, pod2, &tcp("10.244.1.2", 40000, "10.89.0.11", 30080, SYN));
    assert_eq!(inside.1.dst, addr("10.244.2.9"));
}

#[test]
fn a_local_policy_drops_what_only_other_nodes_could_serve() {
    let mut tables = Fake::new();
    let flags = Service::EXTERNAL_LOCAL | Service::ELSEWHERE;
    tables.serve(2, &[(Addr::ANY, 30080, Scope::External)], &[], flags);
    let frame = tcp("198.51.100.2", 5000, "10.89.0.11", 30080, SYN);
    assert_eq!(dropped(&tables, nic_ingress, &frame), Some(DropReason::NoLocalBackend));
    tables.serve(1, &[(addr("10.96.0.10"), 80, Scope::Cluster)], &[], Service::INTERNAL_LOCAL | Service::ELSEWHERE);
    let to_service = |src| tcp(src, 5000, "10.96.0.10", 80, SYN);
    assert_eq!(dropped(&tables, pod2, &to_service("10.244.1.2")), Some(DropReason::NoLocalBackend));
    assert_eq!(dropped(&tables, nic_egress, &to_service("10.89.0.11")), Some(DropReason::NoLocalBackend));
}

#[test]
fn a_guarded_service_is_for_its_sources_only_and_not_for_sockets_whose_client_is_unknown() {
    let mut tables = Fake::new();
    tables.serve(5, &[(addr("203.0.113.8"), 80, Scope::Cluster)], &[("10.244.1.2", 8080)], Service::GUARDED);
    tables.sources = [(5, addr("198.51.100.2")), (5, addr("10.244.1.3")), (6, addr("198.51.100.3"))].into();
    let to_service = |src| tcp(src, 5000, "203.0.113.8", 80, SYN);
    assert_eq!(walk(&tables, nic_ingress, &to_service("198.51.100.2")).0, Next::Pod);
    assert_eq!(dropped(&tables, nic_ingress, &to_service("198.51.100.3")), Some(DropReason::SourceRange));
    assert_eq!(walk(&tables, pod3, &to_service("10.244.1.3")).0, Next::Pod);
    assert_eq!(dropped(&tables, pod2, &to_service("10.244.1.2")), Some(DropReason::SourceRange));
    assert_eq!(dropped(&tables, nic_egress, &to_service("10.89.0.11")), Some(DropReason::SourceRange));
    let at_socket = |client| {
        let (service, port, mut target) = (addr("203.0.113.8"), Port::new(80), Target::default());
        choose_backend(&tables, &service, port, TCP, false, || client, 0, &mut target)
    };
    assert_eq!(at_socket(Addr::ANY), Resolved::Foreign);
    assert_eq!(at_socket(addr("10.244.1.3")), Resolved::Backend);
    assert_eq!(at_socket(addr("10.244.1.2")), Resolved::Denied);
}

#[test]
fn node_ports_answer_only_on_the_addresses_they_may() {
    let mut tables = Fake::new();
    node_port(&mut tables, &[("10.244.1.2", 8080)]);
    tables.node_addresses.insert(addr("10.90.0.11"), NodeAddress::KNOWN | NodeAddress::LOCAL);
    let frame = tcp("198.51.100.2", 5000, "10.90.0.11", 30080, SYN);
    assert_eq!(walk(&tables, nic_ingress, &frame).0, Next::Pod);
    let flags = NodeAddress::KNOWN | NodeAddress::LOCAL | NodeAddress::NO_NODE_PORTS;
    tables.node_addresses.insert(addr("10.90.0.11"), flags);
    let frame = tcp("198.51.100.2", 5001, "10.90.0.11", 30080, SYN);
    assert_eq!(walk(&tables, nic_ingress, &frame), (Next::Pass, read(&tables, &frame).unwrap().packet.tuple));
}

#[test]
fn a_socket_of_the_node_reaches_node_ports_on_loopback_unless_they_may_not_answer_there() {
    let mut tables = Fake::new();
    node_port(&mut tables, &[("10.244.1.2", 8080)]);
    let ask = |tables: &Fake, dst: &str, host: bool| {
        choose_backend(tables, &addr(dst), Port::new(30080), TCP, host, || Addr::ANY, 0, &mut Target::default())
    };
    assert_eq!(ask(&tables, "127.0.0.1", true), Resolved::Backend);
    assert_eq!(ask(&tables, "127.9.9.9", true), Resolved::Backend);
    assert_eq!(ask(&tables, "127.0.0.1", false), Resolved::Foreign);
    let flags = NodeAddress::KNOWN | NodeAddress::LOCAL | NodeAddress::NO_NODE_PORTS;
    tables.node_addresses.insert(Addr::LOOPBACK, flags);
    assert_eq!(ask(&tables, "127.0.0.1", true), Resolved::Foreign);
    assert_eq!(ask(&tables, "127.9.9.9", true), Resolved::Foreign);
    assert_eq!(ask(&tables, "10.89.0.11", true), Resolved::Backend);
}

#[test]
fn another_nodes_port_under_a_local_policy_is_that_nodes_to_resolve() {
    let mut tables = Fake::new();
    tables.serve(2, &[(Addr::ANY, 30080, Scope::Cluster)], &[("10.244.1.3", 8080)], Service::EXTERNAL_LOCAL);
    let (next, out) = walk(&tables, pod2, &tcp("10.244.1.2", 40000, "10.89.0.12", 30080, SYN));
    assert_eq!((next, out.dst, out.dport.number()), (Next::Outside, addr("10.89.0.12"), 30080));
}

#[test]
fn the_node_reaches_remote_pods_from_its_router_address() {
    let tables = Fake::new();
    let (next, out) = walk(&tables, overlay_egress, &tcp("10.244.1.1", 40000, "10.244.2.9", 80, SYN));
    assert_eq!((next, out.src), (Next::Overlay, addr("10.244.1.1")));
    let (_, out) = walk(&tables, overlay_egress, &tcp("10.89.0.11", 40000, "10.244.2.9", 80, SYN));
    assert_eq!(out.src, addr("10.244.1.1"));
    let (next, back) = walk(&tables, overlay_ingress, &answer(&out, SYN | ACK));
    assert_eq!((next, back), (Next::Pass, tuple(TCP, "10.244.2.9", 80, "10.89.0.11", 40000)));
}

#[test]
fn the_node_reaches_its_own_backend_through_a_service() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &[("10.89.0.11", 6443)]);
    let (next, out) = walk(&tables, nic_egress, &tcp("10.89.0.11", 40000, "10.96.0.10", 80, SYN));
    assert_eq!((next, out.src, out.dst), (Next::Back, addr("10.96.0.10"), addr("10.89.0.11")));
    let (next, back) = walk(&tables, nic_egress, &answer(&out, SYN | ACK));
    assert_eq!((next, back), (Next::Back, tuple(TCP, "10.96.0.10", 80, "10.89.0.11", 40000)));
}

#[test]
fn nothing_is_carried_on_from_the_overlay() {
    let frame = tcp("10.244.2.9", 40000, "198.51.100.2", 80, SYN);
    assert_eq!(dropped(&Fake::new(), overlay_ingress, &frame), Some(DropReason::NoEndpoint));
    let frame = tcp("10.244.2.9", 40000, "10.244.1.77", 80, SYN);
    assert_eq!(dropped(&Fake::new(), overlay_ingress, &frame), Some(DropReason::NoEndpoint));
}

#[test]
fn a_connection_that_starts_anew_chooses_again() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &[("10.244.2.9", 8080)]);
    let syn = tcp("10.244.1.2", 40000, "10.96.0.10", 80, SYN);
    let (_, first) = walk(&tables, pod2, &syn);
    walk(&tables, overlay_ingress, &answer(&first, ACK | Packet::RST));
    cluster_ip(&mut tables, &[("10.244.2.10", 8080)]);
    let (_, second) = walk(&tables, pod2, &syn);
    assert_eq!(second.dst, addr("10.244.2.10"));
    assert_eq!(tables.nat.borrow().len(), 2, "the old translations are gone");
}

#[test]
fn a_running_connection_keeps_its_backend_when_the_service_changes() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &[("10.244.2.9", 8080)]);
    let (_, first) = walk(&tables, pod2, &tcp("10.244.1.2", 40000, "10.96.0.10", 80, SYN));
    walk(&tables, overlay_ingress, &answer(&first, SYN | ACK));
    tables.backends.clear();
    cluster_ip(&mut tables, &[("10.244.2.10", 8080)]);
    assert_eq!(walk(&tables, pod2, &tcp("10.244.1.2", 40000, "10.96.0.10", 80, ACK)).1, first);
}

#[test]
fn a_syn_whose_backend_is_gone_chooses_again() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &[("10.244.2.9", 8080)]);
    let syn = tcp("10.244.1.2", 40000, "10.96.0.10", 80, SYN);
    walk(&tables, pod2, &syn);
    tables.backends.clear();
    tables.serve(4, &[(addr("10.96.0.10"), 80, Scope::Cluster)], &[("10.244.2.10", 8080)], 0);
    assert_eq!(walk(&tables, pod2, &syn).1.dst, addr("10.244.2.10"));
}

#[test]
fn an_error_from_the_way_reaches_the_pod_that_caused_it() {
    let tables = Fake::new();
    let (_, out) = walk(&tables, pod2, &udp("10.244.1.2", 40000, "198.51.100.2", 443));
    let quoted = udp("10.89.0.11", out.sport.number(), "198.51.100.2", 443);
    let mut payload: Vec<u8> = [3, 4, 0, 0, 0, 0, 5, 120].into();
    payload.extend(&quoted.0[14..]);
    let (next, back) = walk(&tables, nic_ingress, &ip(Protocol::ICMP, "203.0.113.1", "10.89.0.11", 0, &payload));
    assert_eq!((next, back), (Next::Pod, tuple(Protocol::UDP, "198.51.100.2", 443, "10.244.1.2", 40000)));
}

#[test]
fn silence_ends_a_connection_sooner_once_it_has_closed() {
    let tables = Fake::new();
    let lifetime = |tables: &Fake| tables.conntrack.borrow().values().next().unwrap().expires / 1_000_000_000;
    let (_, out) = walk(&tables, pod2, &tcp("10.244.1.2", 40000, "198.51.100.2", 443, SYN));
    assert_eq!(lifetime(&tables), 120);
    walk(&tables, nic_ingress, &answer(&out, SYN | ACK));
    assert_eq!(lifetime(&tables), 432_000);
    walk(&tables, pod2, &tcp("10.244.1.2", 40000, "198.51.100.2", 443, ACK | Packet::FIN));
    assert_eq!(lifetime(&tables), 120);
    walk(&tables, nic_ingress, &answer(&out, ACK | Packet::FIN));
    assert_eq!(lifetime(&tables), 10);
}

#[test]
fn a_direct_connection_steps_aside_for_a_translated_one() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &[("10.244.2.9", 8080)]);
    let (_, translated) = walk(&tables, pod2, &tcp("10.244.1.2", 40000, "10.96.0.10", 80, SYN));
    let port = translated.sport.number();
    let (next, direct) = walk(&tables, pod2, &tcp("10.244.1.2", port, "10.244.2.9", 8080, SYN));
    assert_eq!(next, Next::Overlay);
    assert_ne!(direct, translated);
    assert_eq!(walk(&tables, overlay_ingress, &answer(&direct, ACK)).1.dport.number(), port);
    assert_eq!(walk(&tables, overlay_ingress, &answer(&translated, ACK)).1.dport.number(), 40000);
}

const BACKENDS: [(&str, u16); 4] =
    [("10.244.2.9", 8080), ("10.244.2.10", 8080), ("10.244.2.11", 8080), ("10.244.2.12", 8080)];

/// Where a client's connections from these ports go.
fn backends_of(tables: &Fake, hook: Hook, src: &str, dst: &str, dport: u16) -> BTreeSet<Addr> {
    (40_000..40_032).map(|sport| walk(tables, hook, &tcp(src, sport, dst, dport, SYN)).1.dst).collect()
}

#[test]
fn a_client_stays_with_its_backend_where_the_service_has_affinity() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &BACKENDS);
    assert!(backends_of(&tables, pod2, "10.244.1.2", "10.96.0.10", 80).len() > 1);
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &BACKENDS);
    tables.stick(1, 1, 60);
    assert_eq!(backends_of(&tables, pod2, "10.244.1.2", "10.96.0.10", 80).len(), 1);
    assert_eq!(backends_of(&tables, pod3, "10.244.1.3", "10.96.0.10", 80).len(), 1);
    assert_eq!(tables.affinity.borrow().len(), 2);
}

#[test]
fn all_of_the_nodes_addresses_are_one_client() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &BACKENDS);
    tables.stick(1, 1, 60);
    let first = backends_of(&tables, nic_egress, "10.89.0.11", "10.96.0.10", 80);
    assert_eq!(backends_of(&tables, nic_egress, "10.244.1.1", "10.96.0.10", 80), first);
    let mut target = Target::default();
    let (service, port) = (addr("10.96.0.10"), Port::new(80));
    choose_backend(&tables, &service, port, TCP, true, || addr("10.89.0.11"), 3, &mut target);
    assert_eq!((first.first(), first.len()), (Some(&target.backend.addr), 1));
    assert_eq!(tables.affinity.borrow().len(), 1);
}

#[test]
fn silence_longer_than_the_timeout_and_a_backend_that_leaves_end_affinity() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &BACKENDS);
    tables.stick(1, 1, 60);
    let second = 1_000_000_000;
    let go = |tables: &Fake, sport| walk(tables, pod2, &tcp("10.244.1.2", sport, "10.96.0.10", 80, SYN)).1.dst;
    let first = go(&tables, 40_000);
    for sport in 40_001..40_010 {
        tables.now.set(tables.now.get() + 60 * second);
        assert_eq!(go(&tables, sport), first, "each use counts anew");
    }
    let long_after = (41_000..41_032).map(|sport| {
        tables.now.set(tables.now.get() + 61 * second);
        go(&tables, sport)
    });
    assert!(long_after.collect::<BTreeSet<_>>().len() > 1);

    let last = go(&tables, 42_000);
    tables.retire(1, last);
    let next = go(&tables, 42_001);
    assert_ne!(next, last);
    let recorded: BTreeSet<Addr> = (43_000..43_032).map(|sport| go(&tables, sport)).collect();
    assert_eq!(recorded, BTreeSet::from([next]));
}

#[test]
fn affinity_is_one_for_all_entries_of_a_port_whose_backend_serves_there_too() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &BACKENDS);
    tables.stick(1, 1, 60);
    let inside = backends_of(&tables, nic_ingress, "10.89.0.12", "10.96.0.10", 80);
    tables.share(1, 2, &[(Addr::ANY, 30080, Scope::Cluster)]);
    tables.stick(2, 1, 60);
    assert_eq!(backends_of(&tables, nic_ingress, "10.89.0.12", "10.89.0.11", 30080), inside);
}

#[test]
fn a_socket_whose_client_is_unknown_leaves_affinity_to_the_packet_path() {
    let mut tables = Fake::new();
    cluster_ip(&mut tables, &BACKENDS);
    let (service, port) = (addr("10.96.0.10"), Port::new(80));
    let choose = |tables: &Fake, client| {
        let mut target = Target::default();
        choose_backend(tables, &service, port, TCP, false, || client, 3, &mut target)
    };
    assert_eq!(choose(&tables, Addr::ANY), Resolved::Backend);
    tables.stick(1, 1, 60);
    assert_eq!(choose(&tables, Addr::ANY), Resolved::Foreign);
    assert_eq!(choose(&tables, addr("10.244.1.2")), Resolved::Backend);
}
