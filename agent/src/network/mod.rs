//! The node's network: pods' addresses and links through CNI, and the datapath kept equal to what the cluster wants.
//!
//! `leme_agent::run` calls [`start`] and hands the [`NetworkHandle`] to the parts that need to know when pods can run
//! and when a stopping pod has left the tables. It waits for the node's pod CIDR, opens the datapath, adopts what an
//! earlier agent left, serves CNI, and only then writes the CNI configuration that makes the runtime ready. It never
//! removes anything on its way out: the kernel goes on forwarding without it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use async_trait::async_trait;
use ipnetwork::{IpNetwork, Ipv4Network};
use leme_cni::RuntimeConfig;
use leme_datapath::{Attachment, Datapath, EndpointSpec, Nic, NodePorts, Report, Sizes, SocketLb};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{drain::Drain, events::Recorder, memory};

pub mod cni_config;
pub mod cni_server;
pub mod conntrack;
pub mod devices;
pub mod findings;
pub mod health;
mod host_ports;
pub mod ipam;
mod limits;
pub mod metrics;
pub mod proxy_health;
pub mod reconciler;
pub mod service_health;
mod stranded;
pub mod veth;

use cni_config::Files;
use cni_server::{CniServer, Endpoints, Shape};
use findings::{Finding, Findings, Watcher};
use ipam::Ipam;
use metrics::Metrics;
use proxy_health::ProxyHealth;
use reconciler::{Cluster, Reconciler};
use veth::{Links, Veth};

/// Characters of an error that fit a condition's message.
const REASON: usize = 300;

/// What the network must be told; `leme_agent::run` fills it from the agent's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    pub node_ip: Ipv4Addr,
    /// Reservations and the last known pod CIDR: must outlive the agent.
    pub state_dir: PathBuf,
    pub cni_socket: PathBuf,
    pub cni_conf_dir: PathBuf,
    pub cni_bin_dir: PathBuf,
    /// The plugin to install into `cni_bin_dir`; none: it is there already.
    pub cni_plugin: Option<PathBuf>,
    /// The cluster's pod range.
    pub cluster_cidr: Ipv4Network,
    /// Outside ranges that see pods' own addresses.
    pub non_masquerade_cidrs: Vec<IpNetwork>,
    pub pin_dir: PathBuf,
    /// The cgroup v2 directory that holds the node's pods and its own processes.
    pub cgroup: PathBuf,
    /// On which addresses NodePorts answer.
    pub node_ports: NodePorts,
    pub socket_lb: SocketLb,
    /// Room for at least so many connections; the machine's memory may give more.
    pub conntrack_min: u32,
    /// `/healthz`, `/livez` and `/metrics`, kube-proxy's port 10256; none: not served.
    pub health_address: Option<SocketAddr>,
}

/// Whether pods can be attached, and if not, why: the Ready condition's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    NotReady(String),
    Ready,
}

/// What the rest of the agent sees of the network.
#[derive(Clone)]
pub struct NetworkHandle {
    node: String,
    status: watch::Receiver<Status>,
    cluster: watch::Receiver<Cluster>,
    findings: Findings,
}

/// How the network is: `/findings` of the agent's health port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Health {
    pub node: String,
    /// Why pods cannot be attached; none: they can.
    pub not_ready: Option<String>,
    pub findings: Vec<Finding>,
}

impl NetworkHandle {
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub fn is_ready(&self) -> bool {
        *self.status.borrow() == Status::Ready
    }

    /// Looks now.
    pub async fn health(&self) -> Health {
        let not_ready = match self.status() {
            Status::Ready => None,
            Status::NotReady(reason) => Some(reason),
        };
        // Before the network is open nobody looks, and nobody would answer.
        let findings = if not_ready.is_none() { self.findings.ask().await } else { Vec::new() };
        Health { node: self.node.clone(), not_ready, findings }
    }

    /// Changes whenever the status does.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

#[async_trait]
impl Drain for NetworkHandle {
    async fn await_draining(&self, pod_uid: &str) {
        let mut cluster = self.cluster.clone();
        // An error means that the network is shutting down: then nothing will ever change.
        let _ = cluster.wait_for(|cluster| !cluster.offers(pod_uid)).await;
    }
}

/// The one writer of the kernel's tables, shared by CNI and the reconciler.
#[derive(Clone)]
pub struct Kernel {
    datapath: Arc<Mutex<Datapath>>,
    /// Woken when a backend may have left connected UDP sockets behind.
    deserted: Arc<Notify>,
}

impl Kernel {
    pub fn new(datapath: Datapath) -> Self {
        Self { datapath: Arc::new(Mutex::new(datapath)), deserted: Arc::default() }
    }

    /// To be told of every report.
    fn heed(&self, report: Report) {
        if report.deserted {
            self.deserted.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Datapath> {
        self.datapath.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Runs map operations away from the threads that serve others.
    pub async fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut Datapath) -> T + Send + 'static) -> T {
        let kernel = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&mut kernel.lock())).await;
        done.expect("map operations do not panic and are not cancelled")
    }
}

#[async_trait]
impl Endpoints for Kernel {
    async fn add(&self, veth: &Veth, ifindex: u32, netns: &str, runtime: &RuntimeConfig) -> anyhow::Result<()> {
        let endpoint = endpoint(veth, ifindex, runtime);
        let ports = host_ports::served(&runtime.port_mappings, &host_ports::own_addresses()?);
        let netns = PathBuf::from(netns);
        let added = self.with(move |datapath| {
            datapath.add_endpoint(&endpoint)?;
            // The pod works without: what depends on who asks is then decided per packet.
            if let Err(error) = datapath.add_namespace(endpoint.addr, &netns) {
                warn!(%error, addr = %endpoint.addr, "a pod's sockets are not known as its own");
            }
            datapath.set_host_ports(endpoint.addr, &ports)
        });
        self.heed(added.await?);
        Ok(())
    }

    async fn remove(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        self.heed(self.with(move |datapath| datapath.remove_endpoint(address.into())).await?);
        Ok(())
    }

    async fn known(&self) -> anyhow::Result<Vec<Ipv4Addr>> {
        let endpoints = self.with(|datapath| datapath.endpoints()).await?;
        let v4 = |endpoint: EndpointSpec| match endpoint.addr {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        Ok(endpoints.into_iter().filter_map(v4).collect())
    }

    async fn check(&self, veth: &Veth, ifindex: u32, runtime: &RuntimeConfig) -> anyhow::Result<Vec<String>> {
        let endpoint = endpoint(veth, ifindex, runtime);
        let ports = host_ports::served(&runtime.port_mappings, &host_ports::own_addresses()?);
        let (faults, places) = self
            .with(move |datapath| (datapath.check_endpoint(&endpoint, &ports), datapath.pod_attachments(ifindex)))
            .await;
        Ok(faults?.into_iter().chain(missing(places.into()).await?).collect())
    }

    async fn check_node(&self) -> anyhow::Result<Vec<String>> {
        missing(self.with(|datapath| datapath.node_attachments()).await).await
    }
}

/// Programs that are not where they belong, in words.
async fn missing(places: Vec<Attachment>) -> anyhow::Result<Vec<String>> {
    let detached = leme_datapath::inspect(places).await?.detached;
    Ok(detached.iter().map(|place| format!("there is no {place}")).collect())
}

fn endpoint(veth: &Veth, ifindex: u32, runtime: &RuntimeConfig) -> EndpointSpec {
    let limits = limits::limits(runtime.bandwidth);
    EndpointSpec { addr: veth.address.into(), ifindex, mac: veth.mac, host_mac: veth.host_mac, limits }
}

/// Starts the network in the background and returns at once; the handle tells when it is ready. Work goes on until
/// `shutdown`, whatever happens to the API server.
pub fn start(config: Config, client: kube::Client, events: Recorder, shutdown: CancellationToken) -> NetworkHandle {
    let (status, status_watch) = watch::channel(Status::NotReady("the node has no pod CIDR yet".into()));
    let (cluster, cluster_watch) = watch::channel(Cluster::default());
    let metrics = Arc::new(Metrics::default());
    let (watcher, findings) = Watcher::new(&config, Arc::clone(&metrics), events);
    let node = config.node_name.clone();
    let work = async move {
        let network = Network { config, status, cluster, metrics };
        shutdown.clone().run_until_cancelled_owned(network.run(client, watcher, shutdown)).await
    };
    tokio::spawn(work);
    NetworkHandle { node, status: status_watch, cluster: cluster_watch, findings }
}

struct Network {
    config: Config,
    status: watch::Sender<Status>,
    cluster: watch::Sender<Cluster>,
    metrics: Arc<Metrics>,
}

impl Network {
    async fn run(self, client: kube::Client, watcher: Watcher, shutdown: CancellationToken) {
        let mut watching = Reconciler::watch(&self.config, client, Arc::clone(&self.metrics));
        let pools = self.await_pools(&mut watching).await;
        let opened = self.insist(|| self.open(pools.clone())).await;
        let (kernel, server) = opened;
        self.serve_cni(&server, &shutdown);
        let keep = cni_config::keep(self.files(), self.status.subscribe());
        tokio::spawn(async move { shutdown.run_until_cancelled(keep).await });
        tokio::spawn(conntrack::collect_regularly(kernel.clone(), Arc::clone(&self.metrics)));
        tokio::spawn(stranded::end_when_woken(kernel.clone()));
        let changes = devices::follow(kernel.clone(), Arc::clone(&server));
        self.serve_health(watching.health(), &kernel, server);
        tokio::spawn(watcher.watch(kernel.clone(), changes));
        watching.reconcile(kernel, &self.cluster, || self.announce()).await;
    }

    /// The pod CIDRs from the API server, or those of last time: pods must start while the API server is away.
    async fn await_pools(&self, watching: &mut Reconciler) -> Vec<Ipv4Network> {
        let file = self.config.state_dir.join("node.json");
        let pod_cidrs = match Remembered::read(&file) {
            Some(known) => watching.await_pod_cidrs_briefly().await.unwrap_or(known.pod_cidrs),
            None => watching.await_pod_cidrs().await,
        };
        if let Err(error) = (Remembered { pod_cidrs: pod_cidrs.clone() }).write(&file) {
            warn!("failed to remember the pod CIDRs: {error:#}");
        }
        pod_cidrs
    }

    /// Repeats what must succeed before the node can have a network, and says why it does not.
    async fn insist<T, F: Future<Output = anyhow::Result<T>>>(&self, attempt: impl Fn() -> F) -> T {
        loop {
            match attempt().await {
                Ok(done) => return done,
                Err(error) => {
                    // A verifier's log is thousands of lines; its beginning names the program.
                    let reason: String = format!("{error:#}").chars().take(REASON).collect();
                    if self.status.send_replace(Status::NotReady(reason.clone())) != Status::NotReady(reason.clone()) {
                        warn!(reason, "the node's network cannot start; trying again");
                    }
                }
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    async fn open(&self, pools: Vec<Ipv4Network>) -> anyhow::Result<(Kernel, Arc<CniServer>)> {
        let first = *pools.first().context("the node has no IPv4 pod CIDR")?;
        let links = Links::open()?;
        let node_ip = IpAddr::V4(self.config.node_ip);
        let nics = leme_datapath::find_nics(node_ip, &[leme_datapath::VXLAN]).await?;
        let nic = nics.first().with_context(|| format!("no device has the node's address {node_ip} or a way out"))?;
        ensure!(first.prefix() <= 30, "the pod CIDR {first} has no room for pods");
        std::fs::create_dir_all(&self.config.cgroup)
            .with_context(|| format!("failed to create the node's cgroup {}", self.config.cgroup.display()))?;
        let datapath =
            Datapath::open(self.datapath_config(first, &nics)).await.context("failed to open the datapath")?;
        // The kernel's BTF and the programs' object, read for this and needed no more.
        memory::give_back();
        let route_mtu = match datapath.pod_mtu() {
            0 => nic.mtu.saturating_sub(50),
            mtu => mtu,
        };
        let mtu = nics.iter().map(|nic| nic.mtu).fold(route_mtu, u32::max);
        let shape = Shape { mtu, route_mtu, router: router(first) };
        let kernel = Kernel::new(datapath);
        let ipam = Ipam::open(&self.config.state_dir.join("ipam"), pools)?;
        let server = CniServer::new(ipam, links, Arc::new(kernel.clone()), shape, Arc::clone(&self.metrics));
        server.adopt().await.context("failed to adopt the node's pods")?;
        Ok((kernel, Arc::new(server)))
    }

    fn datapath_config(&self, pod_cidr: Ipv4Network, nics: &[Nic]) -> leme_datapath::Config {
        let Config { node_name, cgroup, node_ip, pin_dir, cluster_cidr, .. } = &self.config;
        let sizes = Sizes::default();
        leme_datapath::Config {
            sizes: Sizes { connections: sizes.connections.max(self.config.conntrack_min), ..sizes },
            pin_dir: pin_dir.clone(),
            nics: nics.iter().map(|nic| nic.index).collect(),
            cluster_cidr: IpNetwork::V4(*cluster_cidr),
            non_masquerade_cidrs: self.config.non_masquerade_cidrs.clone(),
            node_ports: self.config.node_ports.clone(),
            socket_lb: self.config.socket_lb,
            ..leme_datapath::Config::new(node_name, cgroup, IpAddr::V4(*node_ip), IpNetwork::V4(pod_cidr))
        }
    }

    fn serve_cni(&self, server: &Arc<CniServer>, shutdown: &CancellationToken) {
        let (server, path, shutdown) = (Arc::clone(server), self.config.cni_socket.clone(), shutdown.clone());
        tokio::spawn(async move {
            while let Err(error) = Arc::clone(&server).serve(&path, shutdown.clone()).await {
                warn!("{:#}; trying again", anyhow::Error::from(error));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    fn serve_health(&self, health: Arc<ProxyHealth>, kernel: &Kernel, server: Arc<CniServer>) {
        if let Some(address) = self.config.health_address {
            let (status, metrics, kernel) = (self.status.subscribe(), Arc::clone(&self.metrics), kernel.clone());
            tokio::spawn(health::serve(address, health::Served { status, health, metrics, kernel, server }));
        }
    }

    fn files(&self) -> Files {
        let Config { cni_conf_dir, cni_bin_dir, cni_plugin, cni_socket, .. } = self.config.clone();
        Files { conf_dir: cni_conf_dir, bin_dir: cni_bin_dir, plugin: cni_plugin, socket: cni_socket }
    }

    /// The tables are right: from now on the runtime may attach pods.
    fn announce(&self) -> anyhow::Result<()> {
        self.files().install()?;
        if self.status.send_replace(Status::Ready) != Status::Ready {
            info!("the node's network is ready");
        }
        Ok(())
    }
}

/// The first address of a pod CIDR is the node's own.
fn router(pool: Ipv4Network) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(pool.network()) + 1)
}

/// What must be known to start without the API server. Pod CIDRs are immutable once a node has them.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Remembered {
    pod_cidrs: Vec<Ipv4Network>,
}

impl Remembered {
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        cni_config::replace(path, &serde_json::to_vec(self)?, 0o600)
    }
}
