//! A Service with one endpoint beside that endpoint's own address: new connections, requests and throughput, from a
//! pod on the same node and from one on another.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use crate::api::{Cluster, address, pod, running};
use crate::enter;
use leme_measure::{Figure, Kind, Measurement};

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    cluster: Cluster,
    /// The node of the server and of the near client
    #[arg(long)]
    near: String,
    /// The node of the far client
    #[arg(long)]
    far: String,
    /// Bursts on each address, per measurement
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// Of one burst
    #[arg(long, default_value_t = 250)]
    millis: u64,
}

const PORT: u16 = 8080;
const SERVER: &str = "bench-server";

pub(crate) async fn run(options: Options) -> Result<()> {
    let client = options.cluster.client().await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let placed = [(SERVER, &options.near), ("bench-near", &options.near), ("bench-far", &options.far)];
    for (name, node) in placed {
        pods.create(&PostParams::default(), &pod(name, node)?).await.context("cannot create a pod")?;
    }
    let service = expose(client.clone()).await?;
    let server = running(&pods, SERVER).await?;
    let endpoint = SocketAddr::new(address(&server).context("a pod without an address")?.parse()?, PORT);
    let _serving = Serving(this(&server, "serve")?.args(["--port", &PORT.to_string()]).spawn()?);
    for (name, place) in [("bench-near", "same node"), ("bench-far", "other node")] {
        let pod = running(&pods, name).await?;
        for kind in [Kind::Connections, Kind::Requests, Kind::Throughput] {
            measure(&options, kind, &pod, place, service, endpoint)?;
        }
    }
    for (name, _) in placed {
        pods.delete(name, &DeleteParams::default()).await?;
    }
    Api::<Service>::default_namespaced(client).delete(SERVER, &DeleteParams::default()).await?;
    Ok(())
}

/// The Service's address.
async fn expose(client: Client) -> Result<SocketAddr> {
    let service: Service = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": SERVER },
        "spec": {
            "selector": { "name": SERVER },
            "ports": [{ "name": "tcp", "port": PORT }, { "name": "udp", "port": PORT, "protocol": "UDP" }],
        },
    }))?;
    let service = Api::default_namespaced(client).create(&PostParams::default(), &service).await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).context("a Service without an address")?;
    Ok(SocketAddr::new(address.parse()?, PORT))
}

fn measure(
    options: &Options,
    kind: Kind,
    pod: &Pod,
    place: &str,
    service: SocketAddr,
    endpoint: SocketAddr,
) -> Result<()> {
    let Figure { metric, unit, .. } = kind.figures()[0];
    // `load` prints what arrived per second: bytes of streams.
    let scale = if kind == Kind::Throughput { 8e-9 } else { 1.0 };
    let mut load = this(pod, "load")?;
    load.args(["--kind", kind.name(), &service.to_string(), &endpoint.to_string()]);
    load.args(["--pairs", &options.pairs.to_string(), "--millis", &options.millis.to_string()]);
    let output = load.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the load on {service} failed");
    let (samples, direct) = pairs(&String::from_utf8(output.stdout)?, scale)?;
    let row = Measurement::new(format!("ClusterIP: {metric}"), format!("leme, {place}"), unit, samples);
    row.against("pod's own address", direct).print()
}

fn pairs(text: &str, scale: f64) -> Result<(Vec<f64>, Vec<f64>)> {
    let pair = |line: &str| {
        let (a, b) = line.split_once(' ').context("the load did not print pairs")?;
        Ok((a.parse::<f64>()? * scale, b.parse::<f64>()? * scale))
    };
    Ok(text.lines().map(pair).collect::<Result<Vec<_>>>()?.into_iter().unzip())
}

/// This program, to be run in a pod.
fn this(pod: &Pod, verb: &str) -> Result<Command> {
    let uid = pod.metadata.uid.as_deref().context("a pod without a uid")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([verb, "--pod-of", &enter::process_of(uid)?.to_string()]);
    Ok(command)
}

/// The server's process, which ends with the measurement.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
