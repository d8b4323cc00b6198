use serde_json::json;

use leme_tests_packets::{
    Frame, Row, Verdict, check,
    frame::{ACK, SYN},
    in_namespace,
    node::service,
};

#[test]
fn a_node_port_reaches_a_pod_of_the_node_with_the_clients_address() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.1.2", "a")]), |node| {
        check(
            node,
            &[
                Row::inwards(30080, 8080, SYN),
                Row::outwards(30080, 8080, SYN | ACK),
                Row::redirected(
                    "in over UDP",
                    "nic_ingress",
                    "eth0",
                    Frame::udp("198.51.100.2:5000", "10.89.0.11:30080"),
                    Frame::udp("198.51.100.2:5000", "10.244.1.2:8080"),
                ),
            ],
        );
    });
}

#[test]
fn a_node_without_the_pod_forwards_from_its_router_address() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.2.9", "b")]), |node| {
        let (verdict, out) = node.run("nic_ingress", "eth0", &Frame::tcp("198.51.100.2:5000", "10.89.0.11:30080", SYN));
        let facts = out.facts();
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(
            (facts.src.ip().to_string(), facts.dst.to_string()),
            ("10.244.1.1".into(), "10.244.2.9:8080".into())
        );
        out.check_checksums("forwarded");
    });
}

#[test]
fn a_host_network_backend_of_this_node_answers_as_the_node_port() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.89.0.11", "a")]), |node| {
        let pass = |row: Row| Row { verdict: Verdict::Pass, ..row };
        check(
            node,
            &[
                pass(Row::redirected(
                    "in",
                    "nic_ingress",
                    "eth0",
                    Frame::tcp("198.51.100.2:5000", "10.89.0.11:30080", SYN),
                    Frame::tcp("198.51.100.2:5000", "10.89.0.11:8080", SYN),
                )),
                pass(Row::redirected(
                    "out",
                    "nic_egress",
                    "eth0",
                    Frame::tcp("10.89.0.11:8080", "198.51.100.2:5000", SYN | ACK),
                    Frame::tcp("10.89.0.11:30080", "198.51.100.2:5000", SYN | ACK),
                )),
            ],
        );
    });
}

#[test]
fn the_nodes_other_traffic_passes_untouched() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.1.2", "a")]), |node| {
        let same = |name, program, packet| Row::untouched(name, program, "eth0", packet);
        check(
            node,
            &[
                same("ssh in", "nic_ingress", Frame::tcp("198.51.100.2:5000", "10.89.0.11:22", SYN)),
                same("tunnelled", "nic_ingress", Frame::udp("10.89.0.12:5000", "10.89.0.11:4789")),
                same("of others", "nic_ingress", Frame::tcp("198.51.100.2:5000", "203.0.113.9:30080", SYN)),
                same("out", "nic_egress", Frame::tcp("10.89.0.11:40000", "198.51.100.2:443", SYN)),
                same(
                    "to another node's NodePort",
                    "nic_egress",
                    Frame::tcp("10.89.0.11:40000", "10.89.0.12:30080", SYN),
                ),
            ],
        );
    });
}

#[test]
fn a_host_packet_to_a_service_is_resolved_on_its_way_out() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.1.2", "a")]), |node| {
        let (verdict, out) = node.run("nic_egress", "eth0", &Frame::tcp("10.89.0.11:40000", "10.96.0.50:80", SYN));
        assert_eq!((verdict, out.facts().dst.to_string()), (Verdict::Redirect, "10.244.1.2:8080".into()));
        let answer = Frame::tcp("10.244.1.2:8080", &out.facts().src.to_string(), SYN | ACK);
        let back = Frame::tcp("10.96.0.50:80", "10.89.0.11:40000", SYN | ACK);
        let to_host = Row::redirected("the answer", "from_pod", "pod2", answer, back);
        check(node, &[Row { verdict: Verdict::Pass, ..to_host }]);
    });
}

#[test]
fn a_node_port_without_endpoints_says_so() {
    in_namespace(service("none", "10.96.0.51", 30081, &[]), |node| {
        let (verdict, out) = node.run("nic_ingress", "eth0", &Frame::tcp("198.51.100.2:5000", "10.89.0.11:30081", SYN));
        assert_eq!((verdict, &out.0[34..36]), (Verdict::Redirect, &[3, 3][..]));
        out.check_checksums("port unreachable");
    });
}

/// One SCTP port, and its slice.
fn sctp_service(backends: &[(&str, &str)]) -> Vec<serde_json::Value> {
    let mut objects = service("diameter", "10.96.0.60", 30868, backends);
    objects[0]["spec"]["ports"] = json!([{"port": 3868, "nodePort": 30868, "protocol": "SCTP"}]);
    objects[1]["ports"] = json!([{"port": 13868, "protocol": "SCTP"}]);
    objects
}

#[test]
fn sctp_goes_through_a_node_port_and_back_with_checksums_that_hold() {
    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;
    in_namespace(sctp_service(&[("10.244.1.2", "a")]), |node| {
        let (client, node_port, pod) = ("198.51.100.2:5000", "10.89.0.11:30868", "10.244.1.2:13868");
        check(
            node,
            &[
                Row::redirected(
                    "in",
                    "nic_ingress",
                    "eth0",
                    Frame::sctp(client, node_port, INIT),
                    Frame::sctp(client, pod, INIT),
                ),
                Row::redirected(
                    "out",
                    "from_pod",
                    "pod2",
                    Frame::sctp(pod, client, INIT_ACK),
                    Frame::sctp(node_port, client, INIT_ACK).routed(),
                ),
                Row::redirected(
                    "out, the checksum left to the device",
                    "from_pod",
                    "pod2",
                    Frame::sctp_unsummed(pod, client, INIT_ACK),
                    Frame::sctp_unsummed(node_port, client, INIT_ACK).routed(),
                ),
            ],
        );
        let unsummed = node.run("from_pod", "pod2", &Frame::sctp_unsummed(pod, client, INIT_ACK)).1;
        assert_eq!(unsummed.0[42..46], [0; 4], "still the device's to compute");
        let inside = node.run("from_pod", "pod3", &Frame::sctp("10.244.1.3:5000", "10.96.0.60:3868", INIT)).1;
        assert_eq!(
            (inside.facts().src.ip().to_string(), inside.facts().dst.to_string()),
            ("10.244.1.3".into(), pod.into())
        );
        inside.check_checksums("from a pod, with a source port for translations");
    });
    in_namespace(sctp_service(&[]), |node| {
        let opening = Frame::sctp("198.51.100.2:5000", "10.89.0.11:30868", INIT);
        let (verdict, out) = node.run("nic_ingress", "eth0", &opening);
        assert_eq!((verdict, &out.0[34..36]), (Verdict::Redirect, &[3, 3][..]));
    });
}

#[test]
fn a_load_balancers_address_is_for_its_source_ranges_and_the_node_port_for_everybody() {
    let mut objects = service("web", "10.96.0.50", 30080, &[("10.244.1.2", "a")]);
    objects[0]["spec"]["type"] = "LoadBalancer".into();
    objects[0]["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.0/24", "10.244.1.3/32"]);
    objects[0]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.8"}]}});
    in_namespace(objects, |node| {
        let ask = |program, device, src: &str, dst: &str| {
            let (verdict, out) = node.run(program, device, &Frame::tcp(src, dst, SYN));
            (verdict, out.facts().dst.to_string())
        };
        let served = (Verdict::Redirect, "10.244.1.2:8080".to_owned());
        assert_eq!(ask("nic_ingress", "eth0", "198.51.100.2:5000", "203.0.113.8:80"), served);
        assert_eq!(ask("from_pod", "pod3", "10.244.1.3:5000", "203.0.113.8:80"), served);
        assert_eq!(node.counter("source_range/ingress"), 0);
        assert_eq!(ask("nic_ingress", "eth0", "192.0.2.2:5000", "203.0.113.8:80").0, Verdict::Drop);
        assert_eq!(node.counter("source_range/ingress"), 1);
        assert_eq!(ask("from_pod", "pod2", "10.244.1.2:5000", "203.0.113.8:80").0, Verdict::Drop);
        assert_eq!(ask("nic_egress", "eth0", "10.89.0.11:5000", "203.0.113.8:80").0, Verdict::Drop);
        assert_eq!(node.counter("source_range/egress"), 2);
        assert_eq!(ask("nic_ingress", "eth0", "192.0.2.2:5000", "10.89.0.11:30080"), served);
        assert_eq!(ask("from_pod", "pod3", "10.244.1.3:5001", "10.96.0.50:80"), served);
    });
}

#[test]
fn a_local_policy_drops_and_counts_what_only_other_nodes_could_serve() {
    let mut objects = service("web", "10.96.0.50", 30080, &[("10.244.2.9", "b")]);
    objects[0]["spec"]["externalTrafficPolicy"] = "Local".into();
    in_namespace(objects, |node| {
        let opening = Frame::tcp("198.51.100.2:5000", "10.89.0.11:30080", SYN);
        assert_eq!(node.run("nic_ingress", "eth0", &opening).0, Verdict::Drop);
        assert_eq!(node.counter("no_local_backend/ingress"), 1);
        let inside = node.run("from_pod", "pod2", &Frame::tcp("10.244.1.2:5000", "10.89.0.11:30080", SYN)).1;
        assert_eq!(inside.facts().dst.to_string(), "10.244.2.9:8080");
    });
}

#[test]
fn a_restarted_agent_keeps_connections_and_tables() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.1.2", "a"), ("10.244.1.3", "a")]), |node| {
        let opening = Frame::tcp("198.51.100.2:5000", "10.89.0.11:30080", SYN);
        let before = node.run("nic_ingress", "eth0", &opening).1.facts().dst;
        let tables = node.datapath.dump().unwrap().services;
        node.restart();
        let next = Frame::tcp("198.51.100.2:5000", "10.89.0.11:30080", ACK);
        assert_eq!(node.run("nic_ingress", "eth0", &next).1.facts().dst, before);
        assert_eq!(node.datapath.dump().unwrap().services, tables);
        let report = node.datapath.reconcile_all(&node.snapshot).unwrap();
        assert_eq!(report.operations, 0);
    });
}
