//! The ordeals, in their order, on one cluster; see the library.

mod agents;
mod devices;
mod pods;
mod services;

use std::env;
use std::process::{ExitCode, exit};

use anyhow::Result;
use leme_tests_cluster::cluster::Store;
use leme_tests_cluster::session::Session;
use leme_tests_cluster::{Cluster, client, tests};
use leme_tests_survival::{Census, Traffic};
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Some(code) = client::main(&env::args().collect::<Vec<_>>()) {
        exit(code);
    }
    let mut arguments = Arguments::from_args();
    // One cluster, one thing at a time.
    arguments.test_threads = Some(1);
    let session = Session::new(Store::Embedded);
    let ordeals = tests![
        agents::killed_agents_fail_no_request,
        agents::upgraded_agents_fail_no_request,
        devices::devices_that_flap_come_back_and_disturb_no_other_node,
        pods::pods_that_come_and_go_fail_no_request,
        services::services_that_change_fail_no_request_of_others,
    ];
    let mut trials = session.trials(ordeals, ("down_leaves_nothing_behind", down_leaves_nothing_behind));
    trials.extend(leme_tests_survival::earlier().map(|earlier| {
        Trial::test("agents_of_an_earlier_version_are_upgraded", move || {
            agents::agents_of_an_earlier_version_are_upgraded(earlier).map_err(|error| format!("{error:#}").into())
        })
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    session.end();
    conclusion.exit_code()
}

/// Traffic before, during and after an ordeal, and a count at both ends.
fn survive(cluster: &Cluster, ordeal: impl FnOnce() -> Result<()>) -> Result<()> {
    // What the traffic needs is made first, and stays.
    Traffic::start(cluster)?.stop_without_failure()?;
    let before = Census::take(cluster)?;
    let traffic = Traffic::start(cluster)?;
    ordeal()?;
    traffic.stop_without_failure()?;
    before.expect_nothing_more(cluster)
}

fn down_leaves_nothing_behind(cluster: Cluster) -> Result<()> {
    cluster.down()?;
    cluster.before.expect_nothing_new()
}
