//! `cargo xtask bench net`: the datapath beside rule sets of the same Services in the structure that kube-proxy writes,
//! beside a plain bridge with the kernel's VXLAN, and beside the pods' own addresses.
//!
//! `leme-bench net` measures in namespaces of its own, `leme-bench agent` in a local cluster; here their lines become
//! rows, a table, JSON and a page.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use leme_measure::machine::Machine;
use leme_measure::report::Report;
use leme_measure::{Measurement, Row, measurement, row};

use super::cluster::Cluster;
use super::programs::{self, Programs};
use crate::step::{command, output, require_root, say};
use crate::{images, registry, setup};

#[derive(Args)]
pub(crate) struct Options {
    /// Measure with this `leme` and the `leme-bench` beside it instead of building the release
    #[arg(long, value_name = "FILE")]
    bin: Option<PathBuf>,
    /// Write the rows as JSON lines, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Fewer Services and shorter bursts: under three minutes instead of twenty
    #[arg(long)]
    quick: bool,
    /// Only these parts: same-node, across-nodes, node-port-local, node-port-remote, hooks, programming, agent
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    parts: Vec<String>,
    /// How many Services are loaded, each number in turn
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    services: Vec<u32>,
    /// Bursts on each subject
    #[arg(long)]
    rounds: Option<u16>,
    /// Measure nothing: make the table and the page of rows that were written with --json
    #[arg(long, value_name = "FILES", num_args = 1..)]
    from: Vec<PathBuf>,
}

const ABOUT: &str = "The same pods, clients and servers on two nodes and outside, in network namespaces of one machine; \
    what forwards between them differs. All subjects take turns in bursts of some tens of milliseconds; a ratio is of \
    two bursts of the same round.";
/// The part that needs a cluster.
const AGENT: &str = "agent";

pub(crate) fn run(options: &Options) -> Result<()> {
    let machine = Machine::here();
    let rows = match options.from.as_slice() {
        [] => measure(options)?,
        files => files.iter().map(|file| row::read_json(file)).collect::<Result<Vec<_>>>()?.concat(),
    };
    println!("{}, {machine}\n\n{}", programs::subject(options.bin.as_deref()), row::table(&rows));
    if let Some(path) = &options.json {
        row::write_json(&rows, path)?;
    }
    options.html.as_deref().map_or(Ok(()), |path| write_page(options, &machine, &rows, path))
}

fn measure(options: &Options) -> Result<Vec<Row>> {
    require_root("measuring networks")?;
    setup::for_tests()?;
    let programs = Programs::find(options.bin.as_deref())?;
    let (agent, others): (Vec<_>, Vec<_>) = options.parts.iter().map(String::as_str).partition(|part| *part == AGENT);
    let mut all = Vec::new();
    if options.parts.is_empty() || !others.is_empty() {
        say("Measuring in namespaces");
        all.extend(lines_of(net(&programs.tool, options, &others))?);
    }
    if options.parts.is_empty() || !agent.is_empty() {
        all.extend(measure_agent(&programs, options)?);
    }
    Ok(all.into_iter().filter_map(Row::of).collect())
}

fn net(tool: &Path, options: &Options, parts: &[&str]) -> Command {
    let mut net = command(tool);
    net.arg("net");
    let rounds = options.rounds.or(options.quick.then_some(6));
    if let Some(rounds) = rounds {
        net.args(["--rounds", &rounds.to_string()]);
    }
    if options.quick {
        net.args(["--millis", "40"]);
    }
    let services: Vec<_> = match (options.services.as_slice(), options.quick) {
        ([], true) => vec!["1".to_owned(), "10000".to_owned()],
        (numbers, _) => numbers.iter().map(u32::to_string).collect(),
    };
    for (name, values) in [("--parts", parts.join(",")), ("--services", services.join(","))] {
        if !values.is_empty() {
            net.args([name, &values]);
        }
    }
    net
}

/// The agent of a real node: its memory and its processor time with many Services, at rest and while they change.
fn measure_agent(programs: &Programs, options: &Options) -> Result<Vec<Measurement>> {
    say("Measuring an agent in a cluster");
    images::push_all(registry::start()?)?;
    Cluster::with(&programs.leme, |cluster| {
        cluster.up()?;
        let mut agent = command(&programs.tool);
        agent.arg("agent").arg("--kubeconfig").arg(cluster.kubeconfig()).args(["--node", &Cluster::node(2)]);
        agent.args(["--pid", &cluster.agent(2)?.to_string()]);
        if options.quick {
            agent.args(["--services", "1000"]);
        }
        lines_of(agent)
    })
}

/// What a measuring program prints; what it says besides is shown as it comes.
pub(super) fn lines_of(mut program: Command) -> Result<Vec<Measurement>> {
    let mut child = program.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start leme-bench")?;
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let measured = lines.map(|line| measurement::parse(&line?)).collect::<Result<Vec<_>>>();
    let status = child.wait()?;
    if !status.success() {
        bail!("leme-bench failed ({status})");
    }
    Ok(measured?.concat())
}

fn write_page(options: &Options, machine: &Machine, rows: &[Row], path: &Path) -> Result<()> {
    let date = output(command("date").args(["-u", "+%F"]))?;
    let command = repeating(std::env::args().skip(1));
    let report = Report {
        title: "Leme's network, measured",
        about: ABOUT,
        subject: &programs::subject(options.bin.as_deref()),
        machine,
        date: date.trim(),
        commands: &[format!("cargo xtask {command}")],
        rows,
    };
    report.write(path)?;
    say(&format!("The page is {}", path.display()));
    Ok(())
}

/// The command again, without what only says where results come from or go.
pub(super) fn repeating(arguments: impl Iterator<Item = String>) -> String {
    let mut kept = Vec::new();
    let mut dropping = false;
    for argument in arguments {
        if argument.starts_with("--") {
            let name = argument.split('=').next().unwrap_or_default();
            dropping = ["--from", "--json", "--html", "--bin"].contains(&name);
        }
        if !dropping {
            kept.push(argument);
        }
    }
    kept.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_repeat_names_no_files() {
        let repeat = |line: &str| repeating(line.split(' ').map(str::to_owned));
        assert_eq!(repeat("bench net --from a.json b.json --html page.html"), "bench net");
        assert_eq!(repeat("bench net --json=a --quick --bin leme --rounds 9"), "bench net --quick --rounds 9");
    }
}
