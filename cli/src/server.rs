//! `leme server`: flags (upstream's names) to the control plane's configuration.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use ipnetwork::IpNetwork;
use leme_control_plane::snapshots::Schedule;
use leme_control_plane::{Audit, AuditLimits, Config, Etcd};
use tokio_util::sync::CancellationToken;

#[derive(Args)]
// As upstream's: of a flag that is said twice the last counts, so that an administrator's stands against a unit's.
#[command(args_override_self = true)]
#[command(after_help = "Examples:
  leme server                                          an API server on 6443 with the embedded store
  leme server --etcd-endpoints https://10.0.0.5:2379   with its state in etcd")]
pub(crate) struct Options {
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Port to listen on
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// Address under which others reach this server [default: that of the default route]
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// The embedded store and the admin's kubeconfig
    #[arg(long, default_value = "/var/lib/leme/server")]
    data_dir: PathBuf,
    /// Certificates and keys, under kubeadm's names; what is missing is made [default: pki in the data directory]
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    #[command(flatten)]
    etcd: EtcdFlags,
    /// Hours between the snapshots that the server takes into <data-dir>/snapshots; 0: none
    #[arg(long, value_name = "HOURS", default_value_t = 12)]
    snapshot_interval: u32,
    /// How many of them are kept
    #[arg(long, value_name = "SNAPSHOTS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    snapshot_retention: u32,
    /// Which kinds are sealed in the store and with which keys; read again when it changes [default: secrets, with a key
    /// of the server's own]
    #[arg(long, value_name = "FILE")]
    encryption_provider_config: Option<PathBuf>,
    /// What is recorded of requests: a Policy of audit.k8s.io/v1
    #[arg(long, value_name = "FILE", requires = "audit_log_path")]
    audit_policy_file: Option<PathBuf>,
    /// Where it is recorded, a line of JSON per event; `-` is standard output
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    audit_log_path: Option<PathBuf>,
    /// Megabytes in one file before another is begun
    #[arg(long, value_name = "MB", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    audit_log_maxsize: u32,
    /// How many older files are kept; 0: all
    #[arg(long, value_name = "FILES", default_value_t = 0)]
    audit_log_maxbackup: usize,
    /// How many days older files are kept; 0: for ever
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    audit_log_maxage: u16,
    /// Range of Service addresses
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cluster_ip_range: IpNetwork,
    /// Range of pod addresses
    #[arg(long, default_value = "10.244.0.0/16")]
    cluster_cidr: IpNetwork,
    /// Ports for Services of type NodePort
    #[arg(long, default_value = "30000-32767", value_parser = port_range)]
    service_node_port_range: (u16, u16),
    /// Domain of the cluster's own names
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    cluster_domain: String,
    /// Further names and addresses for the serving certificate
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    tls_san: Vec<String>,
    /// Serve the API only, without controllers and scheduler
    #[arg(long)]
    no_controllers: bool,
}

/// Which etcd, in upstream's words.
#[derive(Args)]
pub(crate) struct EtcdFlags {
    /// Keep the state in this etcd instead of the embedded store
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    etcd_endpoints: Vec<String>,
    /// Authority of etcd's certificate
    #[arg(long, value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// Client certificate for etcd
    #[arg(long, value_name = "FILE")]
    etcd_certfile: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE")]
    etcd_keyfile: Option<PathBuf>,
}

impl EtcdFlags {
    pub(crate) fn configure(self) -> Option<Etcd> {
        (!self.etcd_endpoints.is_empty()).then_some(Etcd {
            endpoints: self.etcd_endpoints,
            ca_file: self.etcd_cafile,
            cert_file: self.etcd_certfile,
            key_file: self.etcd_keyfile,
        })
    }
}

pub(crate) async fn run(options: Options, shutdown: CancellationToken) -> Result<()> {
    let ready = |address: SocketAddr| tracing::info!(%address, "serving");
    leme_control_plane::run(configure(options)?, ready, shutdown).await
}

fn configure(options: Options) -> Result<Config> {
    let advertise = match options.advertise_address {
        Some(address) => address,
        None => default_address().context("no default route: say --advertise-address")?,
    };
    let snapshots = (options.snapshot_interval > 0).then(|| Schedule {
        interval: Duration::from_secs(3600 * u64::from(options.snapshot_interval)),
        retention: options.snapshot_retention as usize,
    });
    let audit = options.audit_policy_file.zip(options.audit_log_path).map(|(policy, log)| Audit {
        policy,
        log,
        limits: AuditLimits {
            size: u64::from(options.audit_log_maxsize) << 20,
            files: options.audit_log_maxbackup,
            days: options.audit_log_maxage.into(),
        },
    });
    Ok(Config {
        bind: SocketAddr::new(options.bind_address, options.secure_port),
        etcd: options.etcd.configure(),
        snapshots,
        audit,
        encryption: options.encryption_provider_config,
        service_cidr: options.service_cluster_ip_range,
        pod_cidr: options.cluster_cidr,
        node_ports: options.service_node_port_range,
        cluster_domain: options.cluster_domain,
        extra_names: options.tls_san,
        run_controllers: !options.no_controllers,
        cert_dir: options.cert_dir,
        ..Config::new(advertise, options.data_dir)
    })
}

/// The source address of the default route; connecting a datagram socket sends nothing.
pub(crate) fn default_address() -> Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
    Ok(socket.local_addr()?.ip())
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let parts = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    parts.filter(|(first, last)| first <= last).ok_or_else(|| "expected FIRST-LAST, like 30000-32767".to_owned())
}
