//! Every scenario, in every order of arrival, and step by step on simulated maps. `LEME_SCENARIO=name` runs one.

use leme_tests_scenarios::{ORDERS, Scenario};
use std::path::Path;

fn each_scenario(test: impl Fn(&str, &Scenario)) {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let wanted = std::env::var("LEME_SCENARIO").ok();
    let mut count = 0;
    for entry in std::fs::read_dir(cases).expect("the cases beside this crate") {
        let path = entry.expect("a file").path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if wanted.as_ref().is_some_and(|wanted| *wanted != name) {
            continue;
        }
        let scenario = Scenario::read(&path).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        test(&name, &scenario);
        count += 1;
    }
    assert!(count > 0, "no scenario ran");
}

#[test]
fn tables_follow_from_objects_in_whatever_order_they_arrive() {
    each_scenario(|name, scenario| {
        for (node, expected) in &scenario.steps[0].expected {
            for (order, feed) in ORDERS {
                let tables = scenario.tables(node, feed);
                assert_eq!(tables.trim(), expected.trim(), "{name}, node {node}, objects {order}");
            }
        }
    });
}

#[test]
fn every_packet_sees_the_state_before_a_step_or_the_state_after_it() {
    each_scenario(|name, scenario| {
        for node in scenario.nodes() {
            for at_once in [true, false] {
                scenario.run(node, at_once, |i, tables| {
                    for (_, expected) in scenario.steps[i].expected.iter().filter(|(other, _)| other == node) {
                        let how = if at_once { "at once" } else { "one by one" };
                        assert_eq!(tables.trim(), expected.trim(), "{name}, node {node}, after step {i} {how}");
                    }
                });
            }
        }
    });
}
