//! The agent's CNI part as a process of its own, so that it can be killed: `STATE NODE CGROUP NIC POD-CIDR [MOMENT STEPS]`
//! in the caller's network namespace, until its standard input ends. It says `ready` once it serves.
//!
//! With a moment (`start` or `request`) it kills itself, as `kill -9` would, after so many steps from then on.

use std::{
    env,
    io::Read as _,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use ipnetwork::Ipv4Network;
use leme_agent::network::{
    Kernel,
    cni_server::{CniServer, STEPS, Shape},
    ipam::Ipam,
    metrics::Metrics,
    veth::Links,
};
use leme_datapath::{Config, Datapath, Sizes, Snapshot};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio_util::sync::CancellationToken;
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

/// Kills the process after so many steps, once it is armed.
struct Death {
    steps: AtomicUsize,
    armed: Arc<AtomicBool>,
}

impl<S: Subscriber> Layer<S> for Death {
    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        if self.armed.load(SeqCst) && self.steps.fetch_sub(1, SeqCst) == 1 {
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [state, node, cgroup, nic, pod_cidr, rest @ ..] = words.as_slice() else {
        anyhow::bail!("the tests run this program");
    };
    let armed = Arc::new(AtomicBool::new(false));
    if let [moment, steps] = rest {
        armed.store(moment == "start", SeqCst);
        let death = Death { steps: AtomicUsize::new(steps.parse()?), armed: armed.clone() };
        let only_steps = Targets::new().with_target(STEPS, LevelFilter::TRACE);
        tracing_subscriber::registry().with(death.with_filter(only_steps)).init();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(PathBuf::from(state), node, cgroup, nic.parse()?, pod_cidr.parse()?, armed))
}

async fn run(
    state: PathBuf,
    node: &str,
    cgroup: &str,
    nic: u32,
    pods: Ipv4Network,
    armed: Arc<AtomicBool>,
) -> Result<()> {
    let mut config = Config::new(node, cgroup, IpAddr::V4(leme_tests_packets::node::ADDRESS), pods.into());
    config.nics = vec![nic];
    config.sizes = Sizes { connections: 4096, ..config.sizes };
    let datapath = Datapath::open(config).await?;
    let shape =
        Shape { mtu: 1500, route_mtu: datapath.pod_mtu(), router: pods.nth(1).context("no room for a router")? };
    let kernel = Kernel::new(datapath);
    let ipam = Ipam::open(&state.join("ipam"), vec![pods])?;
    let server = CniServer::new(ipam, Links::open()?, Arc::new(kernel.clone()), shape, Arc::new(Metrics::default()));
    server.adopt().await?;
    // The first complete list of a cluster without Services: what nobody claims goes.
    let nothing = Snapshot::new(node);
    kernel.with(move |datapath| datapath.reconcile_all(&nothing)).await?;
    let socket = state.join("cni.sock");
    let _ = std::fs::remove_file(&socket);
    tokio::spawn(async move { Arc::new(server).serve(&socket, CancellationToken::new()).await });
    tokio::task::yield_now().await;
    armed.store(true, SeqCst);
    println!("ready");
    tokio::spawn(collect(kernel));
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}

/// What is retired is removed a moment later.
async fn collect(kernel: Kernel) {
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let _ = kernel.with(|datapath| datapath.collect()).await;
    }
}
