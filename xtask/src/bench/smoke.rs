//! `cargo xtask bench smoke`: the figures of the README, each beside what it is to be judged by.
//!
//! Loads are short and bounded; the machine should have nothing else to do, and its load is told with the figures.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use leme_measure::machine::Machine;
use leme_measure::{Measurement, Row, measurement, row};

use super::cluster::Cluster;
use super::memory;
use super::programs::{self, Programs};
use crate::step::{command, output, require_root, say};
use crate::{images, registry, setup};

#[derive(Args)]
pub(crate) struct Options {
    /// Measure this `leme` instead of building the release; `leme-cni` lies beside it, and `leme-bench` may
    #[arg(long, value_name = "FILE")]
    bin: Option<PathBuf>,
    /// Write the rows as JSON lines, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Starts of a cluster and of a server
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    runs: u8,
    /// Pairs of pods, and pairs of bursts of load
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..))]
    pairs: u8,
}

/// Before memory counts as at rest.
const QUIET: Duration = Duration::from_secs(10);

pub(crate) fn run(options: &Options) -> Result<()> {
    require_root("measuring a local cluster")?;
    setup::run()?;
    let Programs { leme, tool } = Programs::find(options.bin.as_deref())?;
    images::push_all(registry::start()?)?;
    println!("{}, {}\n", programs::subject(options.bin.as_deref()), Machine::here());
    let rows: Vec<_> = measure(&leme, &tool, options)?.into_iter().filter_map(Row::of).collect();
    println!("{}", row::table(&rows));
    options.json.as_deref().map_or(Ok(()), |path| row::write_json(&rows, path))
}

fn measure(leme: &Path, tool: &Path, options: &Options) -> Result<Vec<Measurement>> {
    Cluster::with(leme, |cluster| {
        let mut all = vec![starts(cluster, options.runs)?];
        all.extend(server_starts(leme, tool, options.runs)?);
        all.extend(resting(cluster)?);
        all.extend(pods(cluster, tool, options.pairs)?);
        all.extend(services(cluster, tool, options.pairs)?);
        Ok(all)
    })
}

/// The last of the clusters stays, for what follows.
fn starts(cluster: &Cluster, runs: u8) -> Result<Measurement> {
    say(&format!("Starting a cluster of three nodes, {runs} times"));
    let mut seconds = Vec::new();
    for run in 0..runs {
        if run > 0 {
            cluster.down()?;
        }
        seconds.push(cluster.up()?.as_secs_f64());
    }
    Ok(Measurement::new("up: three nodes Ready, names resolve", "leme", "s", seconds))
}

fn server_starts(leme: &Path, tool: &Path, runs: u8) -> Result<Vec<Measurement>> {
    say(&format!("Starting a server, {runs} times"));
    let folder = tempfile::tempdir()?;
    let mut ready = command(tool);
    ready.args(["ready", "--runs", &runs.to_string(), "--bin"]).arg(leme).arg("--folder").arg(folder.path());
    measurement::parse(&output(&mut ready)?)
}

fn resting(cluster: &Cluster) -> Result<Vec<Measurement>> {
    say("Waiting for quiet");
    sleep(QUIET);
    let rows = [
        memory::at_rest("server", &[cluster.server()?])?,
        memory::at_rest("agent, each node's", &cluster.on_each_node("pids/agent.pid")?)?,
        memory::at_rest("name server, each node's", &cluster.on_each_node("run/leme/dns.pid")?)?,
        memory::at_rest("supervisor, each node's", &cluster.on_each_node("pids/supervisor.pid")?)?,
    ];
    Ok(rows.into_iter().flatten().collect())
}

fn pods(cluster: &Cluster, tool: &Path, pairs: u8) -> Result<Vec<Measurement>> {
    say(&format!("Starting {pairs} pods, through the API and through the runtime alone in turn"));
    let node = Cluster::node(2);
    let mut pods = command(tool);
    pods.arg("pods").arg("--kubeconfig").arg(cluster.kubeconfig()).args(["--node", &node, "--socket"]);
    pods.arg(cluster.runtime_socket(2)).args(["--cgroup", &format!("/leme/{node}/bench")]);
    measurement::parse(&output(pods.args(["--runs", &pairs.to_string()]))?)
}

fn services(cluster: &Cluster, tool: &Path, pairs: u8) -> Result<Vec<Measurement>> {
    say(&format!("Loading a Service and its pod's own address, {pairs} pairs of bursts for each kind of load"));
    let mut services = command(tool);
    services.arg("services").arg("--kubeconfig").arg(cluster.kubeconfig());
    services.args(["--near", &Cluster::node(2), "--far", &Cluster::node(3)]);
    measurement::parse(&output(services.args(["--pairs", &pairs.to_string()]))?)
}
