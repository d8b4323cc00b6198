//! Agents are killed, and replaced by others with other maps.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::wait::eventually;
use leme_tests_cluster::{Cluster, Node, client, tables};
use leme_tests_survival::scale;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::survive;

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn killed_agents_fail_no_request(cluster: &Cluster) -> Result<()> {
    survive(cluster, || {
        for round in 0..scale(100, 15) {
            let node = &cluster.nodes[round % cluster.nodes.len()];
            let old = cluster.process(&node.name, "agent")?;
            kill(Pid::from_raw(old), Signal::SIGKILL)?;
            await_agent(cluster, node, old)?;
        }
        tables::check(cluster)
    })
}

/// Until another agent has the node's network in its hands: it says so itself.
fn await_agent(cluster: &Cluster, node: &Node, old: i32) -> Result<()> {
    eventually(LIMIT, &format!("{} has another agent", node.name), || {
        let new = cluster.process(&node.name, "agent")?;
        ensure!(new != old && kill(Pid::from_raw(new), None).is_ok(), "not started yet");
        client::fetch((node.address, 10256).into(), "/livez").map(drop)
    })
}

/// Each has larger tables of connections than the one before, so that programs and maps are exchanged under traffic:
/// the maps' entries are copied, and the programs that use the new ones take the old ones' place.
pub(crate) fn upgraded_agents_fail_no_request(cluster: &Cluster) -> Result<()> {
    let mut agents: BTreeMap<&str, Replacement> = BTreeMap::new();
    let node = &cluster.nodes[0];
    let room = connections(node)?;
    survive(cluster, || {
        for round in 1..=scale(20, 6) {
            let node = &cluster.nodes[round % cluster.nodes.len()];
            let agent = Replacement::put(cluster, node, room + 4_096 * u32::try_from(round)?)?;
            agents.insert(&node.name, agent);
        }
        tables::check(cluster)?;
        let grown = connections(node)?;
        ensure!(grown > room, "there is room for {grown} connections, as before");
        // The last word is the product's own agents': they are counted as before, on larger maps.
        let last: Vec<_> =
            cluster.nodes.iter().map(|node| cluster.process(&node.name, "agent")).collect::<Result<_>>()?;
        agents.clear();
        cluster.nodes.iter().zip(last).try_for_each(|(node, old)| await_agent(cluster, node, old))
    })
}

/// How much room there is: a gauge that the agent shows.
fn connections(node: &Node) -> Result<u32> {
    let metrics = client::fetch((node.address, 10256).into(), "/metrics")?;
    let line = metrics.lines().find(|line| line.starts_with("leme_map_capacity") && line.contains("\"conntrack\""));
    let value = line.and_then(|line| line.rsplit(' ').next()).context("no such metric")?;
    Ok(value.parse::<f64>()? as u32)
}

/// An agent that this test has put in the place of a node's, whose supervisor adopts it by its pid file. It is reaped when
/// the next one has taken its place: until then the supervisor would take it for alive.
struct Replacement(Child);

impl Replacement {
    fn put(cluster: &Cluster, node: &Node, connections: u32) -> Result<Self> {
        let old = cluster.process(&node.name, "agent")?;
        let mut command = Self::command(cluster, node, old, connections)?;
        kill(Pid::from_raw(old), Signal::SIGKILL)?;
        let child = command.spawn()?;
        fs::write(cluster.node_folder(&node.name).join("pids/agent.pid"), child.id().to_string())?;
        let replacement = Self(child);
        await_agent(cluster, node, old)?;
        Ok(replacement)
    }

    /// The same as before with another size, which the last flag decides.
    fn command(cluster: &Cluster, node: &Node, old: i32, connections: u32) -> Result<Command> {
        let line = fs::read_to_string(format!("/proc/{old}/cmdline"))?;
        let words: Vec<&str> = line.split('\0').filter(|word| !word.is_empty()).collect();
        let known = words.iter().position(|word| *word == "--conntrack-min").unwrap_or(words.len());
        let size = connections.to_string();
        let words = [&words[..known], &["--conntrack-min", &size]].concat();
        let log = cluster.node_folder(&node.name).join("log/agent.log");
        let log = fs::File::options().append(true).open(log)?;
        let mut command = cluster.on_node(&node.name, &words);
        command.env("PATH", cluster.path("bin")).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
