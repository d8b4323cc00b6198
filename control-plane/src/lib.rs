//! The control plane: API server, controllers and scheduler in one process.
//!
//! `leme server` calls [`run`]; `leme up` and `leme init` also use [`pki`] to issue the nodes' certificates. The only
//! thing others see of a running control plane is the Kubernetes API.

mod admission;
mod api;
mod audit;
mod auth;
mod bootstrap;
mod encryption;
mod joining;
mod masters;
pub mod pki;
pub mod resources;
mod server;
pub mod snapshots;

use std::{
    fs::File,
    io::Read,
    net::{IpAddr, SocketAddr},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use leme_controllers::{
    MakeClient,
    election::{self, Election, Term},
};
use leme_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use api::App;
pub use audit::{Limits as AuditLimits, Options as Audit};
pub use joining::signature as cluster_info_signature;

/// What one API server needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens; port 0 takes any.
    pub bind: SocketAddr,
    /// Where others reach it: in the `kubernetes` Service's endpoints and in the serving certificate.
    pub advertise: IpAddr,
    /// `admin.kubeconfig`, and `state.db` of the embedded store.
    pub data_dir: PathBuf,
    /// Certificates and keys, under kubeadm's names. `None`: `pki/` of the data directory.
    pub cert_dir: Option<PathBuf>,
    /// `None`: the embedded store.
    pub etcd: Option<Etcd>,
    /// Which kinds are sealed in the store and with which keys, upstream's `EncryptionConfiguration`. `None`: secrets,
    /// with a key that the first server makes, `pki/encryption-config.yaml`.
    pub encryption: Option<PathBuf>,
    /// What is recorded of requests, and where. `None`: nothing.
    pub audit: Option<Audit>,
    pub service_cidr: IpNetwork,
    pub pod_cidr: IpNetwork,
    /// First and last NodePort.
    pub node_ports: (u16, u16),
    pub cluster_domain: String,
    /// More names and addresses for the serving certificate.
    pub extra_names: Vec<String>,
    /// `None`: no snapshots but those that somebody takes.
    pub snapshots: Option<snapshots::Schedule>,
    /// The controllers and the scheduler, too.
    pub run_controllers: bool,
}

/// An etcd to keep the state in.
#[derive(Clone, Debug, Default)]
pub struct Etcd {
    pub endpoints: Vec<String>,
    /// PEM files.
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

impl Etcd {
    /// Whether it answers: for whoever wants to know before a server depends on it.
    pub async fn check(&self) -> Result<()> {
        self.open().await.map(drop)
    }

    /// Gives the disk space of forgotten revisions back, one member after the other.
    pub async fn defragment(&self) -> Result<()> {
        Ok(self.open().await?.defragment().await?)
    }

    async fn open(&self) -> Result<leme_store::etcd::Etcd> {
        let etcd = leme_store::etcd::Etcd::connect(&self.endpoints, self.tls()?).await?;
        match etcd.revision().await {
            Err(leme_store::Error::Unavailable { reason, .. }) => anyhow::bail!(reason),
            outcome => Ok(outcome.map(|_| etcd)?),
        }
    }

    /// The authority, and a certificate with its key where etcd asks for one.
    fn tls(&self) -> Result<Option<leme_store::etcd::Tls>> {
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("read {}", path.display()));
        let identity = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            (None, None) => None,
            _ => anyhow::bail!("--etcd-certfile and --etcd-keyfile are of use only together"),
        };
        let encrypted = self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
        match &self.ca_file {
            Some(ca) => Ok(Some(leme_store::etcd::Tls { ca: read(ca)?, identity })),
            None if encrypted => anyhow::bail!("who may etcd be? Name the authority of its certificate: --etcd-cafile"),
            None if identity.is_some() => anyhow::bail!("a client certificate for etcd needs --etcd-cafile, too"),
            None => Ok(None),
        }
    }
}

impl Config {
    /// Upstream's defaults, for a server on this address.
    pub fn new(advertise: IpAddr, data_dir: impl Into<PathBuf>) -> Self {
        let network = |text: &str| text.parse().expect("a constant network");
        Self {
            bind: SocketAddr::new([0, 0, 0, 0].into(), 6443),
            advertise,
            data_dir: data_dir.into(),
            cert_dir: None,
            etcd: None,
            encryption: None,
            audit: None,
            service_cidr: network("10.96.0.0/16"),
            pod_cidr: network("10.244.0.0/16"),
            node_ports: (30000, 32767),
            cluster_domain: "cluster.local".into(),
            extra_names: Vec::new(),
            snapshots: Some(snapshots::Schedule::default()),
            run_controllers: true,
        }
    }

    fn pki_dir(&self) -> PathBuf {
        self.cert_dir.clone().unwrap_or_else(|| self.data_dir.join("pki"))
    }

    /// The `kubernetes` Service: the first address of the range.
    pub fn kubernetes_address(&self) -> IpAddr {
        self.service_address(1)
    }

    /// The `kube-dns` Service: the tenth, as kubeadm.
    pub fn dns_address(&self) -> IpAddr {
        self.service_address(10)
    }

    fn location(&self) -> snapshots::Location {
        snapshots::Location { data_dir: self.data_dir.clone(), etcd: self.etcd.clone() }
    }

    fn service_address(&self, offset: u8) -> IpAddr {
        match self.service_cidr {
            IpNetwork::V4(network) => (u32::from(network.network()) + u32::from(offset)).to_be_bytes().into(),
            IpNetwork::V6(network) => (u128::from(network.network()) + u128::from(offset)).to_be_bytes().into(),
        }
    }
}

/// Serves until `shutdown`; `ready` hears the bound address once requests are answered.
pub async fn run(config: Config, ready: impl FnOnce(SocketAddr), shutdown: CancellationToken) -> Result<()> {
    // A store that does not answer must not keep a server that is told to end.
    let Some(server) = shutdown.run_until_cancelled(Server::prepare(&config)).await.transpose()? else {
        return Ok(());
    };
    let Server { app, listener, address, tls, authority, store, encryption } = server;
    let compaction = tokio::spawn(leme_store::compact_periodically(store.clone(), api::COMPACTION));
    let sealing = tokio::spawn(encryption::follow(store, encryption));
    let serving = tokio::spawn(server::serve(listener, tls, app.router(), shutdown.clone()));
    app.set_ready();
    ready(address);
    let upkeep = tokio::spawn(bootstrap::upkeep(app.clone(), address.port(), shutdown.clone()));
    if let Some(schedule) = config.snapshots {
        tokio::spawn(config.location().keep(schedule, shutdown.clone()));
    }
    if config.run_controllers {
        run_controllers(&app, &config, authority, shutdown.clone()).await;
    }
    serving.await?;
    upkeep.await?;
    masters::withdraw(&app, address.port()).await;
    if let Some(audit) = &app.audit {
        audit.flush().await;
    }
    compaction.abort();
    sealing.abort();
    Ok(())
}

/// A server with everything that must be there before the first request is answered.
struct Server {
    app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
    tls: rustls::ServerConfig,
    authority: pki::Authority,
    store: Arc<encryption::Sealed>,
    /// Where the store's keys are.
    encryption: PathBuf,
}

impl Server {
    async fn prepare(config: &Config) -> Result<Self> {
        std::fs::create_dir_all(&config.data_dir)
            .with_context(|| format!("cannot create {}", config.data_dir.display()))?;
        let listener = TcpListener::bind(config.bind).await;
        let listener =
            listener.with_context(|| format!("cannot listen on {}; another port is --secure-port", config.bind))?;
        let address = listener.local_addr()?;
        let names = pki::apiserver_names(
            &config.cluster_domain,
            config.kubernetes_address(),
            config.advertise,
            &config.extra_names,
        );
        let pki = pki::Pki::open(&config.pki_dir(), &names)?;
        write_admin_kubeconfig(config, &pki, address.port())?;
        let store = open_store(config).await?;
        let (store, encryption) = encryption::seal(store, config.encryption.as_deref(), &pki.directory).await?;
        let tls = server::tls_config(&pki.serving, &pki.cluster.certificate)?;
        let app = App::start(config.clone(), &pki, store.clone()).await?;
        bootstrap::run(&app, address.port()).await.context("write the objects that every cluster has")?;
        Ok(Self { app, listener, address, tls, authority: pki.cluster, store, encryption })
    }
}

/// All of them in the process that has the embedded store for itself; with a store that servers share, the controllers
/// where their Lease is held and the scheduler where its own is.
async fn run_controllers(app: &Arc<App>, config: &Config, authority: pki::Authority, shutdown: CancellationToken) {
    let app = app.clone();
    let make_client: MakeClient = Arc::new(move |user: &str| app.client(user));
    let options = leme_controllers::Options {
        pod_cidr: config.pod_cidr,
        node_cidr_mask: if config.pod_cidr.is_ipv4() { 24 } else { 64 },
        root_ca: authority.certificate.clone(),
        node_grace_period: std::time::Duration::from_secs(50),
    };
    let signer = Arc::new(authority);
    if config.etcd.is_none() {
        return leme_controllers::run(make_client, options, signer, shutdown).await;
    }
    let candidacy = match Candidacy::take(config) {
        Ok(candidacy) => candidacy,
        Err(error) => return tracing::error!("this server stands in no election: {error:#}"),
    };
    let within = |term: &Term| -> MakeClient {
        let (make_client, term) = (make_client.clone(), term.clone());
        Arc::new(move |user: &str| term.client(make_client(user)))
    };
    let controllers =
        |term: Term| leme_controllers::run_controllers(within(&term), options.clone(), signer.clone(), term.over());
    let scheduler = |term: Term| leme_controllers::run_scheduler(within(&term), term.over());
    let manager = make_client(leme_controllers::CONTROLLER_MANAGER);
    tokio::join!(
        election::lead(manager, candidacy.election("kube-controller-manager"), shutdown.clone(), controllers),
        election::lead(
            make_client(leme_controllers::SCHEDULER),
            candidacy.election("kube-scheduler"),
            shutdown,
            scheduler
        ),
    );
}

/// Who this server is in elections, in upstream's form `<host>_<uuid>`. It is the same as long as no other process uses
/// the data directory: what a predecessor that was killed still holds is this one's at once.
struct Candidacy {
    identity: String,
    /// Locked until the last use of the identity.
    _lock: File,
}

impl Candidacy {
    fn take(config: &Config) -> Result<Self> {
        let path = config.data_dir.join("server-id");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.with_context(|| format!("open {}", path.display()))?;
        let own = file.try_lock().is_ok();
        let mut line = String::new();
        if own {
            file.read_to_string(&mut line).with_context(|| format!("read {}", path.display()))?;
        }
        // A copy of the directory under another address is another server.
        let address = config.advertise.to_string();
        let known = line.split_once(' ').filter(|(id, at)| uuid::Uuid::parse_str(id).is_ok() && *at == address);
        let id = known.map_or_else(|| uuid::Uuid::new_v4().to_string(), |(id, _)| id.to_owned());
        if own && known.is_none() {
            let write = file.set_len(0).and_then(|()| file.write_all_at(format!("{id} {address}").as_bytes(), 0));
            write.with_context(|| format!("write {}", path.display()))?;
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Ok(Self { identity: format!("{}_{id}", host.trim()), _lock: file })
    }

    fn election(&self, name: &'static str) -> Election {
        Election { name, identity: self.identity.clone(), times: election::Times::default() }
    }
}

async fn open_store(config: &Config) -> Result<Arc<dyn Store>> {
    let store: Arc<dyn Store> = match &config.etcd {
        None => Arc::new(leme_store::embedded::Embedded::open(config.location().database())?),
        Some(etcd) => {
            let at = || format!("etcd at {} does not serve us", etcd.endpoints.join(","));
            Arc::new(etcd.open().await.with_context(at)?)
        }
    };
    snapshots::usable(&*store).await?;
    Ok(store)
}

/// `admin.kubeconfig`: rewritten on every start, so it always names this server and holds a fresh certificate.
fn write_admin_kubeconfig(config: &Config, pki: &pki::Pki, port: u16) -> Result<()> {
    let identity = pki.cluster.issue_client("kubernetes-admin", Some(auth::MASTERS))?;
    let server = format!("https://{}", SocketAddr::new(config.advertise, port));
    let names = pki::KubeconfigNames {
        cluster: "kubernetes",
        user: "kubernetes-admin",
        context: "kubernetes-admin@kubernetes",
    };
    let text = pki::kubeconfig(&server, &pki.cluster.certificate, &identity, &names);
    pki::write_private(&config.data_dir.join("admin.kubeconfig"), &text)
}
