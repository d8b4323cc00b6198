//! `leme bpf`: the tables of a node's datapath, read from the kernel through their pins.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use leme_datapath::Dump;

use crate::output::{self, Format};

#[derive(Args)]
#[command(after_help = "Examples:
  leme bpf services                     the only node of this machine
  leme bpf services --node leme-2       one of several
  leme bpf all -o json                  everything, for tools")]
pub(crate) struct Options {
    #[arg(value_enum)]
    table: Table,
    /// Which node, where this machine has several
    #[arg(long)]
    node: Option<String>,
    /// Table or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Table {
    /// Services: where they are reached, what answers
    Services,
    /// Pods of this node
    Endpoints,
    /// Pod ranges of other nodes
    Routes,
    /// Addresses of nodes
    Nodes,
    /// Packets dropped and forwarded, by reason
    Counters,
    /// Everything (JSON only)
    All,
}

const PINS: &str = "/sys/fs/bpf/leme";

pub(crate) fn run(options: &Options) -> Result<()> {
    let pins = pins(options.node.as_deref())?;
    let dump = leme_datapath::dump(&pins).with_context(|| format!("cannot read the tables in {}", pins.display()))?;
    show(options.table, options.output, &dump)
}

fn show(table: Table, format: Format, dump: &Dump) -> Result<()> {
    match table {
        Table::Services => output::print(format, &["ID", "FRONTENDS", "BACKENDS"], &dump.services, |service| {
            vec![service.id.to_string(), service.frontends.join("\n"), service.backends.join("\n")]
        }),
        Table::Endpoints => output::print(format, &["ADDRESS", "IFINDEX"], &dump.endpoints, |endpoint| {
            vec![endpoint.addr.to_string(), endpoint.ifindex.to_string()]
        }),
        Table::Routes => pairs(format, &["PREFIX", "NODE"], dump.routes.iter()),
        Table::Nodes => pairs(format, &["ADDRESS", "WHERE"], dump.node_addresses.iter()),
        Table::Counters => pairs(format, &["REASON", "PACKETS"], dump.counters.iter()),
        Table::All => {
            println!("{}", serde_json::to_string_pretty(dump)?);
            Ok(())
        }
    }
}

fn pairs<'a, K, V>(format: Format, header: &[&str], rows: impl Iterator<Item = (&'a K, &'a V)>) -> Result<()>
where
    K: ToString + 'a,
    V: ToString + 'a,
{
    let rows: Vec<_> = rows.map(|(key, value)| (key.to_string(), value.to_string())).collect();
    output::print(format, header, &rows, |(key, value)| vec![key.clone(), value.clone()])
}

/// The pins of the named node, or of the only one.
fn pins(node: Option<&str>) -> Result<PathBuf> {
    if let Some(node) = node {
        return Ok(PathBuf::from(PINS).join(node));
    }
    let entries = std::fs::read_dir(PINS).with_context(|| format!("no agent has run here: there is no {PINS}"))?;
    let mut nodes: Vec<_> = entries
        .flatten()
        .filter(|entry| !entry.file_name().to_string_lossy().ends_with("-lan"))
        .map(|entry| entry.path())
        .collect();
    nodes.sort();
    match nodes.as_slice() {
        [] => bail!("no agent has run here: {PINS} is empty"),
        [only] => Ok(only.clone()),
        several => {
            let names: Vec<_> = several.iter().filter_map(|path| path.file_name()?.to_str()).collect();
            bail!("this machine has several nodes; say --node with one of {}", names.join(", "))
        }
    }
}
