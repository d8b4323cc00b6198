//! Several servers on one etcd, and what happens to them: one ends, one dies, members of etcd die, a quorum is lost.
//!
//! Each server has a runtime of its own: dropping that is its death.
#![expect(clippy::unwrap_used, reason = "tests may")]

#[path = "../store/tests/contract/etcd_server.rs"]
mod etcd_server;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Endpoints, Namespace, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Config as ClientConfig,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use leme_control_plane::{Config, Etcd, run};
use serde_json::json;
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// The files that servers of one cluster share, as an operator copies them.
fn share_pki(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("pki")).unwrap();
    for entry in std::fs::read_dir(from.join("pki")).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), to.join("pki").join(entry.file_name())).unwrap();
    }
}

struct Server {
    client: Client,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    runtime: Option<Runtime>,
    directory: Option<TempDir>,
}

impl Server {
    /// The `number`-th server of a cluster, with the keys of `first`.
    async fn start(etcd: &etcd_server::Server, number: u8, first: Option<&Server>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        if let Some(first) = first {
            share_pki(first.directory.as_ref().unwrap().path(), directory.path());
        }
        Self::start_in(etcd, number, directory).await
    }

    async fn start_in(etcd: &etcd_server::Server, number: u8, directory: TempDir) -> Self {
        let (address, shutdown, task, runtime) = spawn(etcd, number, directory.path());
        let address = address.await.unwrap();
        let text = std::fs::read_to_string(directory.path().join("admin.kubeconfig")).unwrap();
        let mut config: Kubeconfig = serde_norway::from_str(&text).unwrap();
        config.clusters[0].cluster.as_mut().unwrap().server = Some(format!("https://{address}"));
        let mut config = ClientConfig::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        config.read_timeout = Some(Duration::from_secs(15));
        config.default_retry = false;
        Self {
            client: Client::try_from(config).unwrap(),
            shutdown,
            task,
            runtime: Some(runtime),
            directory: Some(directory),
        }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        (&mut self.task).await.unwrap().unwrap();
    }

    /// kill -9; what it leaves on disk.
    fn die(mut self) -> TempDir {
        let runtime = self.runtime.take().unwrap();
        tokio::task::block_in_place(|| runtime.shutdown_timeout(Duration::from_secs(5)));
        self.directory.take().unwrap()
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

type Spawned = (oneshot::Receiver<SocketAddr>, CancellationToken, JoinHandle<anyhow::Result<()>>, Runtime);

fn spawn(etcd: &etcd_server::Server, number: u8, directory: &Path) -> Spawned {
    let mut config = Config::new([192, 0, 2, number].into(), directory);
    config.bind = SocketAddr::new([127, 0, 0, 1].into(), 0);
    config.etcd = Some(Etcd { endpoints: etcd.endpoints(), ..Etcd::default() });
    config.node_ports = (30000, 30199);
    let (ready, address) = oneshot::channel();
    let shutdown = CancellationToken::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let task = runtime.spawn(run(config, |address| ready.send(address).expect("the test waits"), shutdown.clone()));
    (address, shutdown, task, runtime)
}

fn configmap(name: &str, data: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"value": data}})).unwrap()
}

/// Asks until the answer is there; `limit` says when it is too late.
async fn eventually<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const SOON: Duration = Duration::from_secs(20);

async fn holders(server: &Server) -> Option<[String; 2]> {
    let leases: Api<Lease> = Api::namespaced(server.client.clone(), "kube-system");
    let holder = async |name: &str| leases.get(name).await.ok()?.spec?.holder_identity.filter(|h| !h.is_empty());
    Some([holder("kube-controller-manager").await?, holder("kube-scheduler").await?])
}

/// Creates a namespace; the controllers give it an account.
async fn controllers_work(server: &Server, name: &str) {
    let namespaces: Api<Namespace> = Api::all(server.client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(server.client.clone(), name);
    eventually("a default account", SOON, async || accounts.get("default").await.ok()).await;
}

/// The addresses of the `kubernetes` Service, where both kinds of its endpoints agree.
async fn addresses(server: &Server) -> Option<Vec<String>> {
    let slice = server.api::<EndpointSlice>().get("kubernetes").await.ok()?;
    let slice: Vec<_> = slice.endpoints.into_iter().flatten().flat_map(|endpoint| endpoint.addresses).collect();
    let endpoints = server.api::<Endpoints>().get("kubernetes").await.ok()?.subsets?;
    let endpoints: Vec<_> = endpoints.into_iter().flat_map(|s| s.addresses.unwrap_or_default()).map(|a| a.ip).collect();
    (slice == endpoints).then_some(slice)
}

async fn wait_for_addresses(server: &Server, wanted: &[&str], limit: Duration) {
    let what = format!("addresses {wanted:?}");
    eventually(&what, limit, async || addresses(server).await.filter(|found| found == wanted)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_acknowledged_the_other_shows_and_nothing_is_given_out_twice() {
    let Some(etcd) = etcd_server::Server::start().await else { return };
    let first = Server::start(&etcd, 1, None).await;
    let second = Server::start(&etcd, 2, Some(&first)).await;
    for n in 0..40 {
        let (writer, reader) = if n % 2 == 0 { (&first, &second) } else { (&second, &first) };
        let name = format!("a{n}");
        let created = writer.api::<ConfigMap>().create(&PostParams::default(), &configmap(&name, "")).await.unwrap();
        assert_eq!(reader.api::<ConfigMap>().get(&name).await.unwrap(), created);
        let listed = reader.api::<ConfigMap>().list(&ListParams::default()).await.unwrap();
        assert!(listed.items.contains(&created));
    }
    let service = |name: String| -> Service {
        let spec = json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81, "name": "b"}]});
        let mut service = json!({"metadata": {"name": name}, "spec": spec});
        service["spec"]["ports"][0]["name"] = "a".into();
        serde_json::from_value(service).unwrap()
    };
    // 160 of the 200 ports: they meet all the time.
    let creates = (0..80).map(|n| {
        let services = if n % 2 == 0 { first.api::<Service>() } else { second.api::<Service>() };
        let service = service(format!("s{n}"));
        async move { services.create(&PostParams::default(), &service).await.unwrap().spec.unwrap() }
    });
    let specs = join_all(creates).await;
    let ips: HashSet<_> = specs.iter().filter_map(|spec| spec.cluster_ip.clone()).collect();
    let ports = specs.iter().flat_map(|spec| spec.ports.iter().flatten().filter_map(|port| port.node_port));
    assert_eq!((ips.len(), ports.collect::<HashSet<_>>().len()), (80, 160));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_leads_another_follows_and_the_kubernetes_service_names_those_that_live() {
    let Some(etcd) = etcd_server::Server::start().await else { return };
    let first = Server::start(&etcd, 1, None).await;
    let before = eventually("somebody leads", SOON, async || holders(&first).await).await;
    let second = Server::start(&etcd, 2, Some(&first)).await;
    let third = Server::start(&etcd, 3, Some(&first)).await;
    wait_for_addresses(&third, &["192.0.2.1", "192.0.2.2", "192.0.2.3"], SOON).await;
    controllers_work(&second, "one").await;
    assert_eq!(holders(&second).await.unwrap(), before, "who leads goes on leading");
    let told = Instant::now();
    first.stop().await;
    // It took its address and gave its leases back before it ended.
    assert_eq!(addresses(&second).await.unwrap(), ["192.0.2.2", "192.0.2.3"]);
    let other = |now: &[String; 2]| now.iter().zip(&before).all(|(now, before)| now != before);
    eventually("others lead", Duration::from_secs(8), async || holders(&second).await.filter(other)).await;
    assert!(told.elapsed() < Duration::from_secs(10), "the leases were given back, not waited for");
    controllers_work(&second, "two").await;
    third.die();
    wait_for_addresses(&second, &["192.0.2.2"], Duration::from_secs(25)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_that_is_started_again_leads_at_once() {
    let Some(etcd) = etcd_server::Server::start().await else { return };
    let first = Server::start(&etcd, 1, None).await;
    let before = eventually("somebody leads", SOON, async || holders(&first).await).await;
    let directory = first.die();
    let second = Server::start_in(&etcd, 1, directory).await;
    let told = Instant::now();
    controllers_work(&second, "again").await;
    assert!(told.elapsed() < Duration::from_secs(8), "it waited for its own lease");
    assert_eq!(holders(&second).await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_authority_does_not_join() {
    let Some(etcd) = etcd_server::Server::start().await else { return };
    let _first = Server::start(&etcd, 1, None).await;
    let directory = tempfile::tempdir().unwrap();
    let (_ready, _shutdown, task, runtime) = spawn(&etcd, 2, directory.path());
    let refused = task.await.unwrap().unwrap_err();
    runtime.shutdown_background();
    let words = format!("{refused:#}");
    assert!(words.contains("copy the directory `pki`"), "{words}");
}

/// Clients that write through whichever server answers, and remember what was acknowledged.
#[derive(Default)]
struct Ledger {
    acknowledged: AtomicUsize,
    /// Nobody knows whether these happened.
    unknown: AtomicUsize,
}

impl Ledger {
    async fn more(&self, limit: Duration) {
        let before = self.acknowledged.load(Ordering::SeqCst);
        let enough = async || (self.acknowledged.load(Ordering::SeqCst) >= before + 20).then_some(());
        eventually("writes are acknowledged again", limit, enough).await;
    }
}

/// Counts up in its object by compare-and-swap, and makes an object for each count, until told to stop.
async fn write(number: usize, clients: Vec<Client>, ledger: Arc<Ledger>, stop: CancellationToken) -> BTreeSet<String> {
    let name = format!("counter-{number}");
    let mut made = BTreeSet::new();
    for round in 0.. {
        let maps: Api<ConfigMap> = Api::namespaced(clients[(number + round) % clients.len()].clone(), "default");
        if stop.is_cancelled() {
            break;
        }
        let Ok(current) = maps.get_opt(&name).await else { continue };
        let Some(mut current) = current else {
            let _ = maps.create(&PostParams::default(), &configmap(&name, "0")).await;
            continue;
        };
        let data = current.data.get_or_insert_default();
        let count = data["value"].parse::<usize>().unwrap() + 1;
        data.insert("value".into(), count.to_string());
        match maps.replace(&name, &PostParams::default(), &current).await {
            Ok(_) => ledger.acknowledged.fetch_add(1, Ordering::SeqCst),
            Err(kube::Error::Api(status)) if status.code == 409 => continue,
            Err(_) => ledger.unknown.fetch_add(1, Ordering::SeqCst),
        };
        let object = format!("made-{number}-{round}");
        if maps.create(&PostParams::default(), &configmap(&object, "")).await.is_ok() {
            made.insert(object);
        }
    }
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_write_is_lost_or_doubled_when_servers_members_and_quorums_go() {
    let Some(mut etcd) = etcd_server::Server::start_members(3).await else { return };
    let first = Server::start(&etcd, 1, None).await;
    let second = Server::start(&etcd, 2, Some(&first)).await;
    let clients = vec![first.client.clone(), second.client.clone()];
    let (ledger, stop) = (Arc::new(Ledger::default()), CancellationToken::new());
    let writers: Vec<_> =
        (0..6).map(|number| tokio::spawn(write(number, clients.clone(), ledger.clone(), stop.clone()))).collect();
    ledger.more(SOON).await;
    // Each member in turn: one of them led.
    for member in 0..3 {
        etcd.kill(member);
        ledger.more(SOON).await;
        etcd.spawn(member);
        etcd.ready().await;
    }
    etcd.kill(0);
    etcd.kill(1);
    let without = second.api::<ConfigMap>().create(&PostParams::default(), &configmap("no-quorum", "")).await;
    assert!(without.is_err(), "acknowledged without a quorum");
    etcd.spawn(0);
    etcd.spawn(1);
    ledger.more(Duration::from_secs(40)).await;
    first.die();
    ledger.more(SOON).await;
    stop.cancel();
    let made: Vec<_> = join_all(writers).await.into_iter().flat_map(Result::unwrap).collect();
    let listed = second.api::<ConfigMap>().list(&ListParams::default()).await.unwrap();
    let stored: BTreeMap<_, _> = listed.items.into_iter().map(|map| (map.metadata.name.unwrap(), map.data)).collect();
    let lost: Vec<_> = made.iter().filter(|name| !stored.contains_key(*name)).collect();
    assert!(lost.is_empty(), "{lost:?} of {} are gone", made.len());
    let counters = stored.iter().filter(|(name, _)| name.starts_with("counter-"));
    let counted: usize = counters.map(|(_, data)| data.as_ref().unwrap()["value"].parse::<usize>().unwrap()).sum();
    let (sure, unsure) = (ledger.acknowledged.load(Ordering::SeqCst), ledger.unknown.load(Ordering::SeqCst));
    assert!((sure..=sure + unsure).contains(&counted), "{counted} of {sure} acknowledged and {unsure} unknown");
}
