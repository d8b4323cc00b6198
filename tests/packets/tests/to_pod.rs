use leme_tests_packets::{
    Frame, Row, Verdict, check,
    frame::{ACK, SYN},
    in_namespace,
    node::service,
};

#[test]
fn the_nodes_answer_to_a_pod_comes_from_the_service_it_asked() {
    in_namespace(service("api", "10.96.0.1", 30443, &[("10.89.0.11", "a")]), |node| {
        let (verdict, out) = node.run("from_pod", "pod2", &Frame::tcp("10.244.1.2:40000", "10.96.0.1:80", SYN));
        assert_eq!((verdict, out.facts().dst.to_string()), (Verdict::Pass, "10.89.0.11:8080".into()));
        let answer = Frame::tcp("10.89.0.11:8080", &out.facts().src.to_string(), SYN | ACK);
        let back = Frame::tcp("10.96.0.1:80", "10.244.1.2:40000", SYN | ACK);
        let (program, device, verdict) = ("to_pod", "pod2", Verdict::Pass);
        check(node, &[Row { name: "the answer", program, device, packet: answer, verdict, leaves: Some(back) }]);
    });
}

#[test]
fn the_nodes_own_packets_reach_a_pod_untouched() {
    in_namespace(Vec::new(), |node| {
        let probe = Frame::tcp("10.89.0.11:40000", "10.244.1.2:80", SYN);
        check(node, &[Row::untouched("a probe", "to_pod", "pod2", probe)]);
    });
}
