//! `cargo xtask bench smoke`: the figures of the README, each beside what it is to be judged by.
//!
//! Loads are short and bounded; the machine should have nothing else to do, and its load is told with the figures.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use super::cluster::Cluster;
use super::measurement::{self, Measurement};
use super::memory;
use super::row::{self, Row};
use crate::step::{self, cargo, command, output, require_root, say};
use crate::{build, images, place, registry, setup};

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
    let (leme, tool) = programs(options.bin.as_deref())?;
    images::push_all(registry::start()?)?;
    describe(options.bin.as_deref());
    let rows: Vec<_> = measure(&leme, &tool, options)?.into_iter().filter_map(Row::of).collect();
    println!("{}", row::table(&rows));
    options.json.as_deref().map_or(Ok(()), |path| row::write_json(&rows, path))
}

/// `leme`, and the measuring program as released too: what it costs itself is part of every figure.
fn programs(bin: Option<&Path>) -> Result<(PathBuf, PathBuf)> {
    let leme = match bin {
        Some(leme) => fs::canonicalize(leme).with_context(|| format!("no {}", leme.display()))?,
        None => build::build(&build::Options { release: true })?.leme,
    };
    let beside = leme.with_file_name("leme-bench");
    if bin.is_some() && beside.exists() {
        return Ok((leme, beside));
    }
    say("Building leme-bench");
    let mut build = cargo();
    build.args(["build", "--release", "-p", "leme-bench"]);
    // Chosen together, all have the dependencies' features in common: nothing is compiled twice.
    build.args(if bin.is_none() { &["-p", "leme", "-p", "leme-cni"][..] } else { &[] });
    step::run(&mut build)?;
    Ok((leme, place::target().join("release/leme-bench")))
}

/// Figures without their machine say nothing.
fn describe(bin: Option<&Path>) {
    let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpuinfo = line("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let (kernel, load) = (line("/proc/sys/kernel/osrelease"), line("/proc/loadavg"));
    let commit = || output(command("git").current_dir(place::workspace()).args(["describe", "--always", "--dirty"]));
    let subject = match bin {
        Some(bin) => bin.display().to_string(),
        None => format!("commit {}", commit().unwrap_or_default().trim()),
    };
    println!(
        "{subject}, {processors} × {}, Linux {kernel}, load before {}\n",
        model.1,
        load.split(' ').next().unwrap_or_default()
    );
}

fn measure(leme: &Path, tool: &Path, options: &Options) -> Result<Vec<Measurement>> {
    let cluster = Cluster::of(leme)?;
    let mut all = vec![starts(&cluster, options.runs)?];
    all.extend(server_starts(leme, tool, options.runs)?);
    all.extend(resting(&cluster)?);
    all.extend(pods(&cluster, tool, options.pairs)?);
    all.extend(services(&cluster, tool, options.pairs)?);
    Ok(all)
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
