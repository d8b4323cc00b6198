//! The node: a kubelet on containerd and the network that its pods are attached to.
//!
//! `cli` calls [`run`] with a filled [`Config`]; everything else meets at the Kubernetes API. The agent never exits
//! because of the server, the runtime or a pod, and when it goes, everything it made goes on without it.

pub mod config;
mod dns_process;
pub mod drain;
pub mod events;
mod health;
mod kubelet_api;
pub mod memory;
pub mod network;
pub mod node;
mod objects;
pub mod pods;
pub mod runtime;
mod servers;
mod services;
mod tls_bootstrap;
mod volumes;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use config::Config;

use drain::{Drain, NoDrain};
use network::NetworkHandle;
use node::machine::Machine;
use runtime::Cri;

/// Runs the node until `shutdown`; an error is something that no retry would mend.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = Arc::new(config);
    if let Some(bootstrap) = config.bootstrap_kubeconfig.as_deref() {
        let asked = tls_bootstrap::ensure(&config, bootstrap);
        let Some(outcome) = shutdown.run_until_cancelled(asked).await else { return Ok(()) };
        outcome.context("this node has no certificate")?;
    }
    let (client, servers) = client(&config).await?;
    tokio::spawn(servers.follow(client.clone(), shutdown.clone()));
    let events = events::Recorder::start(client.clone(), config.node_name.clone());
    let network = start_network(&config, &client, &events, &shutdown)?;
    if !config.dns_command.is_empty() {
        let command = config.dns_command.clone();
        tokio::spawn(dns_process::keep(command, config.run_dir.clone(), shutdown.clone()));
    }
    let health = tokio::spawn(health::serve(config.healthz_address, network.clone(), shutdown.clone()));
    match config.network_only {
        true => shutdown.cancelled().await,
        false => run_node(config, client, network, events, shutdown.clone()).await?,
    }
    health.await.context("the health endpoint failed")?
}

/// The kubelet's part.
async fn run_node(
    config: Arc<Config>,
    client: kube::Client,
    network: Option<NetworkHandle>,
    events: events::Recorder,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.pod_log_dir).with_context(|| format!("making {}", config.pod_log_dir.display()))?;
    volumes::share_root(&config).context("preparing the directory of the pods' volumes")?;
    let machine = Machine::read(&config.root_dir);
    let cri = Cri::new(&config.container_runtime_endpoint);
    let objects = objects::Objects::new(client.clone());
    let services = services::Services::default();
    tokio::spawn(services.clone().watch(client.clone(), shutdown.clone()));
    let (labels, node_labels) = watch::channel(None);
    let report = node::Report {
        config: config.clone(),
        client: client.clone(),
        cri: cri.clone(),
        machine: machine.clone(),
        events: events.clone(),
        network: network_troubles(network.as_ref()),
        labels,
        nudge: Arc::new(Notify::new()),
    };
    tokio::spawn(node::report(report, shutdown.clone()));
    tokio::spawn(node::renew(client.clone(), config.node_name.clone(), shutdown.clone()));
    let serving = leme_node_api::Config {
        address: config.kubelet_address,
        tls_cert_file: config.tls_cert_file.clone(),
        tls_private_key_file: config.tls_private_key_file.clone(),
        client_ca_file: config.client_ca_file.clone(),
    };
    let context = pods::Context {
        images: pods::images::Images::new(cri.clone(), events.clone(), objects.clone()),
        drain: network.map_or_else(|| Arc::new(NoDrain) as Arc<dyn Drain>, |network| Arc::new(network)),
        tokens: volumes::Tokens::default(),
        owners: pods::Owners::default(),
        registry: pods::Registry::default(),
        config,
        client,
        cri,
        events,
        objects,
        services,
        machine,
        node_labels,
    };
    let context = Arc::new(context);
    let api = Arc::new(kubelet_api::KubeletApi::new(context.clone()));
    let client = context.client.clone();
    tokio::try_join!(
        async {
            leme_node_api::serve(serving, api, client, shutdown.clone()).await.context("the kubelet's API failed")
        },
        pods::run(context, shutdown.clone()),
    )?;
    Ok(())
}

/// The datapath of this node, or nothing where another's serves it.
fn start_network(
    config: &Config,
    client: &kube::Client,
    events: &events::Recorder,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<NetworkHandle>> {
    if config.foreign_network {
        return Ok(None);
    }
    let IpAddr::V4(node_ip) = config.node_ip else {
        anyhow::bail!("the node's address {} is not IPv4", config.node_ip)
    };
    let cluster_cidr = config.cluster_cidr.parse();
    let exclusion = |range: &String| {
        range.parse::<ipnetwork::IpNetwork>().with_context(|| format!("the non-masquerade range {range:?}"))
    };
    let network = network::Config {
        node_name: config.node_name.clone(),
        node_ip,
        state_dir: config.root_dir.join("network"),
        cni_socket: config.run_dir.join("cni.sock"),
        cni_conf_dir: config.cni_conf_dir.clone(),
        cni_bin_dir: config.cni_bin_dir.clone(),
        cni_plugin: config.cni_plugin.clone(),
        cluster_cidr: cluster_cidr.with_context(|| format!("the cluster's pod range {:?}", config.cluster_cidr))?,
        non_masquerade_cidrs: config.non_masquerade_cidrs.iter().map(exclusion).collect::<anyhow::Result<_>>()?,
        pin_dir: config.bpf_dir.join(&config.node_name),
        cgroup: pods::cgroups::unified_directory(&config.cgroup_root),
        node_ports: config.node_ports.clone(),
        socket_lb: config.socket_lb,
        conntrack_min: config.conntrack_min,
        health_address: config.proxy_healthz_address,
    };
    Ok(Some(network::start(network, client.clone(), events.clone(), shutdown.clone())))
}

/// The network's part of the Ready condition: follows its status for as long as somebody asks.
fn network_troubles(network: Option<&NetworkHandle>) -> watch::Receiver<Option<String>> {
    let (troubles, watched) = watch::channel(None);
    if let Some(mut status) = network.map(NetworkHandle::watch_status) {
        tokio::spawn(async move {
            loop {
                troubles.send_replace(words(&status.borrow_and_update()));
                if status.changed().await.is_err() {
                    return;
                }
            }
        });
    }
    watched
}

fn words(status: &network::Status) -> Option<String> {
    match status {
        network::Status::Ready => None,
        network::Status::NotReady(why) => Some(format!("the node's network is not ready: {why}")),
    }
}

async fn client(config: &Config) -> anyhow::Result<(kube::Client, servers::Servers)> {
    let to_server = client_config(&config.kubeconfig).await?;
    let servers = servers::Servers::load(&to_server.cluster_url, config.root_dir.join("servers.json"));
    let client = servers::client(&to_server, servers.clone()).context("making a client of the API servers")?;
    Ok((client, servers))
}

async fn client_config(kubeconfig: &Path) -> anyhow::Result<kube::Config> {
    let text = kube::config::Kubeconfig::read_from(kubeconfig);
    let text = text.with_context(|| format!("reading the kubeconfig {}", kubeconfig.display()))?;
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(text, &options).await;
    let mut config = config.with_context(|| format!("understanding the kubeconfig {}", kubeconfig.display()))?;
    // The owner of the fields that this node writes.
    let agent = http::HeaderValue::from_static(concat!("kubelet/leme-", env!("CARGO_PKG_VERSION")));
    config.headers.push((http::header::USER_AGENT, agent));
    Ok(config)
}
