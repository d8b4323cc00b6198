//! Agents are killed, and replaced by others with other maps.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leme_abi::{Endpoint, Service};
use leme_tests_cluster::cluster::{Store, binary};
use leme_tests_cluster::wait::eventually;
use leme_tests_cluster::{Cluster, Node, client, tables};
use leme_tests_packets::bpf::{Layout, RawMap};
use leme_tests_survival::{Traffic, scale};
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

/// Each has larger tables of connections than the one before, and finds Services and endpoints in maps of another
/// layout, as another version leaves them: programs and maps are exchanged under traffic, the maps' entries copied.
pub(crate) fn upgraded_agents_fail_no_request(cluster: &Cluster) -> Result<()> {
    let mut agents: BTreeMap<&str, Replacement> = BTreeMap::new();
    let node = &cluster.nodes[0];
    let room = connections(node)?;
    survive(cluster, || {
        for round in 1..=scale(20, 3) {
            let node = &cluster.nodes[round % cluster.nodes.len()];
            let size = room + 4_096 * u32::try_from(round)?;
            let agent = Replacement::put(cluster, node, &["--conntrack-min", &size.to_string()], relay)?;
            agents.insert(&node.name, agent);
            expect_own_layouts(node)?;
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

/// A cluster of an earlier version, whose agents make way for this one's, one after the other, under traffic: programs and
/// maps are really others.
pub(crate) fn agents_of_an_earlier_version_are_upgraded(earlier: PathBuf) -> Result<()> {
    let mut cluster = Cluster::up_with(Store::Embedded, earlier.clone())?;
    let traffic = Traffic::start(&cluster)?;
    let put = |node: &Node| Replacement::put(&cluster, node, &[], |_| Ok(()));
    let agents = cluster.nodes.iter().map(put).collect::<Result<Vec<_>>>()?;
    cluster.binary = binary();
    tables::check(&cluster)?;
    traffic.stop_without_failure()?;
    cluster.nodes.iter().try_for_each(expect_own_layouts)?;
    // Who has made it takes it down.
    cluster.binary = earlier;
    cluster.down()?;
    drop(agents);
    cluster.before.expect_nothing_new()
}

/// Maps that the agent alone writes, and by how much their values were longer or shorter in another version.
const RELAID: [(&str, i32); 4] = [("services", -4), ("endpoints", 8), ("backends", 4), ("node_addresses", 4)];

fn pins(node: &Node) -> PathBuf {
    Path::new("/sys/fs/bpf/leme").join(&node.name)
}

/// Makes a dead agent's maps those of another version: its programs go on with the ones they have, into which nobody
/// writes any more, and the next agent finds the same entries in another layout.
fn relay(node: &Node) -> Result<()> {
    RELAID.iter().try_for_each(|(map, more)| {
        let other = |layout: Layout| Layout { value: layout.value.saturating_add_signed(*more), ..layout };
        RawMap::relay(&pins(node).join(map), other).with_context(|| format!("{map} of {}", node.name))
    })
}

/// As this version has them, and nothing is left of others.
fn expect_own_layouts(node: &Node) -> Result<()> {
    let value = |map: &str| anyhow::Ok(RawMap::open(&pins(node).join(map))?.layout.value as usize);
    ensure!(value("services")? == size_of::<Service>(), "services are as in another version");
    ensure!(value("endpoints")? == size_of::<Endpoint>(), "endpoints are as in another version");
    for pin in fs::read_dir(pins(node))? {
        let name = pin?.file_name().into_string().unwrap_or_default();
        ensure!(!name.ends_with("-old"), "{name} is left of the version before");
    }
    Ok(())
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
    /// The same as before with the binary under test and another flag, whose place is last; while there is no agent,
    /// something may happen to what it has left.
    fn put(cluster: &Cluster, node: &Node, flag: &[&str], meanwhile: fn(&Node) -> Result<()>) -> Result<Self> {
        let old = cluster.process(&node.name, "agent")?;
        let mut command = Self::command(cluster, node, old, flag)?;
        kill(Pid::from_raw(old), Signal::SIGKILL)?;
        meanwhile(node)?;
        let child = command.spawn()?;
        fs::write(cluster.node_folder(&node.name).join("pids/agent.pid"), child.id().to_string())?;
        let replacement = Self(child);
        await_agent(cluster, node, old)?;
        Ok(replacement)
    }

    fn command(cluster: &Cluster, node: &Node, old: i32, flag: &[&str]) -> Result<Command> {
        let line = fs::read_to_string(format!("/proc/{old}/cmdline"))?;
        let mut words: Vec<&str> = line.split('\0').filter(|word| !word.is_empty()).collect();
        let known = words.iter().position(|word| flag.first() == Some(word)).unwrap_or(words.len());
        words.truncate(known);
        words.extend(flag);
        let binary = binary();
        words[0] = binary.to_str().context("a path that is no text")?;
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
