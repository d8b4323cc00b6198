//! How long a pod takes from its creation to Running, as a client with a watch sees it, scheduler and service account
//! token included; in turn with the runtime's own part of that, on the same node with the same image.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};

use crate::api::{Cluster, LABEL, is_running, pod, running};
use crate::cri::Floor;
use leme_measure::Measurement;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    cluster: Cluster,
    /// The node that runs the pods
    #[arg(long)]
    node: String,
    /// containerd's socket of that node
    #[arg(long)]
    socket: PathBuf,
    /// Absolute, below the node's own: where the runtime alone puts its containers
    #[arg(long)]
    cgroup: String,
    #[arg(long, default_value_t = 20)]
    runs: usize,
}

const LIMIT: Duration = Duration::from_secs(60);
/// Between two runs: what the last one left to clean up does not slow the next.
const REST: Duration = Duration::from_millis(300);

/// When, since the request was sent, a watching client knew.
struct Times {
    created: Duration,
    scheduled: Duration,
    running: Duration,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(options.cluster.client().await?);
    warm_up(&pods, &options.node).await?;
    let mut floor = Floor::connect(&options.socket, options.cgroup.clone()).await?;
    floor.measure("bench-warm").await?;
    let version = pods.list_metadata(&Default::default()).await?.metadata.resource_version.unwrap_or_default();
    let events = pods.watch(&WatchParams::default().labels(LABEL), &version).await?;
    let mut events = Box::pin(events.map_err(anyhow::Error::from));
    let (mut times, mut floors) = (Vec::new(), Vec::new());
    for run in 0..options.runs {
        tokio::time::sleep(REST).await;
        floors.push(floor.measure(&format!("bench-floor-{run}")).await?);
        tokio::time::sleep(REST).await;
        times.push(tokio::time::timeout(LIMIT, start(&pods, &mut events, &options.node, run)).await??);
    }
    report(&times, &floors)
}

fn report(times: &[Times], floors: &[Duration]) -> Result<()> {
    let millis = |durations: Vec<Duration>| durations.iter().map(|it| it.as_secs_f64() * 1000.0).collect::<Vec<_>>();
    let floors = millis(floors.to_vec());
    let of = |part: fn(&Times) -> Duration| millis(times.iter().map(part).collect());
    let row = |metric, samples| Measurement::new(metric, "leme", "ms", samples);
    row("pod: create to Running", of(|times| times.running)).against("CRI calls alone", floors).print()?;
    row("pod: create to answered", of(|times| times.created)).print()?;
    row("pod: create to scheduled", of(|times| times.scheduled)).print()
}

/// The image is pulled and everything has run once.
async fn warm_up(pods: &Api<Pod>, node: &str) -> Result<()> {
    pods.create(&PostParams::default(), &pod("bench-warm", node)?).await.context("cannot create a pod")?;
    running(pods, "bench-warm").await?;
    pods.delete("bench-warm", &DeleteParams::default()).await?;
    let gone = kube::runtime::wait::await_condition(pods.clone(), "bench-warm", |pod: Option<&Pod>| pod.is_none());
    tokio::time::timeout(LIMIT, gone).await.context("a deleted pod does not go")??;
    Ok(())
}

/// Creates a pod, waits until it runs, and removes it.
async fn start(
    pods: &Api<Pod>,
    events: &mut (impl Stream<Item = Result<WatchEvent<Pod>>> + Unpin),
    node: &str,
    run: usize,
) -> Result<Times> {
    let name = format!("bench-pod-{run}");
    let (pod, parameters) = (pod(&name, node)?, PostParams::default());
    let began = Instant::now();
    let create = async {
        pods.create(&parameters, &pod).await.context("cannot create a pod")?;
        anyhow::Ok(began.elapsed())
    };
    let watch = async {
        let scheduled = until(events, &name, |pod| pod.spec.as_ref().is_some_and(|it| it.node_name.is_some())).await?;
        let running = if is_running(&scheduled.0) { scheduled.1 } else { until(events, &name, is_running).await?.1 };
        anyhow::Ok((scheduled.1 - began, running - began))
    };
    let (created, (scheduled, running)) = tokio::try_join!(create, watch)?;
    pods.delete(&name, &DeleteParams::default()).await?;
    while !matches!(next(events).await?, WatchEvent::Deleted(pod) if pod.metadata.name.as_deref() == Some(&name)) {}
    Ok(Times { created, scheduled, running })
}

/// The first state of a pod that is as wanted, and when it was heard.
async fn until(
    events: &mut (impl Stream<Item = Result<WatchEvent<Pod>>> + Unpin),
    name: &str,
    wanted: impl Fn(&Pod) -> bool,
) -> Result<(Pod, Instant)> {
    loop {
        match next(events).await? {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod)
                if pod.metadata.name.as_deref() == Some(name) && wanted(&pod) =>
            {
                return Ok((pod, Instant::now()));
            }
            WatchEvent::Error(status) => bail!("the watch failed: {}", status.message),
            _ => {}
        }
    }
}

async fn next(events: &mut (impl Stream<Item = Result<WatchEvent<Pod>>> + Unpin)) -> Result<WatchEvent<Pod>> {
    events.next().await.context("the watch has ended")?
}
