//! `leme dns`: flags to the name server's configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use leme_dns::Config;
use tokio_util::sync::CancellationToken;

#[derive(Args)]
#[command(after_help = "Example:
  leme dns --listen 10.0.0.5:53 --kubeconfig /etc/kubernetes/kubelet.conf")]
pub(crate) struct Options {
    /// Addresses to answer on, UDP and TCP
    #[arg(long, required = true, value_delimiter = ',', value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// How to reach the API server
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Domain of the cluster's own names
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    cluster_domain: String,
    /// Name servers for everything else
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Where health and metrics are told
    #[arg(long, default_value = "127.0.0.1:9153")]
    health_address: SocketAddr,
}

pub(crate) async fn run(options: Options, shutdown: CancellationToken) -> Result<()> {
    let config = Config {
        cluster_domain: options.cluster_domain,
        resolv_conf: options.resolv_conf,
        health_address: Some(options.health_address),
        ..Config::new(options.listen, options.kubeconfig)
    };
    leme_dns::run(config, shutdown).await
}
