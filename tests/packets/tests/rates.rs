//! Rates of pods, at the hooks that keep them. One byte per second: whatever the clock says, the second packet is too many.
#![expect(clippy::unwrap_used, reason = "tests may")]

use leme_datapath::{Limits, Rate};
use leme_tests_packets::{
    Frame, Node, Row, Verdict, check,
    frame::{ACK, SYN},
    in_namespace,
    node::endpoint,
};
use nix::net::if_::if_nametoindex;
use std::net::IpAddr;

const SLOWEST: Option<Rate> = Some(Rate { bytes_per_second: 1, burst: 0 });

fn limit(node: &mut Node, limits: Limits) {
    let addr: IpAddr = "10.244.1.2".parse().unwrap();
    let ifindex = if_nametoindex("pod2").unwrap();
    node.datapath.add_endpoint(&leme_datapath::EndpointSpec { limits, ..endpoint(addr, ifindex) }).unwrap();
}

fn row(name: &'static str, program: &'static str, device: &'static str, packet: Frame, verdict: Verdict) -> Row {
    Row { name, program, device, packet, verdict, leaves: None }
}

#[test]
fn a_pod_sends_no_faster_than_it_may() {
    in_namespace(Vec::new(), |node| {
        limit(node, Limits { egress: SLOWEST, ingress: None });
        let packet = || Frame::tcp("10.244.1.2:40000", "10.244.1.3:80", SYN);
        let back = Frame::tcp("10.244.1.3:80", "10.244.1.2:40000", SYN | ACK);
        check(
            node,
            &[
                row("the first", "from_pod", "pod2", packet(), Verdict::Redirect),
                row("the second", "from_pod", "pod2", packet(), Verdict::Drop),
                row("what it receives", "from_pod", "pod3", back, Verdict::Redirect),
            ],
        );
        assert_eq!(node.counter("rate_limited/egress"), 1);
        assert_eq!(node.datapath.dump().unwrap().endpoints[0].limits.egress, SLOWEST);
    });
}

#[test]
fn a_pod_receives_no_faster_than_it_may_from_wherever() {
    in_namespace(Vec::new(), |node| {
        let from_pod = Frame::tcp("10.244.1.3:40000", "10.244.1.2:80", SYN);
        let from_node = Frame::tcp("10.89.0.11:40000", "10.244.1.2:80", SYN);
        for (name, program, device, packet, verdict) in [
            ("from another pod", "from_pod", "pod3", from_pod, Verdict::Redirect),
            ("from the node", "to_pod", "pod2", from_node, Verdict::Pass),
        ] {
            limit(node, Limits::default());
            limit(node, Limits { ingress: SLOWEST, egress: None });
            let again = row("the second", program, device, packet.clone(), Verdict::Drop);
            check(node, &[row(name, program, device, packet, verdict), again]);
        }
        let sent = Frame::tcp("10.244.1.2:40000", "198.51.100.2:443", SYN);
        for _ in 0..2 {
            assert_eq!(node.run("from_pod", "pod2", &sent).0, Verdict::Redirect, "it sends as it likes");
        }
    });
}

#[test]
fn a_limit_outlives_the_agent_with_what_was_spent_and_goes_with_the_pod() {
    in_namespace(Vec::new(), |node| {
        let limits = Limits { egress: SLOWEST, ingress: None };
        limit(node, limits);
        let packet = Frame::tcp("10.244.1.2:40000", "10.244.1.3:80", SYN);
        assert_eq!(node.run("from_pod", "pod2", &packet).0, Verdict::Redirect);
        node.restart();
        limit(node, limits);
        assert_eq!(node.run("from_pod", "pod2", &packet).0, Verdict::Drop);
        node.datapath.remove_endpoint("10.244.1.2".parse().unwrap()).unwrap();
        limit(node, Limits::default());
        for _ in 0..2 {
            assert_eq!(node.run("from_pod", "pod2", &packet).0, Verdict::Redirect);
        }
    });
}
