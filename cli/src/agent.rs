//! `leme agent`: flags (the kubelet's names) to the node's configuration.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use leme_agent::Config;
use leme_agent::config::{Limits, Thresholds};
use leme_datapath::{NodePorts, SocketLb};
use tokio_util::sync::CancellationToken;

use crate::server::default_address;

#[derive(Args)]
// As upstream's: of a flag that is said twice the last counts, so that an administrator's stands against a unit's.
#[command(args_override_self = true)]
#[command(after_help = "Examples:
  leme agent --kubeconfig /etc/kubernetes/kubelet.conf                  a node: pods and network
  leme agent --kubeconfig /etc/leme/network.conf --network-only         only CNI and Services")]
pub(crate) struct Options {
    /// How to reach the API server
    #[arg(long)]
    kubeconfig: PathBuf,
    /// With what to ask for a certificate while there is no kubeconfig: one is written then
    #[arg(long, value_name = "FILE")]
    bootstrap_kubeconfig: Option<PathBuf>,
    /// The node's name [default: this host's name]
    #[arg(long)]
    hostname_override: Option<String>,
    /// The node's address [default: that of the default route]
    #[arg(long)]
    node_ip: Option<IpAddr>,
    /// Only the network: another kubelet runs the pods
    #[arg(long)]
    network_only: bool,
    /// Pods' volumes and files
    #[arg(long, default_value = "/var/lib/kubelet")]
    root_dir: PathBuf,
    /// Sockets and pid files
    #[arg(long, default_value = "/run/leme")]
    run_dir: PathBuf,
    /// Containers' logs
    #[arg(long, default_value = "/var/log/pods")]
    pod_log_dir: PathBuf,
    /// containerd's socket
    #[arg(long, default_value = "/run/containerd/containerd.sock")]
    container_runtime_endpoint: String,
    /// cgroup below which pods run, absolute
    #[arg(long, default_value = "/leme")]
    cgroup_root: String,
    /// Address of the cluster's name server
    #[arg(long, default_value = "10.96.0.10", value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster's own names
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// The cluster's range of pod addresses
    #[arg(long, default_value = "10.244.0.0/16")]
    cluster_cidr: String,
    /// Outside ranges that see pods' own addresses and know the way back to them; all others see the node's
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    non_masquerade_cidrs: Vec<String>,
    /// Name servers for the outside
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// How many pods the node takes
    #[arg(long, default_value_t = 110)]
    max_pods: u32,
    /// Below this the node is under pressure [default: the kubelet's]
    #[arg(long, value_name = "SIGNAL<AMOUNT,…")]
    eviction_hard: Option<Thresholds>,
    /// Percent of the images' disk in use above which images go that nothing uses; 100: never
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_high_threshold: u8,
    /// Percent at which no more of them go
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_low_threshold: u8,
    /// Labels to register with
    #[arg(long, value_delimiter = ',', value_name = "KEY=VALUE", value_parser = label)]
    node_labels: Vec<(String, String)>,
    /// Certificate of the kubelet's API
    #[arg(long)]
    tls_cert_file: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long)]
    tls_private_key_file: Option<PathBuf>,
    /// Authority of the clients of the kubelet's API
    #[arg(long)]
    client_ca_file: Option<PathBuf>,
    /// Where the kubelet's API listens
    #[arg(long, default_value = "0.0.0.0:10250")]
    kubelet_address: SocketAddr,
    /// Where health is told
    #[arg(long, default_value = "127.0.0.1:10248")]
    healthz_address: SocketAddr,
    /// On which addresses NodePorts answer: networks, or `primary` [default: on all of the nodes' addresses]
    #[arg(long, value_delimiter = ',', value_name = "CIDR,…|primary")]
    nodeport_addresses: Vec<String>,
    /// Whose sockets get a backend as soon as they name a Service; all others' packets get theirs on the way. Choose
    /// host-only where sidecars of a service mesh must see which Service their pod asks for
    #[arg(long, value_enum, default_value_t)]
    socket_lb: SocketLbOption,
    /// Room for at least so many connections [default: by the machine's memory]
    #[arg(long, value_name = "CONNECTIONS", value_parser = clap::value_parser!(u32).range(..=16_777_216))]
    conntrack_min: Option<u32>,
    /// Where containerd looks for network configurations
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where containerd looks for network plugins
    #[arg(long, default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// The plugin to install there [default: leme-cni beside this binary or in ../libexec/leme]
    #[arg(long)]
    cni_plugin: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum SocketLbOption {
    /// Pods and the node itself
    #[default]
    All,
    /// The node itself, not its pods
    HostOnly,
}

impl From<SocketLbOption> for SocketLb {
    fn from(option: SocketLbOption) -> Self {
        match option {
            SocketLbOption::All => Self::All,
            SocketLbOption::HostOnly => Self::HostOnly,
        }
    }
}

pub(crate) async fn run(options: Options, shutdown: CancellationToken) -> Result<()> {
    leme_agent::run(configure(options)?, shutdown).await
}

fn configure(options: Options) -> Result<Config> {
    let name = match &options.hostname_override {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
    };
    let address = match options.node_ip {
        Some(address) => address,
        None => default_address().context("no default route: say --node-ip")?,
    };
    let this = std::env::current_exe().context("cannot find this binary")?;
    let dns = dns_command(&this, address, &options);
    let node_ports = NodePorts::parse(&options.nodeport_addresses);
    let node_ports = node_ports.map_err(|fault| anyhow::anyhow!("--nodeport-addresses: {fault}"))?;
    let endpoint = options.container_runtime_endpoint;
    Ok(Config {
        bootstrap_kubeconfig: options.bootstrap_kubeconfig,
        root_dir: options.root_dir,
        run_dir: options.run_dir,
        pod_log_dir: options.pod_log_dir,
        container_runtime_endpoint: endpoint.strip_prefix("unix://").unwrap_or(&endpoint).into(),
        cgroup_root: options.cgroup_root,
        cluster_dns: options.cluster_dns,
        cluster_domain: options.cluster_domain,
        cluster_cidr: options.cluster_cidr,
        non_masquerade_cidrs: options.non_masquerade_cidrs,
        resolv_conf: options.resolv_conf,
        max_pods: options.max_pods,
        image_gc: Limits { high: options.image_gc_high_threshold, low: options.image_gc_low_threshold },
        eviction_hard: options.eviction_hard.unwrap_or_default(),
        node_labels: options.node_labels.into_iter().collect::<BTreeMap<_, _>>(),
        network_only: options.network_only,
        kubelet_address: options.kubelet_address,
        tls_cert_file: options.tls_cert_file,
        tls_private_key_file: options.tls_private_key_file,
        client_ca_file: options.client_ca_file,
        healthz_address: options.healthz_address,
        node_ports,
        socket_lb: options.socket_lb.into(),
        conntrack_min: options.conntrack_min.unwrap_or_default(),
        dns_command: dns,
        cni_conf_dir: options.cni_conf_dir,
        cni_bin_dir: options.cni_bin_dir,
        cni_plugin: options.cni_plugin.or_else(|| packaged_plugin(&this)),
        ..Config::new(name, address, options.kubeconfig)
    })
}

/// The plugin that came with this binary: beside it from a build, in libexec from a package.
fn packaged_plugin(this: &Path) -> Option<PathBuf> {
    let folder = this.parent()?;
    let places = [folder.join("leme-cni"), folder.parent()?.join("libexec/leme/leme-cni")];
    places.into_iter().find(|place| place.is_file())
}

/// `leme dns` as a process of its own, so that names go on resolving when the agent is gone.
fn dns_command(this: &Path, address: IpAddr, options: &Options) -> Vec<String> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let flags = [
        ("--kubeconfig", path(&options.kubeconfig)),
        ("--listen", SocketAddr::new(address, 53).to_string()),
        ("--cluster-domain", options.cluster_domain.clone()),
        ("--resolv-conf", path(&options.resolv_conf)),
    ];
    let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
    [path(this), "dns".to_owned()].into_iter().chain(flags).collect()
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() { Err("a label needs a key".to_owned()) } else { Ok((key.to_owned(), value.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_is_found_beside_the_binary_or_where_packages_put_it() {
        let root = tempfile::tempdir().unwrap();
        let (binary, libexec) = (root.path().join("bin/leme"), root.path().join("libexec/leme"));
        assert_eq!(packaged_plugin(&binary), None);
        std::fs::create_dir_all(&libexec).unwrap();
        std::fs::write(libexec.join("leme-cni"), "").unwrap();
        assert_eq!(packaged_plugin(&binary), Some(libexec.join("leme-cni")));
        std::fs::create_dir(root.path().join("bin")).unwrap();
        std::fs::write(root.path().join("bin/leme-cni"), "").unwrap();
        assert_eq!(packaged_plugin(&binary), Some(root.path().join("bin/leme-cni")));
    }
}
