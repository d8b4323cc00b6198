//! The node's name server: answers for the cluster domain from memory, forwards the rest.
//!
//! A process of its own (`leme dns`): the agent starts it and adopts it, and it survives the agent, so names go on
//! resolving while the agent is replaced. It watches Services and EndpointSlices through the API server and keeps
//! answering from what it knows while that is away. It programs nothing and writes nothing.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, RwLock},
    time::Duration,
};

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod cluster;
mod edns;
mod forward;
mod health;
mod server;
pub mod zone;

use forward::Forwarder;
use health::Metrics;
use server::Server;
use zone::Zone;

/// Filled by `cli`; nothing changes after the start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where questions arrive, UDP and TCP: the node's InternalIP and port 53. More may be given.
    pub listen: Vec<SocketAddr>,
    pub kubeconfig: PathBuf,
    /// `cluster.local`
    pub cluster_domain: String,
    /// Its name servers get every question that is not about the cluster; those that are us are left out.
    pub resolv_conf: PathBuf,
    /// `/health`, `/ready` and `/metrics`; none: not served.
    pub health_address: Option<SocketAddr>,
}

impl Config {
    pub fn new(listen: Vec<SocketAddr>, kubeconfig: PathBuf) -> Self {
        Self {
            listen,
            kubeconfig,
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            health_address: Some(([127, 0, 0, 1], 9153).into()),
        }
    }
}

/// Serves until `shutdown`. Fails only at once, for what is wrong with the configuration: an API server, an upstream or
/// an address that is away is waited for.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = connect(&config).await?;
    let zone = Arc::new(RwLock::new(Zone::new(&config.cluster_domain)));
    let metrics = Arc::new(Metrics::default());
    let upstreams = forward::read_resolv_conf(&config.resolv_conf, &config.listen);
    let forwarder = Forwarder::new(upstreams, Arc::clone(&metrics));
    let server = Arc::new(Server::new(Arc::clone(&zone), forwarder, Arc::clone(&metrics)));

    let mut parts = JoinSet::new();
    parts.spawn(cluster::follow(client, zone, Arc::clone(&metrics)));
    for address in &config.listen {
        parts.spawn(server::serve_udp(Arc::clone(&server), *address));
        parts.spawn(server::serve_tcp(Arc::clone(&server), *address));
    }
    if let Some(address) = config.health_address {
        parts.spawn(health::serve(address, metrics));
    }
    shutdown.cancelled().await;
    parts.shutdown().await;
    Ok(())
}

async fn connect(config: &Config) -> anyhow::Result<kube::Client> {
    let path = &config.kubeconfig;
    let read = || format!("failed to read the kubeconfig {}", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(read)?;
    let options = KubeConfigOptions::default();
    let mut client = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(read)?;
    client.connect_timeout = Some(Duration::from_secs(5));
    kube::Client::try_from(client).context("failed to make a client of the kubeconfig")
}
