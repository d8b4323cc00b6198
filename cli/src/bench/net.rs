//! `leme bench net`: pods on two nodes of a live cluster, and this machine as a client outside.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use leme_measure::machine::Machine;
use leme_measure::report::Report;
use leme_measure::{Measurement, Row, row};

use super::image;
use super::load::{self, Plan, Target};
use super::pods::{self, PORT, Place, Pods};
use crate::cluster;
use crate::output::Format;

#[derive(Args)]
#[command(after_help = "Examples:
  leme bench net                                       two nodes of the current context's cluster
  leme bench net --nodes worker-1,worker-7 --html report.html
  leme bench net --image registry.example/leme-bench   where `leme bench image` was pushed to

Everything runs in namespace leme-bench, which is removed at the end.
Clusters of `leme up` get the image by themselves; for others
`leme bench image --help` tells how.")]
pub(crate) struct Options {
    /// Context of the kubeconfig [default: the current one]
    #[arg(long)]
    context: Option<String>,
    /// The server's node, and the other client's [default: two that take pods]
    #[arg(long, value_name = "NODE", value_delimiter = ',', num_args = 1..=2)]
    nodes: Vec<String>,
    /// An image with `leme` as its entry point
    #[arg(long, default_value = image::NAME)]
    image: String,
    /// Bursts on each address
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=200))]
    rounds: u16,
    /// How long one burst is, in milliseconds
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(10..=1_000))]
    millis: u64,
    /// Table or JSON lines
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Write a page with plots, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    local: cluster::StateDir,
}

const OWN: &str = "pod's own address";
/// Before this machine counts as one that cannot reach the nodes.
const REACH: Duration = Duration::from_secs(3);

pub(crate) async fn run(options: Options) -> Result<()> {
    let machine = Machine::here();
    let (client, context) = connect(options.context.as_deref()).await?;
    let places = pods::places(&client, &options.nodes).await?;
    let version = client.apiserver_version().await.context("the API server does not answer")?.git_version;
    if options.image == image::NAME {
        give_image(&options, &context).await?;
    }
    let pods = Pods::create(client, options.image.clone()).await?;
    let measured = tokio::select! {
        measured = measure(&pods, &places, &options) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    eprintln!("Removing namespace {}", pods::NAMESPACE);
    let removed = pods.remove().await;
    let rows: Vec<_> = measured?.into_iter().filter_map(Row::of).collect();
    removed?;
    let nodes: Vec<_> = places.iter().map(|place| place.name.as_str()).collect();
    let subject = format!("context {context}, Kubernetes {version}, nodes {}", nodes.join(" and "));
    tell(&options, &subject, &machine, &rows)
}

async fn connect(context: Option<&str>) -> Result<(Client, String)> {
    let kubeconfig =
        Kubeconfig::read().context("cannot read a kubeconfig; set KUBECONFIG, or make a cluster: `leme up`")?;
    let current = context.map(str::to_owned).or_else(|| kubeconfig.current_context.clone());
    let options = KubeConfigOptions { context: current.clone(), ..Default::default() };
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.context("cannot use the kubeconfig")?;
    Ok((Client::try_from(config)?, current.unwrap_or_default()))
}

/// A local cluster of ours on this machine gets the image without being asked for it.
async fn give_image(options: &Options, context: &str) -> Result<()> {
    let Some(cluster) = options.local.cluster_of(context)? else { return Ok(()) };
    let archive = tempfile::Builder::new().suffix(".tar").tempfile()?;
    image::write(archive.path())?;
    eprintln!("Loading {} into the nodes of {}", image::NAME, cluster.name);
    cluster::image::load_all(&cluster, archive.path()).await
}

async fn measure(pods: &Pods, places: &[Place], options: &Options) -> Result<Vec<Measurement>> {
    let (near, far) = match places {
        [] => bail!("no node is ready and takes pods"),
        [near] => (near, None),
        [near, far, ..] => (near, Some(far)),
    };
    pods.await_account().await?;
    let server = target(OWN, &pods.start_server(&near.name).await?, PORT)?;
    let (address, node_port) = pods.expose().await?;
    let service = target("ClusterIP", &address, PORT)?;
    let here = target("NodePort of the pod's node", &near.address, node_port)?;
    let plan = |between: &str, baseline: &Target, targets: &[&Target]| Plan {
        between: between.into(),
        baseline: baseline.clone(),
        targets: targets.iter().copied().cloned().collect(),
        rounds: usize::from(options.rounds),
        millis: options.millis,
    };
    eprintln!("From a pod on the same node ({})", near.name);
    let same = plan("same node", &server, &[&service]);
    let mut all = pods.load("near", &near.name, &same).await?;
    let Some(far) = far else {
        eprintln!("There is no second node that takes pods: nothing is measured across nodes");
        return Ok(all);
    };
    eprintln!("From a pod on another node ({})", far.name);
    let there = target("NodePort of another node", &far.address, node_port)?;
    all.extend(pods.load("far", &far.name, &plan("across nodes", &server, &[&service, &here])).await?);
    eprintln!("From this machine");
    all.extend(outside(plan("from this machine", &here, &[&there])).await?);
    Ok(all)
}

/// Only where this machine reaches the nodes' addresses, which is often not so.
async fn outside(plan: Plan) -> Result<Vec<Measurement>> {
    let work = move || {
        let mut measured = Vec::new();
        if let Err(error) = leme_measure::load::wait_for(plan.baseline.address, REACH) {
            eprintln!("  left out: {error:#}");
            return Ok(measured);
        }
        load::measure(&plan, REACH, |measurement| {
            measured.push(measurement.clone());
            Ok(())
        })?;
        Ok(measured)
    };
    tokio::task::spawn_blocking(work).await.context("measuring from here panicked")?
}

fn target(name: &str, address: &str, port: u16) -> Result<Target> {
    let address = address.parse().with_context(|| format!("{address:?} is no address"))?;
    Ok(Target { name: name.into(), address: SocketAddr::new(address, port) })
}

fn tell(options: &Options, subject: &str, machine: &Machine, rows: &[Row]) -> Result<()> {
    let mut out = std::io::stdout();
    match options.output {
        Format::Table => writeln!(out, "{subject}; measured from {machine}\n\n{}", row::table(rows))?,
        Format::Json => {
            for row in rows {
                writeln!(out, "{}", serde_json::to_string(row)?)?;
            }
        }
    }
    let Some(path) = &options.html else { return Ok(()) };
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let report = Report {
        title: "A cluster's network, measured",
        about: "Pods of one namespace and this machine; all addresses take turns in short bursts. A ratio is of two \
                bursts of the same round.",
        subject,
        machine,
        date: &jiff::Zoned::now().strftime("%F").to_string(),
        commands: &[format!("leme {}", arguments.join(" "))],
        rows,
    };
    report.write(path)?;
    eprintln!("The page is {}", path.display());
    Ok(())
}
