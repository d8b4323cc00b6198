//! Tables are read whole, however many entries they have and whatever kind of map holds them.

use leme_tests_packets::in_namespace;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// More than one system call reads.
const NODES: u32 = 5_000;

fn nodes() -> Vec<Value> {
    let node = |n: u32| {
        let (high, low) = (n / 250, n % 250);
        json!({"kind": "Node", "metadata": {"name": format!("n{n}")},
            "spec": {"podCIDRs": [format!("10.{}.{low}.0/24", 100 + high)]},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("10.90.{high}.{}", 1 + low)}]}})
    };
    (0..NODES).map(node).collect()
}

#[test]
fn thousands_of_routes_are_read_whole_and_taken_over_by_the_next_agent() {
    in_namespace(nodes(), |node| {
        let pins = node.datapath.config().pin_dir.clone();
        let before: Vec<_> = leme_datapath::routes(&pins).unwrap().into_iter().map(|row| row.prefix).collect();
        // Those of the nodes, of `a` and `b`, and the unclaimed rest.
        assert!(before.len() > NODES as usize + 2, "{}", before.len());
        node.restart();
        let after: Vec<_> = leme_datapath::routes(&pins).unwrap().into_iter().map(|row| row.prefix).collect();
        assert_eq!(before, after);
        assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), before.len(), "none is read twice");
        let report = node.datapath.reconcile_all(&node.snapshot).unwrap();
        assert_eq!(report.operations, 0, "nothing is left to write");
    });
}
