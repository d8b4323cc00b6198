//! The tests, in their order, for each kind of store; see the library for how they are run.

mod apply;
mod capabilities;
mod certificates;
mod faults;
mod findings;
mod names;
mod network;
mod nodes;
mod pods;
mod refusals;
mod rollout;
mod security;
mod semantics;
mod services;
mod streams;
mod traces;

use std::env;
use std::process::{ExitCode, exit};

use leme_tests_cluster::cluster::Store;
use leme_tests_cluster::session::{Session, Test};
use leme_tests_cluster::{client, tests};
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    if let Some(code) = client::main(&env::args().collect::<Vec<_>>()) {
        exit(code);
    }
    let mut arguments = Arguments::from_args();
    // One cluster, one thing at a time.
    arguments.test_threads = Some(1);
    let (embedded, etcd) = (Session::new(Store::Embedded), Session::new(Store::Etcd));
    let mut trials = embedded.trials(
        on_the_embedded_store(),
        ("down_leaves_nothing_behind_and_up_works_again", traces::down_leaves_nothing_behind_and_up_works_again),
    );
    // What a cluster wrote to an etcd stays there: no second one on top of it.
    trials.extend(etcd.trials(on_etcd(), ("down_leaves_nothing_behind", traces::down_leaves_nothing_behind)));
    let conclusion = libtest_mimic::run(&arguments, trials);
    embedded.end();
    etcd.end();
    conclusion.exit_code()
}

fn on_the_embedded_store() -> Vec<Test> {
    tests![
        nodes::up_ends_with_how_to_use_the_cluster,
        nodes::kubectl_knows_the_server_and_where_things_are,
        nodes::three_nodes_are_ready,
        nodes::a_node_is_described_whole,
        nodes::a_node_keeps_a_part_for_itself,
        nodes::conditions_are_there_for_scripts,
        nodes::up_of_a_running_cluster_changes_nothing,
        // Before tests listen in nodes themselves.
        security::nothing_listens_that_is_not_known,
        certificates::a_person_gets_a_certificate_once_it_is_approved,
        certificates::a_denied_request_stays_without_a_certificate,
        nodes::a_name_is_taken_once_on_the_machine,
        findings::status_shows_every_process_and_nothing_wrong,
        findings::an_agent_at_rest_keeps_little_memory,
        findings::what_disturbs_a_node_is_told_until_it_is_gone,
        pods::at_first_there_are_no_pods,
        pods::a_pod_is_created_and_runs,
        pods::a_pod_is_described_whole,
        pods::the_runtime_of_its_node_has_the_container_and_its_sandbox,
        pods::a_container_whose_process_is_killed_starts_again,
        pods::a_deleted_pod_is_gone,
        pods::replicas_are_on_different_nodes_with_unique_addresses,
        streams::logs_are_shown_and_followed,
        streams::commands_run_in_containers,
        streams::files_are_copied_both_ways,
        streams::ports_are_forwarded,
        network::pods_reach_pods_with_their_own_addresses,
        network::nodes_reach_pods,
        network::pods_reach_nodes,
        network::pods_reach_the_outside_as_their_node,
        services::exposing_gives_a_cluster_ip_and_a_node_port,
        services::a_cluster_ip_answers_pods_and_nodes_from_all_replicas,
        services::a_node_port_answers_from_all_replicas_whichever_node_is_asked,
        services::a_node_without_a_replica_forwards,
        services::load_balancers_learn_which_nodes_have_replicas,
        services::a_pod_reaches_itself_through_its_service,
        services::a_client_stays_with_one_replica_where_the_service_says_so,
        services::the_kernel_holds_what_the_endpoints_say,
        semantics::a_port_by_name_is_whatever_each_pod_calls_so,
        semantics::one_node_port_serves_streams_and_datagrams,
        semantics::addresses_of_load_balancers_and_external_ones_are_the_clusters,
        semantics::where_nobody_serves_clients_are_refused_at_once,
        semantics::nothing_for_a_cluster_ip_that_nobody_has_leaves_its_node,
        semantics::pods_that_are_not_ready_serve_whoever_wants_them_so,
        semantics::a_service_of_another_proxy_is_left_alone_until_it_is_ours,
        semantics::a_local_policy_keeps_traffic_on_its_node,
        semantics::clients_are_served_nearby_where_the_service_says_so,
        semantics::pods_in_their_nodes_network_ask_and_answer,
        semantics::a_name_for_another_name_is_followed,
        semantics::pods_that_end_are_spared_and_the_last_resort,
        capabilities::a_host_port_leads_to_its_pod_from_everywhere,
        capabilities::a_host_port_of_localhost_answers_there_alone,
        capabilities::a_bandwidth_reaches_the_kernel,
        capabilities::a_host_port_outlives_the_agent_and_goes_with_its_pod,
        names::names_of_services_resolve,
        names::headless_services_name_their_pods,
        names::addresses_resolve_to_names,
        names::nodes_ask_the_name_service_too,
        names::names_outside_of_the_cluster_are_forwarded,
        rollout::everything_is_listed,
        rollout::no_request_fails_while_a_deployment_changes,
        faults::a_part_that_is_told_to_end_does,
        faults::killing_the_agents_disturbs_nothing,
        faults::killing_the_server_loses_no_acknowledged_write,
        services::deleting_closes_the_node_port_and_removes_the_pods,
        apply::applying_twice_changes_nothing,
        apply::a_service_has_the_endpoints_of_its_pods,
        apply::an_api_of_old_is_refused,
        refusals::unknown_fields_are_named,
        refusals::a_bad_name_is_explained,
        refusals::malformed_input_is_told_apart,
        refusals::a_wrong_kind_and_an_unknown_path_are_refused,
        refusals::a_taken_node_port_is_refused,
        refusals::an_unknown_image_shows_on_the_pod,
        refusals::a_pod_that_does_not_fit_says_why,
        security::who_cannot_say_who_they_are_reads_nothing,
        security::a_pod_reaches_nothing_with_its_own_token,
        security::a_node_reads_and_writes_what_is_its_own,
        traces::no_packet_filter_rule_is_written,
        traces::the_product_has_no_tools_to_call,
        nodes::up_of_a_running_cluster_adds_a_node,
    ]
}

fn on_etcd() -> Vec<Test> {
    tests![
        pods::at_first_there_are_no_pods,
        pods::a_pod_is_created_and_runs,
        pods::a_pod_is_described_whole,
        pods::the_runtime_of_its_node_has_the_container_and_its_sandbox,
        pods::a_deleted_pod_is_gone,
        pods::replicas_are_on_different_nodes_with_unique_addresses,
        faults::killing_the_server_loses_no_acknowledged_write,
    ]
}
