//! A node's real agent with many Services: its memory, and its processor time at rest and while endpoints change.
//!
//! Services and their slices are made through the API, so the agent watches, plans and writes as it always does.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use leme_measure::Measurement;
use leme_measure::row::count_of;
use nix::unistd::{SysconfVar, sysconf};
use serde_json::{Value, json};

use crate::api::Cluster;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    cluster: Cluster,
    /// The node whose agent is looked at
    #[arg(long)]
    node: String,
    /// The agent's process
    #[arg(long)]
    pid: u32,
    #[arg(long, default_value_t = 10_000)]
    services: u32,
}

const NAMESPACE: &str = "bench";
const ENDPOINTS: u32 = 10;
/// Requests under way at once.
const REQUESTS: usize = 32;
/// How long each figure of processor time is taken over.
const SPAN: Duration = Duration::from_secs(10);
/// Changed slices per second, under churn.
const CHURN: u32 = 50;
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) async fn run(options: Options) -> Result<()> {
    let client = options.cluster.client().await?;
    let title = format!("{} × {ENDPOINTS} endpoints", count_of(options.services));
    let empty = Agent::look(options.pid)?;
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    eprintln!("  making {title} through the API");
    create(&client, options.services).await?;
    await_tables(&options, options.services).await?;
    let idle = usage(options.pid, rest()).await?;
    let full = Agent::look(options.pid)?;
    eprintln!("  {CHURN} changes per second");
    let busy = usage(options.pid, churn(&client, options.services)).await?;
    let after = Agent::look(options.pid)?;
    for (subject, agent) in [("leme agent, few Services", &empty), (&*format!("leme agent, {title}"), &full)] {
        Measurement::new("agent's memory: resident", subject, "MiB", vec![agent.resident]).print()?;
        Measurement::new("agent's memory: anonymous", subject, "MiB", vec![agent.anonymous]).print()?;
    }
    Measurement::new("agent's memory: anonymous", "leme agent, after churn", "MiB", vec![after.anonymous]).print()?;
    for (what, usage) in [("at rest".to_owned(), idle), (format!("{CHURN} changes per second"), busy)] {
        let subject = format!("leme agent, {title}, {what}");
        Measurement::new("agent's processor time", subject, "%", vec![usage]).print()?;
    }
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
    Ok(())
}

async fn rest() -> Result<()> {
    tokio::time::sleep(SPAN).await;
    Ok(())
}

async fn create(client: &Client, count: u32) -> Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let create = |index| {
        let (services, slices) = (&services, &slices);
        async move {
            let spec = json!({ "ports": [{ "name": "http", "port": 80 }] });
            let service = json!({ "metadata": { "name": name(index) }, "spec": spec });
            services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
            slices.create(&PostParams::default(), &serde_json::from_value(slice(index, 0))?).await?;
            anyhow::Ok(())
        }
    };
    stream::iter(0..count).map(create).buffer_unordered(REQUESTS).try_collect::<()>().await
}

fn name(index: u32) -> String {
    format!("service-{index}")
}

/// Endpoints from 10.129.0.0 on, which is nobody's; without the n-th of them.
fn slice(index: u32, missing: u32) -> Value {
    let first = u32::from(Ipv4Addr::new(10, 129, 0, 0)) + index * (ENDPOINTS + 1);
    let endpoints: Vec<_> = (0..=ENDPOINTS)
        .filter(|n| *n != missing)
        .map(|n| json!({ "addresses": [Ipv4Addr::from(first + n).to_string()], "conditions": { "ready": true } }))
        .collect();
    json!({
        "metadata": {
            "name": name(index),
            "labels": {
                "kubernetes.io/service-name": name(index), "endpointslice.kubernetes.io/managed-by": "leme-bench",
            },
        },
        "addressType": "IPv4", "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }], "endpoints": endpoints,
    })
}

/// Until the node's tables hold every Service.
async fn await_tables(options: &Options, count: u32) -> Result<()> {
    let pins = Path::new("/sys/fs/bpf/leme").join(&options.node);
    let deadline = Instant::now() + LIMIT;
    loop {
        let known = leme_datapath::dump(&pins)?.services.iter().filter(|row| !row.backends.is_empty()).count();
        if known >= count as usize {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("after {LIMIT:?} the node's tables hold {known} of {count} Services");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// One changed slice after another, evenly spread over the span.
async fn churn(client: &Client, count: u32) -> Result<()> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / CHURN);
    for n in 0..CHURN * SPAN.as_secs() as u32 {
        ticks.tick().await;
        let index = n * 7 % count;
        let changed = slice(index, 1 + n % ENDPOINTS);
        let patch = Patch::Merge(json!({ "endpoints": changed["endpoints"] }));
        slices.patch(&name(index), &PatchParams::default(), &patch).await?;
    }
    Ok(())
}

/// Mebibytes.
struct Agent {
    resident: f64,
    anonymous: f64,
}

impl Agent {
    fn look(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the agent is gone")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("an odd status")?;
            let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
            anyhow::Ok(kibibytes / 1024.0)
        };
        Ok(Self { resident: field("VmRSS:")?, anonymous: field("RssAnon:")? })
    }
}

/// Percent of one processor that the process takes while the work goes on.
async fn usage(pid: u32, work: impl Future<Output = Result<()>>) -> Result<f64> {
    let (began, before) = (Instant::now(), processor_time(pid)?);
    work.await?;
    let spent = processor_time(pid)?.saturating_sub(before);
    Ok(spent.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0)
}

/// User and system time, of threads that have ended too.
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the agent is gone")?;
    // The name may hold anything, in parentheses; the times are the 12th and 13th field behind it.
    let (_, fields) = stat.rsplit_once(") ").context("an odd stat")?;
    let ticks: Vec<u64> = fields.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    Ok(Duration::from_secs_f64(ticks.iter().sum::<u64>() as f64 / per_second as f64))
}
