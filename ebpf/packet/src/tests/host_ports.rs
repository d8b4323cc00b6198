//! Ports of the node that lead to one of its pods.

use super::fake::{Fake, addr, read, tcp, tuple};
use crate::{Next, Packet, Resolved, Target, choose_backend, from_pod, nic_ingress};
use leme_abi::{Addr, NodeAddress, Port, Protocol, Scope, Service, Tuple};

const TCP: u8 = Protocol::TCP;
const SYN: u8 = Packet::SYN;

/// Port 8080 of `on` leads to port 80 of the pod 10.244.1.3.
fn tables(on: Addr) -> Fake {
    let mut tables = Fake::new();
    tables.serve(5, &[(on, 8080, Scope::Cluster)], &[("10.244.1.3", 80)], Service::HOST_PORT);
    tables
}

fn from_outside(tables: &Fake, dst: &str) -> (Next, Tuple) {
    let mut work = read(tables, &tcp("198.51.100.2", 5000, dst, 8080, SYN)).unwrap();
    let next = nic_ingress(tables, &mut work);
    (next, if work.rewrite { work.to } else { work.packet.tuple })
}

fn from_pod2(tables: &Fake, dst: &str) -> (Next, Tuple) {
    let mut work = read(tables, &tcp("10.244.1.2", 40000, dst, 8080, SYN)).unwrap();
    let next = from_pod(tables, &mut work, 2);
    (next, work.to)
}

/// What a socket gets: of the node, or of a pod.
fn connect(tables: &Fake, host: bool, dst: &str) -> Option<(Addr, u16)> {
    let mut target = Target::default();
    let found = choose_backend(tables, &addr(dst), Port::new(8080), TCP, host, || Addr::ANY, 0, &mut target);
    (found == Resolved::Backend).then_some((target.backend.addr, target.backend.port.number()))
}

#[test]
fn outside_clients_keep_their_address_and_other_addresses_are_not_served() {
    let tables = tables(Addr::ANY);
    let reached = (Next::Pod, tuple(TCP, "198.51.100.2", 5000, "10.244.1.3", 80));
    assert_eq!(from_outside(&tables, "10.89.0.11"), reached);
    assert_eq!(
        from_outside(&tables, "203.0.113.9"),
        (Next::Pass, tuple(TCP, "198.51.100.2", 5000, "203.0.113.9", 8080))
    );
}

#[test]
fn pods_and_sockets_reach_it_at_this_nodes_addresses_and_leave_other_nodes_theirs() {
    let tables = tables(Addr::ANY);
    let pod = Some((addr("10.244.1.3"), 80));
    assert_eq!(from_pod2(&tables, "10.89.0.11").1.dst, addr("10.244.1.3"));
    for (host, dst) in [(true, "10.89.0.11"), (true, "127.0.0.1"), (true, "10.244.1.1"), (false, "10.89.0.11")] {
        assert_eq!(connect(&tables, host, dst), pod, "{dst} from the host: {host}");
    }
    let (next, out) = from_pod2(&tables, "10.89.0.12");
    assert_eq!(
        (next, out.src, out.dst, out.dport.number()),
        (Next::Outside, addr("10.89.0.11"), addr("10.89.0.12"), 8080)
    );
    for (host, dst) in [(true, "10.89.0.12"), (false, "10.89.0.12"), (false, "127.0.0.1")] {
        assert_eq!(connect(&tables, host, dst), None, "{dst} from the host: {host}");
    }
}

#[test]
fn a_port_of_localhost_is_for_the_nodes_own_sockets_only() {
    let tables = tables(addr("127.0.0.1"));
    assert_eq!(connect(&tables, true, "127.0.0.1"), Some((addr("10.244.1.3"), 80)));
    for (host, dst) in [(true, "10.89.0.11"), (true, "127.0.0.2"), (false, "127.0.0.1")] {
        assert_eq!(connect(&tables, host, dst), None, "{dst} from the host: {host}");
    }
    assert_eq!(from_outside(&tables, "10.89.0.11").0, Next::Pass);
    // Nobody's network carries this; somebody may try.
    assert_eq!(from_outside(&tables, "127.0.0.1"), (Next::Pass, tuple(TCP, "198.51.100.2", 5000, "127.0.0.1", 8080)));
    assert_ne!(from_pod2(&tables, "127.0.0.1").1.dst, addr("10.244.1.3"));
}

#[test]
fn a_port_of_one_address_is_not_served_on_others() {
    let tables = tables(addr("10.89.0.11"));
    assert_eq!(from_outside(&tables, "10.89.0.11").0, Next::Pod);
    assert_eq!(from_outside(&tables, "10.244.1.1").0, Next::Pass);
    assert_eq!(connect(&tables, true, "10.244.1.1"), None);
    assert_eq!(connect(&tables, true, "127.0.0.1"), None);
}

#[test]
fn where_no_node_ports_answer_host_ports_do() {
    let mut tables = tables(Addr::ANY);
    for address in ["10.89.0.11", "127.0.0.1"] {
        let flags = NodeAddress::KNOWN | NodeAddress::LOCAL | NodeAddress::NO_NODE_PORTS;
        tables.node_addresses.insert(addr(address), flags);
    }
    assert_eq!(from_outside(&tables, "10.89.0.11").0, Next::Pod);
    assert_eq!(connect(&tables, true, "127.0.0.1"), Some((addr("10.244.1.3"), 80)));
}
