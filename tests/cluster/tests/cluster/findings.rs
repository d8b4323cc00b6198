//! What stands in the network's way is told, with what to do about it, for as long as it does.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::Cluster;
use leme_tests_cluster::cluster::expect_all;
use leme_tests_cluster::command;
use leme_tests_cluster::wait::eventually;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn status_shows_every_process_and_nothing_wrong(cluster: &Cluster) -> Result<()> {
    let rows = status(cluster)?.1;
    ensure!(rows.len() == cluster.nodes.len(), "{} rows", rows.len());
    for row in &rows {
        let processes: Vec<_> = row["processes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        ensure!(["containerd", "agent", "dns"].iter().all(|name| processes.contains(name)), "{processes:?}");
    }
    eventually(LIMIT, "nothing is wrong", || {
        let (well, rows) = status(cluster)?;
        ensure!(well && rows.iter().all(|row| row["findings"] == Value::Array(Vec::new())), "{rows:#?}");
        Ok(())
    })
}

/// Its own memory, not the pages of the binary, which all of them share. Built without optimisation it takes twice as
/// much as a released one; before anything was given back it was 17 MiB in that.
pub(crate) fn an_agent_at_rest_keeps_little_memory(cluster: &Cluster) -> Result<()> {
    const MOST: u64 = 14 << 10;
    for node in &cluster.nodes {
        eventually(LIMIT, "what the start took is given back", || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.process(&node.name, "agent")?))?;
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
            let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
            ensure!(kilobytes < MOST, "{} holds {kilobytes} kB", node.name);
            Ok(())
        })?;
    }
    Ok(())
}

pub(crate) fn what_disturbs_a_node_is_told_until_it_is_gone(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes[1].name;
    disturb(cluster, node)?;
    let told = eventually(LIMIT, "it is told", || {
        let (well, rows) = status(cluster)?;
        let found = ids(&rows, node);
        ensure!(!well && found == BTreeSet::from(["kube-proxy-rules".into(), "strict-rp-filter".into()]), "{found:?}");
        Ok(())
    });
    let shown = told.and_then(|()| is_shown_everywhere(cluster, node));
    mend(cluster, node)?;
    shown?;
    eventually(LIMIT, "it is told no longer", || {
        let (well, rows) = status(cluster)?;
        ensure!(well && ids(&rows, node).is_empty(), "{rows:#?}");
        Ok(())
    })
}

/// A second way out, with the filter that breaks it, and rules as kube-proxy has them.
fn disturb(cluster: &Cluster, node: &str) -> Result<()> {
    on(cluster, node, "ip link add uplink1 type veth peer name wire1")?;
    on(cluster, node, "ip link set uplink1 up")?;
    on(cluster, node, "ip address add 192.0.2.1/24 dev uplink1")?;
    on(cluster, node, "sysctl -qw net.ipv4.conf.all.rp_filter=1")?;
    on(cluster, node, "nft add table ip kube-proxy")?;
    on(cluster, node, "nft add chain ip kube-proxy services")
}

fn mend(cluster: &Cluster, node: &str) -> Result<()> {
    on(cluster, node, "sysctl -qw net.ipv4.conf.all.rp_filter=0")?;
    on(cluster, node, "nft delete table ip kube-proxy")?;
    on(cluster, node, "ip link del uplink1")
}

/// For people, as an event, and as a metric.
fn is_shown_everywhere(cluster: &Cluster, node: &str) -> Result<()> {
    let text = command::run(&mut cluster.leme("status"), LIMIT)?.stdout;
    expect_all(
        &text,
        &["Ready, 2 warnings", "(strict-rp-filter)", "set net.ipv4.conf.all.rp_filter", "kube-proxy --cleanup"],
    )?;
    eventually(LIMIT, "there are events", || {
        let events = cluster.events(node)?;
        let reasons: Vec<_> = events.iter().map(|(reason, _)| reason.as_str()).collect();
        ensure!(reasons.contains(&"StrictRpFilter") && reasons.contains(&"KubeProxyRules"), "{reasons:?}");
        Ok(())
    })?;
    // On a node there is no cluster to be found, but an agent.
    let leme = leme_tests_cluster::cluster::binary();
    let words = [&*leme.to_string_lossy(), "status", "--state-dir", "/nowhere"];
    let alone = command::run(&mut cluster.on_node(node, &words), LIMIT)?;
    ensure!(!alone.success, "all is well, it says");
    expect_all(&alone.stdout, &[node, "Ready, 2 warnings", "(strict-rp-filter)"])?;
    let address = cluster.nodes.iter().find(|it| it.name == node).context("a node of the cluster")?.address;
    let metrics = leme_tests_cluster::client::fetch((address, 10256).into(), "/metrics")?;
    expect_all(&metrics, &["leme_findings{id=\"kube-proxy-rules\",severity=\"warning\"} 1", "# EOF"])
}

fn on(cluster: &Cluster, node: &str, words: &str) -> Result<()> {
    command::output(&mut cluster.on_node(node, &words.split(' ').collect::<Vec<_>>()), LIMIT).map(drop)
}

/// Whether everything is well, and a row per node.
fn status(cluster: &Cluster) -> Result<(bool, Vec<Value>)> {
    let outcome = command::run(&mut cluster.leme("status -o json"), LIMIT)?;
    let rows = serde_json::from_str(&outcome.stdout).with_context(|| outcome.stderr.clone())?;
    Ok((outcome.success, rows))
}

fn ids(rows: &[Value], node: &str) -> BTreeSet<String> {
    let row = rows.iter().find(|row| row["name"] == node);
    let findings = row.into_iter().flat_map(|row| row["findings"].as_array().into_iter().flatten());
    findings.filter_map(|finding| finding["id"].as_str().map(str::to_owned)).collect()
}
