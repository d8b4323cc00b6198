//! Questions and answers as a table; the cluster they are about is in `zone`.

use super::*;
use serde_json::{Value, json};

fn service(name: &str, spec: Value) -> core::Service {
    serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec})).unwrap()
}

fn slice(name: &str, service: &str, endpoints: Value) -> discovery::EndpointSlice {
    let labels = json!({"kubernetes.io/service-name": service});
    let meta = json!({"namespace": "ns", "name": name, "labels": labels});
    let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
    serde_json::from_value(json!({"metadata": meta, "addressType": "IPv4", "ports": ports, "endpoints": endpoints}))
        .unwrap()
}

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local");
    let http = json!([{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    zone.upsert_service(&service(
        "web",
        json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20"], "ports": http}),
    ));
    zone.upsert_service(&service("db", json!({"clusterIP": "None", "ports": http})));
    zone.upsert_service(&service("empty", json!({"clusterIP": "None", "ports": http})));
    zone.upsert_service(&service("eager", json!({"clusterIP": "None", "publishNotReadyAddresses": true})));
    zone.upsert_service(&service("far", json!({"type": "ExternalName", "externalName": "example.org"})));
    let pods = json!([
        {"addresses": ["10.244.1.5"], "conditions": {"ready": true}, "hostname": "db-0"},
        {"addresses": ["10.244.2.6"], "conditions": {}},
        {"addresses": ["10.244.2.7"], "conditions": {"ready": false}},
    ]);
    zone.upsert_slice(&slice("db-1", "db", pods));
    zone.upsert_slice(&slice(
        "eager-1",
        "eager",
        json!([{"addresses": ["10.244.2.7"], "conditions": {"ready": false}}]),
    ));
    zone
}

fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
    let text = |records: &[Record]| records.iter().map(|r| r.data.to_string()).collect::<Vec<_>>().join(" | ");
    match zone.answer(&Name::from_ascii(name).unwrap(), kind) {
        Answer::Found { answers, additionals } if additionals.is_empty() => text(&answers),
        Answer::Found { answers, additionals } => format!("{} + {}", text(&answers), text(&additionals)),
        Answer::NoData => "NODATA".into(),
        Answer::NoSuchName => "NXDOMAIN".into(),
        Answer::Elsewhere => "ELSEWHERE".into(),
    }
}

#[test]
fn questions_are_answered_as_the_specification_says() {
    use RecordType::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
    let zone = zone();
    let db0 = "db-0.db.ns.svc.cluster.local.";
    let db1 = "10-244-2-6.db.ns.svc.cluster.local.";
    let both = format!("0 100 8080 {db0} | 0 100 8080 {db1} + 10.244.1.5 | 10.244.2.6");
    let rows: &[(&str, RecordType, &str)] = &[
        ("web.ns.svc.cluster.local.", A, "10.96.0.20"),
        ("WEB.ns.Svc.CLUSTER.local.", A, "10.96.0.20"),
        ("web.ns.svc.cluster.local.", AAAA, "NODATA"),
        ("web.ns.svc.cluster.local.", TXT, "NODATA"),
        ("_http._tcp.web.ns.svc.cluster.local.", SRV, "0 100 80 web.ns.svc.cluster.local. + 10.96.0.20"),
        ("_dns._udp.web.ns.svc.cluster.local.", SRV, "0 100 53 web.ns.svc.cluster.local. + 10.96.0.20"),
        ("_http._udp.web.ns.svc.cluster.local.", SRV, "NXDOMAIN"),
        ("_http._tcp.web.ns.svc.cluster.local.", A, "NODATA"),
        ("_tcp.web.ns.svc.cluster.local.", A, "NODATA"),
        ("db.ns.svc.cluster.local.", A, "10.244.1.5 | 10.244.2.6"),
        ("db-0.db.ns.svc.cluster.local.", A, "10.244.1.5"),
        ("10-244-2-6.db.ns.svc.cluster.local.", A, "10.244.2.6"),
        ("10-244-2-7.db.ns.svc.cluster.local.", A, "NXDOMAIN"),
        ("_http._tcp.db.ns.svc.cluster.local.", SRV, &both),
        ("empty.ns.svc.cluster.local.", A, "NXDOMAIN"),
        ("eager.ns.svc.cluster.local.", A, "10.244.2.7"),
        ("far.ns.svc.cluster.local.", A, "example.org."),
        ("far.ns.svc.cluster.local.", CNAME, "example.org."),
        ("none.ns.svc.cluster.local.", A, "NXDOMAIN"),
        ("web.other.svc.cluster.local.", A, "NXDOMAIN"),
        ("ns.svc.cluster.local.", A, "NODATA"),
        ("other.svc.cluster.local.", A, "NXDOMAIN"),
        ("svc.cluster.local.", A, "NODATA"),
        ("10-244-1-5.ns.pod.cluster.local.", A, "10.244.1.5"),
        ("10-244-1-5.ns.pod.cluster.local.", AAAA, "NODATA"),
        ("web.ns.pod.cluster.local.", A, "NXDOMAIN"),
        ("dns-version.cluster.local.", TXT, "1.1.0"),
        ("nonsense.cluster.local.", A, "NXDOMAIN"),
        ("example.org.ns.svc.cluster.local.", A, "NXDOMAIN"),
        ("cluster.local.", SOA, "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"),
        ("20.0.96.10.in-addr.arpa.", PTR, "web.ns.svc.cluster.local."),
        ("5.1.244.10.in-addr.arpa.", PTR, db0),
        ("9.9.9.9.in-addr.arpa.", PTR, "ELSEWHERE"),
        ("example.org.", A, "ELSEWHERE"),
        ("notcluster.local.", A, "ELSEWHERE"),
    ];
    for (name, kind, expected) in rows {
        assert_eq!(ask(&zone, name, *kind), *expected, "{name} {kind}");
    }
}

#[test]
fn what_is_deleted_or_moved_leaves_no_answer_behind() {
    let mut zone = zone();
    zone.upsert_service(&service("web", json!({"clusterIP": "10.96.0.21"})));
    assert_eq!(ask(&zone, "20.0.96.10.in-addr.arpa.", RecordType::PTR), "ELSEWHERE");
    zone.upsert_slice(&slice("db-1", "empty", json!([{"addresses": ["10.244.1.5"]}])));
    assert_eq!(ask(&zone, "db.ns.svc.cluster.local.", RecordType::A), "NXDOMAIN");
    assert_eq!(ask(&zone, "empty.ns.svc.cluster.local.", RecordType::A), "10.244.1.5");
    zone.delete_slice(&Key::new("ns", "db-1"));
    assert_eq!(ask(&zone, "empty.ns.svc.cluster.local.", RecordType::A), "NXDOMAIN");
    for name in ["web", "db", "empty", "eager", "far"] {
        zone.delete_service(&Key::new("ns", name));
    }
    assert_eq!(ask(&zone, "ns.svc.cluster.local.", RecordType::A), "NXDOMAIN");
    assert!(zone.services.is_empty() && zone.by_address.is_empty());
}
