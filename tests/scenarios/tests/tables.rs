//! Every scenario, in every order of arrival. `LEME_SCENARIO=name` runs one.

use leme_tests_scenarios::{ORDERS, Scenario};
use std::path::Path;

#[test]
fn tables_follow_from_objects_in_whatever_order_they_arrive() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let wanted = std::env::var("LEME_SCENARIO").ok();
    let mut count = 0;
    for entry in std::fs::read_dir(cases).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if wanted.as_ref().is_some_and(|wanted| *wanted != name) {
            continue;
        }
        let scenario = Scenario::read(&path).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        for (node, expected) in &scenario.expected {
            for (order, feed) in ORDERS {
                let tables = scenario.tables(node, feed);
                assert_eq!(tables.trim(), expected.trim(), "{name}, node {node}, objects {order}");
                count += 1;
            }
        }
    }
    assert!(count > 0, "no scenario ran");
}
