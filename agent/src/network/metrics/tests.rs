use super::*;
use std::collections::BTreeSet;

use leme_cni::Failure;

const DASHBOARD: &str = include_str!("../../../../dashboards/leme-network.json");

/// Everything has happened once.
fn busy() -> String {
    let metrics = Metrics::default();
    metrics.synced(Report { services: 1, operations: 5, deserted: false }, Duration::from_millis(3));
    metrics.arrived(Duration::from_millis(2));
    metrics.programmed(Duration::from_millis(300));
    metrics.failed();
    metrics.known(7);
    metrics.connections(Collected { live: 10, removed: 2, capacity: 100 });
    metrics.cni(Command::Add, &Reply::Done, Duration::from_millis(30));
    metrics.cni(Command::Check, &Reply::Failed(Failure::new(100, "gone", "")), Duration::from_millis(1));
    metrics.found([("foreign-xdp", "warning"); 2].into_iter());
    let row =
        |reason: &str, packets| CounterRow { reason: reason.into(), direction: "egress".into(), packets, bytes: 9 };
    metrics.render(&Measured {
        counters: vec![row("forwarded", 11), row("no_route", 4)],
        maps: vec![MapFill { map: "nat", entries: 20, capacity: 200 }],
        addresses: (3, 250),
    })
}

#[test]
fn figures_appear_under_their_names() {
    let text = busy();
    for line in [
        "leme_forwarded_packets_total{direction=\"egress\"} 11",
        "leme_dropped_packets_total{reason=\"no_route\",direction=\"egress\"} 4",
        "leme_map_entries{map=\"nat\"} 20",
        "leme_map_capacity{map=\"nat\"} 200",
        "leme_connections 10",
        "leme_connections_collected_total 2",
        "leme_cni_requests_total{verb=\"CHECK\",code=\"100\"} 1",
        "leme_cni_request_duration_seconds_count{verb=\"ADD\"} 1",
        "leme_pod_addresses_used 3",
        "leme_reconcile_failures_total 1",
        "leme_findings{id=\"foreign-xdp\",severity=\"warning\"} 2",
        "leme_map_operations_total 5",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv4\"} 1",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.25\",ip_family=\"IPv4\"} 0",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv4\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    let memory = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    assert!(memory.unwrap().parse::<u64>().unwrap() > 1 << 20);
}

#[test]
fn what_is_no_longer_wrong_is_no_longer_told() {
    let metrics = Metrics::default();
    metrics.found([("foreign-xdp", "warning")].into_iter());
    metrics.found([].into_iter());
    assert!(!metrics.render(&Measured::default()).contains("foreign-xdp"));
}

#[test]
fn every_metric_has_help_and_a_type() {
    let text = busy();
    let of = |what: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(what));
        lines.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
    };
    assert_eq!(of("# HELP "), of("# TYPE "));
    assert!(of("# TYPE ").len() > 20);
}

#[test]
fn upstreams_buckets() {
    let buckets: Vec<f64> = programming_buckets().collect();
    assert_eq!(buckets.len(), 80);
    assert_eq!((buckets[0], buckets[2], buckets[60], buckets[61], buckets[79]), (0.25, 1.0, 59.0, 60.0, 300.0));
}

/// Metric names of an expression: what stands before braces and is no function, keyword or label.
fn names(expression: &str) -> BTreeSet<String> {
    let mut outside = String::new();
    let mut depth = 0;
    for character in expression.chars() {
        depth += i32::from(matches!(character, '{' | '[')) - i32::from(matches!(character, '}' | ']'));
        outside.push(if depth == 0 { character } else { ' ' });
    }
    let words = outside.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words
        .filter(|word| word.starts_with("leme_") || word.contains("proxy_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_dashboard_draws_metrics_that_exist() {
    let text = busy();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let known: BTreeSet<String> = samples.filter_map(|line| line.split(['{', ' ']).next().map(str::to_owned)).collect();
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut drawn = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let found = names(expression);
            assert!(!found.is_empty(), "{expression} names no metric of ours");
            assert!(found.is_subset(&known), "{expression}: {:?} do not exist", found.difference(&known));
            drawn.extend(found);
        }
    }
    assert!(drawn.len() > 12, "{drawn:?}");
}

#[test]
fn grafana_can_import_the_dashboard() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36);
    assert!(dashboard["id"].is_null(), "an id belongs to one Grafana");
    assert!(dashboard["title"].is_string() && dashboard["uid"].is_string());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert!(
        variables
            .iter()
            .any(|it| it["type"] == "datasource" && it["name"] == "datasource" && it["query"] == "prometheus")
    );
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "an id twice");
        let place = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(place[0] + place[2] <= 24, "{} is wider than the grid", panel["title"]);
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
}
