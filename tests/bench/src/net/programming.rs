//! Writing Services: all of them from nothing, one change while they are loaded, and what they take in memory. The rule
//! sets of the same Services are loaded in turn, by the tools alone: whoever computes the rules is not in those times.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use leme_datapath::remove_all;
use leme_measure::Measurement;

use super::leme::{self, CONNECTIONS, Objects};
use super::namespace::Namespace;
use super::objects::{Service, services};
use super::world::{self, NODE_ADDRESSES};
use super::{cgroup, iptables, nftables};

const ENDPOINTS: u32 = 10;
/// Loads from nothing, of a long and of a short measurement: the rules take many seconds each.
const LOADS: usize = 3;
const FEW_LOADS: usize = 1;
/// Changes behind one sample of percentiles.
const CHANGES: u32 = 100;
/// Changes of rule sets: they take up to seconds each.
const RULE_CHANGES: usize = 6;

pub(crate) fn measure(count: u32, rounds: usize) -> Result<()> {
    let made = services(count, ENDPOINTS);
    let title = format!("{} × {ENDPOINTS} endpoints", leme_measure::row::count_of(count));
    eprintln!("  programming {title}");
    let sets = RuleSets::of(&made);
    let objects = Objects::of(&made);
    let mut times = Times::default();
    let loads = if rounds < 10 { FEW_LOADS } else { LOADS };
    for run in 1..loads {
        load_all(&objects, &sets, run, &mut times)?.remove()?;
    }
    let mut loaded = load_all(&objects, &sets, loads, &mut times)?;
    times.print(&title)?;
    changes(&mut loaded, &made, rounds, &title)?;
    memory(&loaded, &title)?;
    loaded.remove()
}

struct RuleSets {
    nftables: Vec<String>,
    iptables: String,
}

impl RuleSets {
    fn of(services: &[Service]) -> Self {
        Self { nftables: nftables::rules(services, &NODE_ADDRESSES[..1]), iptables: iptables::rules(services) }
    }
}

/// Everything loaded side by side.
struct Loaded {
    node: world::Node,
    label: String,
    nftables: Namespace,
    iptables: Namespace,
    /// Map memory before there was any Service.
    empty: Vec<(String, u64)>,
}

#[derive(Default)]
struct Times {
    open: Vec<f64>,
    leme: Vec<f64>,
    nftables: Vec<f64>,
    iptables: Vec<f64>,
}

fn load_all(objects: &Objects, sets: &RuleSets, run: usize, times: &mut Times) -> Result<Loaded> {
    let label = format!("programming-{run}");
    let mut node = bare_node(&label)?;
    let began = Instant::now();
    let mut opened = leme::Node::open(&node, 0, &label)?;
    times.open.push(began.elapsed().as_secs_f64());
    let empty = opened.map_memory()?;
    times.leme.push(opened.take(objects)?.as_secs_f64());
    node.leme = Some(opened);
    let (nftables, iptables) = (Namespace::new()?, Namespace::new()?);
    times.nftables.push(timed(|| nftables::load(&nftables, &sets.nftables))?);
    times.iptables.push(timed(|| iptables::load(&iptables, &sets.iptables))?);
    Ok(Loaded { node, label, nftables, iptables, empty })
}

/// A node with a device and nothing else.
fn bare_node(label: &str) -> Result<world::Node> {
    let net = Namespace::new()?;
    net.ip(&format!(
        "link set lo up\nlink add eth0 type veth peer name wire\nlink set eth0 up\nlink set wire up\naddress add {}/24 dev \
         eth0\n",
        NODE_ADDRESSES[0]
    ))?;
    Ok(world::Node { net, cgroup: cgroup::create(label)?, pods: Vec::new(), leme: None })
}

impl Loaded {
    fn remove(&self) -> Result<()> {
        let (net, cgroup) = (&self.node.net, self.node.cgroup.clone());
        net.within(|| {
            let config = leme::config(&self.label, 0, cgroup)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(remove_all(&config))?)
        })
    }
}

impl Times {
    fn print(&self, title: &str) -> Result<()> {
        let metric = format!("programming {title} from nothing");
        let row = || Measurement::new(metric.as_str(), "leme", "s", self.leme.clone());
        let in_parts = format!("nft alone, {} at a time", leme_measure::row::count_of(nftables::BATCH as u32));
        row().against(in_parts, self.nftables.clone()).print()?;
        row().against("iptables-legacy-restore alone", self.iptables.clone()).print()?;
        Measurement::new("opening the datapath", "leme", "s", self.open.clone()).print()
    }
}

/// One Service's endpoints change: one of ten goes, or comes back.
fn changes(loaded: &mut Loaded, made: &[Service], rounds: usize, title: &str) -> Result<()> {
    eprintln!("  one change at a time");
    let leme = loaded.node.leme.as_mut().context("the datapath is not open")?;
    let (mut medians, mut tails) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let change = |n| {
            let service = picked(made, round as u32 * CHANGES + n);
            leme.change(&serde_json::to_vec(&service.slices()[0])?)
        };
        let mut times = (0..CHANGES).map(change).collect::<Result<Vec<_>>>()?;
        times.sort_unstable();
        medians.push(millis(times[times.len() / 2]));
        tails.push(millis(times[times.len() * 99 / 100]));
    }
    let (mut nftables, mut iptables) = (Vec::new(), Vec::new());
    for round in 0..RULE_CHANGES {
        let service = picked(made, round as u32);
        nftables.push(1e3 * timed(|| nftables::load(&loaded.nftables, &[nftables::chains_of(&service)]))?);
        iptables.push(1e3 * timed(|| iptables::change(&loaded.iptables, &iptables::chains_of(&service)))?);
    }
    let metric = format!("one change, {title} loaded");
    let row = |name: &str, samples| Measurement::new(format!("{metric}, {name}"), "leme", "ms", samples);
    row("median", medians.clone()).against("nft alone", nftables).print()?;
    row("median", medians).against("iptables-legacy-restore alone", iptables).print()?;
    row("p99", tails).print()
}

/// The n-th changed Service: without its first endpoint, or with it the second time round.
fn picked(made: &[Service], n: u32) -> Service {
    let others: Vec<usize> = (1..made.len()).filter(|index| made[*index].ports.len() == 1).collect();
    let mut service = made[others[n as usize * 7 % others.len()]].clone();
    service.ports[0].endpoints.remove(n as usize % ENDPOINTS as usize);
    service
}

fn memory(loaded: &Loaded, title: &str) -> Result<()> {
    let full = loaded.node.leme.as_ref().context("the datapath is not open")?.map_memory()?;
    let connection = ["conntrack", "nat", "fragments", "sender_origin"];
    let sum = |maps: &[(String, u64)], of_connections: bool| {
        let counted = maps.iter().filter(|(name, _)| connection.contains(&name.as_str()) == of_connections);
        counted.map(|(_, bytes)| *bytes as f64).sum::<f64>() / f64::from(1 << 20)
    };
    let row = |metric: &str, subject: String, value| Measurement::new(metric, subject, "MiB", vec![value]).print();
    row("map memory: Services", "leme, none".into(), sum(&loaded.empty, false))?;
    row("map memory: Services", format!("leme, {title}"), sum(&full, false))?;
    row("map memory: connections", format!("leme, room for {CONNECTIONS}"), sum(&full, true))
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
