//! What a pod asks of its node's network through the runtime and CNI: ports of the node, and a bandwidth.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::client::{ask_once, expect_refused};
use leme_tests_cluster::cluster::manifest;
use leme_tests_cluster::wait::eventually;
use leme_tests_cluster::{Cluster, Node, Place, Pod, outside, tables};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const INSIDE: u16 = 8088;
const EVERYWHERE: u16 = 8089;
const LOCALHOST: u16 = 8090;

pub(crate) fn a_host_port_leads_to_its_pod_from_everywhere(cluster: &Cluster) -> Result<()> {
    let (pod, home, other) = (host_port_pod(cluster)?, &cluster.nodes[0], &cluster.nodes[1]);
    let tools = cluster.tools()?;
    let (here, there) = (&tools[0], &tools[1]);
    for (place, address, wanted) in [
        (Place::Machine, home.address, Some(cluster.gateway())),
        (Place::Node(&other.name), home.address, Some(other.address)),
        (Place::Pod(here), home.address, Some(here.address)),
        (Place::Pod(there), home.address, Some(other.address)),
        // Which of its addresses the node takes towards its own pods is its own affair.
        (Place::Node(&home.name), home.address, None),
        (Place::Node(&home.name), Ipv4Addr::LOCALHOST, None),
    ] {
        let seen = ask_once(cluster, place, (address, EVERYWHERE).into(), "/")?;
        ensure!(wanted.is_none_or(|wanted| seen == wanted.to_string()), "{place} is seen as {seen}, not {wanted:?}");
    }
    expect_refused((other.address, EVERYWHERE).into())?;
    let table = tables::found(cluster, &home.name)?;
    let backends = table.get(&format!("*:{EVERYWHERE}/TCP")).context("no such frontend")?;
    ensure!(backends.iter().eq([&format!("{}:{INSIDE}", pod.address)]), "{backends:?}");
    Ok(())
}

pub(crate) fn a_host_port_of_localhost_answers_there_alone(cluster: &Cluster) -> Result<()> {
    let (_, home) = (host_port_pod(cluster)?, &cluster.nodes[0]);
    ask_once(cluster, Place::Node(&home.name), (Ipv4Addr::LOCALHOST, LOCALHOST).into(), "/")?;
    expect_refused((home.address, LOCALHOST).into())
}

pub(crate) fn a_bandwidth_reaches_the_kernel(cluster: &Cluster) -> Result<()> {
    let pod = host_port_pod(cluster)?;
    let rows = tables::rows(cluster, "endpoints", &pod.node)?;
    let row = rows.as_array().into_iter().flatten().find(|row| row["addr"] == pod.address.to_string());
    let limits = &row.with_context(|| format!("no {} in {rows}", pod.address))?["limits"];
    ensure!(limits["egress"]["bytes_per_second"] == 10_000_000 / 8, "{limits}");
    ensure!(limits["ingress"]["bytes_per_second"] == 1_000_000_000 / 8, "{limits}");
    Ok(())
}

pub(crate) fn a_host_port_outlives_the_agent_and_goes_with_its_pod(cluster: &Cluster) -> Result<()> {
    let (_, home) = (host_port_pod(cluster)?, &cluster.nodes[0]);
    restart_agent(cluster, home)?;
    ask_once(cluster, Place::Machine, (home.address, EVERYWHERE).into(), "/")?;
    cluster.kubectl(&["delete", "pod", "host-port"])?;
    expect_refused((home.address, EVERYWHERE).into())?;
    tables::check(cluster)
}

/// The pod on the first node, with a server in it; made on first use.
fn host_port_pod(cluster: &Cluster) -> Result<Pod> {
    if cluster.try_kubectl(&["get", "pod", "host-port"])?.success {
        return cluster.wait_for_pod("host-port");
    }
    let path = cluster.path("host-port.yaml");
    let text = fs::read_to_string(manifest("host-port.yaml"))?;
    fs::write(&path, text.replace("NODE", &cluster.nodes[0].name))?;
    cluster.kubectl(&["create", "-f", &path.to_string_lossy()])?;
    let pod = cluster.wait_for_pod("host-port")?;
    outside::echo_in_at(pod.process()?, (pod.address, INSIDE).into())?;
    Ok(pod)
}

/// Returns when the new agent has compared the tables with the cluster.
fn restart_agent(cluster: &Cluster, node: &Node) -> Result<()> {
    let old = cluster.process(&node.name, "agent")?;
    kill(Pid::from_raw(old), Signal::SIGKILL)?;
    eventually(Duration::from_secs(20), "the new agent has reconciled the tables", || {
        ensure!(cluster.process(&node.name, "agent")? != old, "no new agent");
        let metrics = ask_once(cluster, Place::Node(&node.name), (Ipv4Addr::LOCALHOST, 10256).into(), "/metrics")?;
        let count = metrics.lines().find(|line| line.starts_with("kubeproxy_sync_proxy_rules_duration_seconds_count"));
        ensure!(count.is_some_and(|line| !line.ends_with(" 0")), "not yet");
        Ok(())
    })
}
