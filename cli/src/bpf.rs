//! `leme bpf`: the tables of a node's datapath, read from the kernel through their pins.

mod filter;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use leme_datapath as datapath;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cluster::require_root;
use crate::output::{self, Format};
use filter::Filter;

#[derive(Args)]
#[command(after_help = "Examples:
  leme bpf services                              the only node of this machine
  leme bpf services --node leme-2 --port 30080   what one of several does with a NodePort
  leme bpf conntrack --address 10.244.1.7        connections of one pod
  leme bpf all -o json                           everything, for tools")]
pub(crate) struct Options {
    /// What to show
    #[arg(value_enum)]
    table: Table,
    /// Which node, where this machine has several
    #[arg(long)]
    node: Option<String>,
    #[command(flatten)]
    filter: Filter,
    /// Table or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    /// Services: where they are reached, what answers
    Services,
    /// Pods of this node
    Endpoints,
    /// Pod ranges and the nodes behind them
    Routes,
    /// Addresses of nodes
    Nodes,
    /// Connections: how far they have come, how long they live, what they carried
    Conntrack,
    /// Translations, one per direction of a connection
    Nat,
    /// Clients that stay with their backend (`sessionAffinity: ClientIP`)
    Affinity,
    /// Packets forwarded and dropped, by reason
    Counters,
    /// Everything (JSON only)
    All,
}

const PINS: &str = "/sys/fs/bpf/leme";

pub(crate) fn run(options: &Options) -> Result<()> {
    require_root("reading the kernel's tables")?;
    let pins = pins(options.node.as_deref())?;
    let view = View { pins: &pins, filter: &options.filter, format: options.output };
    match options.table {
        Table::All => println!("{}", serde_json::to_string_pretty(&view.everything()?)?),
        table => print!("{}", view.show(table)?),
    }
    Ok(())
}

/// Tables in the order of `all`.
const TABLES: [(&str, Table); 8] = [
    ("services", Table::Services),
    ("endpoints", Table::Endpoints),
    ("routes", Table::Routes),
    ("nodes", Table::Nodes),
    ("conntrack", Table::Conntrack),
    ("nat", Table::Nat),
    ("affinity", Table::Affinity),
    ("counters", Table::Counters),
];

struct View<'a> {
    pins: &'a Path,
    filter: &'a Filter,
    format: Format,
}

/// One table's rows: as people read them, and as tools do.
struct Rows {
    header: &'static [&'static str],
    rows: Vec<(Vec<String>, Value)>,
}

impl View<'_> {
    fn show(&self, table: Table) -> Result<String> {
        let Rows { header, rows } = self.read(table)?;
        match self.format {
            Format::Json => Ok(serde_json::to_string_pretty(&values(rows))? + "\n"),
            Format::Table => Ok(output::table(header, rows.into_iter().map(|(cells, _)| cells))),
        }
    }

    fn everything(&self) -> Result<Value> {
        let read = |(name, table): &(&str, Table)| Ok((name.to_string(), values(self.read(*table)?.rows).into()));
        Ok(Value::Object(TABLES.iter().map(read).collect::<Result<_>>()?))
    }

    fn read(&self, table: Table) -> Result<Rows> {
        let failed = || format!("cannot read the tables in {}", self.pins.display());
        let mut rows = read(table, self.pins).with_context(failed)?;
        rows.rows.retain(|(cells, _)| self.filter.allows(cells));
        Ok(rows)
    }
}

fn values(rows: Vec<(Vec<String>, Value)>) -> Vec<Value> {
    rows.into_iter().map(|(_, value)| value).collect()
}

fn rows<T: Serialize>(header: &'static [&'static str], from: Vec<T>, cells: impl Fn(&T) -> Vec<String>) -> Rows {
    Rows { header, rows: from.iter().map(|row| (cells(row), json!(row))).collect() }
}

fn read(table: Table, pins: &Path) -> Result<Rows> {
    Ok(match table {
        Table::Services => rows(&["ID", "FRONTENDS", "BACKENDS"], datapath::services(pins)?, |row| {
            vec![row.id.to_string(), row.frontends.join("\n"), row.backends.join("\n")]
        }),
        Table::Endpoints => {
            rows(&["ADDRESS", "IFINDEX", "MAC", "HOST-MAC", "IN", "OUT"], datapath::endpoints(pins)?, |row| {
                let (receives, sends) = (rate(row.limits.ingress), rate(row.limits.egress));
                vec![row.addr.to_string(), row.ifindex.to_string(), mac(row.mac), mac(row.host_mac), receives, sends]
            })
        }
        Table::Routes => rows(&["PREFIX", "NODE", "WHERE"], datapath::routes(pins)?, route),
        Table::Nodes => rows(&["ADDRESS", "WHERE"], datapath::node_addresses(pins)?, |row| {
            let place = if row.local { "local" } else { "remote" };
            vec![row.address.to_string(), if row.router { format!("{place}, router") } else { place.to_owned() }]
        }),
        Table::Conntrack => rows(CONNECTION, datapath::connections(pins)?, connection),
        Table::Nat => rows(TRANSLATION, datapath::translations(pins)?, |row| {
            let mut cells = vec![row.protocol.clone()];
            cells.extend([row.from.source, row.from.destination, row.to.source, row.to.destination].map(text));
            cells.push(row.leg.clone());
            cells
        }),
        Table::Affinity => rows(&["CLIENT", "FRONTENDS", "BACKEND", "IDLE"], datapath::affinity(pins)?, |row| {
            let backend = row.backend.map_or_else(|| "-".to_owned(), text);
            vec![row.client.to_string(), row.frontends.join("\n"), backend, duration(row.idle_seconds)]
        }),
        Table::Counters => {
            let counted = datapath::counters(pins)?.into_iter().filter(|row| row.packets > 0).collect();
            rows(&["REASON", "DIRECTION", "PACKETS", "BYTES"], counted, |row: &datapath::CounterRow| {
                vec![row.reason.clone(), row.direction.clone(), row.packets.to_string(), row.bytes.to_string()]
            })
        }
        Table::All => bail!("the sum of all tables is none itself"),
    })
}

fn route(row: &datapath::RouteRow) -> Vec<String> {
    let place = match (row.local, row.node) {
        _ if row.services => "services",
        (true, _) => "local",
        (false, Some(_)) => "remote",
        (false, None) => "unclaimed",
    };
    vec![row.prefix.clone(), row.node.map_or_else(|| "-".to_owned(), |node| node.to_string()), place.to_owned()]
}

const TRANSLATION: &[&str] = &["PROTOCOL", "SOURCE", "DESTINATION", "NEW-SOURCE", "NEW-DESTINATION", "LEG"];
const CONNECTION: &[&str] = &[
    "PROTOCOL",
    "SOURCE",
    "DESTINATION",
    "NEW-SOURCE",
    "NEW-DESTINATION",
    "STATE",
    "AGE",
    "EXPIRES",
    "PACKETS",
    "BYTES",
];

fn connection(row: &datapath::ConnectionRow) -> Vec<String> {
    let translated = row.translated.map_or(["-".into(), "-".into()], |to| [to.source, to.destination].map(text));
    let mut cells = vec![row.protocol.clone(), text(row.original.source), text(row.original.destination)];
    cells.extend(translated);
    cells.extend([row.state.clone(), duration(row.age_seconds), duration(row.expires_seconds)]);
    cells.extend([row.packets, row.bytes].map(|[forward, reply]| format!("{forward}+{reply}")));
    cells
}

fn text(address: std::net::SocketAddr) -> String {
    address.to_string()
}

/// In bits per second, as annotations have it.
fn rate(rate: Option<datapath::Rate>) -> String {
    let bits = rate.map(|rate| rate.bytes_per_second.saturating_mul(8));
    match bits {
        None => "-".to_owned(),
        Some(bits) if bits.is_multiple_of(1_000_000) => format!("{} Mbit/s", bits / 1_000_000),
        Some(bits) if bits.is_multiple_of(1_000) => format!("{} kbit/s", bits / 1_000),
        Some(bits) => format!("{bits} bit/s"),
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// As kubectl shows ages: the two largest units.
fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s}s"),
        (0, h, m, _) => format!("{h}h{m}m"),
        (d, h, ..) => format!("{d}d{h}h"),
    }
}

/// The pins of the named node, or of the only one.
pub(crate) fn pins(node: Option<&str>) -> Result<PathBuf> {
    let nodes = nodes_with_pins()?;
    let names = || nodes.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let name = match (node, nodes.as_slice()) {
        (_, []) => bail!("no agent has run here: {PINS} is empty"),
        (Some(node), _) if !nodes.iter().any(|name| name == node) => {
            bail!("this machine has no node {node}; it has {}", names())
        }
        (Some(node), _) => node,
        (None, [only]) => only,
        (None, _) => bail!("this machine has several nodes; say --node with one of {}", names()),
    };
    Ok(Path::new(PINS).join(name))
}

fn nodes_with_pins() -> Result<Vec<String>> {
    let entries = std::fs::read_dir(PINS).with_context(|| format!("no agent has run here: there is no {PINS}"))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut nodes: Vec<_> = names.filter(|name| !name.ends_with("-lan")).collect();
    nodes.sort();
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_in_their_two_largest_units() {
        let told = [0.4, 59.9, 61.0, 3_700.0, 90_000.0, -3.0].map(duration);
        assert_eq!(told, ["0s", "59s", "1m1s", "1h1m", "1d1h", "0s"]);
    }
}
