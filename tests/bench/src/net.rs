//! `leme-bench net`: the product's datapath beside what people use today, in worlds that stand side by side (`world`):
//! the same wire, the same pods, the same clients and servers; only what forwards between them differs.
//!
//! Everything lives in network namespaces and in a mount namespace of this process, and goes with it, however it ends.
//! Only cgroups stay behind a killed run; the next one removes them.

mod cgroup;
mod hooks;
mod iptables;
mod leme;
mod namespace;
mod nftables;
mod objects;
mod programming;
mod traffic;
pub(crate) mod worker;
mod world;

use std::collections::BTreeSet;
use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};

use traffic::Pace;
use world::{Path, System, World};

#[derive(Args)]
pub(crate) struct Options {
    /// What to measure [default: all]
    #[arg(long, value_delimiter = ',', value_enum)]
    parts: Vec<Part>,
    /// How many Services are loaded, each number in turn
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1_000, 10_000, 30_000])]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=50_000))]
    services: Vec<u32>,
    /// Bursts on each subject
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Of one burst
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=2_000))]
    millis: u64,
    /// Services whose programming is timed, with ten endpoints each
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(4..=50_000))]
    programmed: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Part {
    /// From pod to pod on one node
    SameNode,
    /// From pod to pod on the other node
    AcrossNodes,
    /// From outside to a NodePort, the backend on that node
    NodePortLocal,
    /// From outside to a NodePort, the backend on the other node
    NodePortRemote,
    /// Nanoseconds per program
    Hooks,
    /// Writing Services, from nothing and one change at a time; the maps' memory
    Programming,
}

impl Part {
    fn path(self) -> Option<Path> {
        match self {
            Self::SameNode => Some(Path::SameNode),
            Self::AcrossNodes => Some(Path::AcrossNodes),
            Self::NodePortLocal => Some(Path::NodePortLocal),
            Self::NodePortRemote => Some(Path::NodePortRemote),
            Self::Hooks | Self::Programming => None,
        }
    }
}

/// Endpoints of a Service that nobody asks, beside traffic.
const ENDPOINTS: u32 = 2;

pub(crate) fn run(options: &Options) -> Result<()> {
    let _only = only_one()?;
    go_apart()?;
    cgroup::remove_all().context("what an earlier run has left stays")?;
    end_on_signals()?;
    let outcome = measure(options);
    let removed = cgroup::remove_all();
    outcome.and(removed)
}

fn measure(options: &Options) -> Result<()> {
    let parts: BTreeSet<_> =
        if options.parts.is_empty() { Part::value_variants() } else { &options.parts }.iter().copied().collect();
    if parts.contains(&Part::Programming) {
        programming::measure(options.programmed, usize::from(options.rounds))?;
    }
    if parts.iter().all(|part| *part == Part::Programming) {
        return Ok(());
    }
    let mut worlds = worlds(&options.services)?;
    let pace = Pace { rounds: usize::from(options.rounds), length: Duration::from_millis(options.millis) };
    for path in parts.iter().filter_map(|part| part.path()) {
        traffic::measure(&mut worlds, path, pace)?;
    }
    if parts.contains(&Part::Hooks) {
        hooks::measure(&mut worlds, pace)?;
    }
    Ok(())
}

/// All of them, so that each burst of one has its counterpart in the others a moment before or after.
fn worlds(counts: &[u32]) -> Result<Vec<World>> {
    let mut worlds = Vec::new();
    for system in [System::Leme, System::Routed, System::Bridged] {
        worlds.push(World::build(system, &[])?);
    }
    for count in counts {
        let services = objects::services(*count, ENDPOINTS);
        for system in [System::Leme, System::Nftables, System::Iptables] {
            let began = Instant::now();
            worlds.push(World::build(system, &services)?);
            let took = began.elapsed().as_secs_f64();
            eprintln!("  a world of {} with {count} Services: {took:.1} s", system.name());
        }
    }
    Ok(worlds)
}

/// A second run at the same time would measure the first: it waits.
fn only_one() -> Result<Flock<File>> {
    let path = std::env::temp_dir().join("leme-bench.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, _)) => file,
    };
    eprintln!("  waiting for another measurement to end");
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).context("cannot wait for it")
}

/// A mount namespace with a BPF file system of its own: pins go with the process.
fn go_apart() -> Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace; this needs root")?;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    mount(Some("bpf"), leme::BPFFS, Some("bpf"), MsFlags::empty(), none)
        .with_context(|| format!("cannot mount a BPF file system on {}", leme::BPFFS))
}

/// Interrupted or told to end: the workers go, and their cgroups with them.
fn end_on_signals() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    std::thread::spawn(move || {
        let signal = signals.wait();
        if let Err(error) = cgroup::remove_all() {
            eprintln!("error: {error:#}");
        }
        std::process::exit(128 + signal.map_or(0, |signal| signal as i32));
    });
    Ok(())
}
