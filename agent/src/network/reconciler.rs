//! Keeps the kernel's tables equal to the cluster: watches Services, EndpointSlices, Nodes and ServiceCIDRs, and has what
//! changed planned and applied.
//!
//! One watch per kind feeds one [`Snapshot`]; each wake-up takes everything that has arrived and applies it once.
//! Nothing is applied, and so nothing pruned, before all first lists are complete. Objects are reduced on arrival
//! and dropped. A failed application is repeated as a whole; while the API server is away the tables stay as they are.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    future::pending,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use ipnetwork::Ipv4Network;
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use leme_datapath::{Change, ObjectKey, Snapshot};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, time::sleep};
use tracing::{debug, info, warn};

use super::{Config, Kernel, metrics::Metrics, proxy_health::ProxyHealth, service_health::ServiceHealth};
use crate::memory;

/// The safety net: everything is compared again.
const RESYNC: Duration = Duration::from_secs(600);
/// How long a start waits for the API server before it goes on with what it remembers.
const PATIENCE: Duration = Duration::from_secs(5);
const PAGE: u32 = 500;
/// Events taken at once.
const BATCH: usize = 4096;
/// Services of other proxies, and headless ones, are not even asked for.
const OURS: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// What the tables that are in the kernel say about this node's pods.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Per slice: uids of this node's pods that it offers to new connections.
    offered: HashMap<ObjectKey, Vec<String>>,
}

impl Cluster {
    /// Whether any Service may still choose the pod although it is not terminating.
    pub fn offers(&self, pod_uid: &str) -> bool {
        self.offered.values().flatten().any(|uid| uid == pod_uid)
    }

    fn set(&mut self, slice: ObjectKey, uids: Vec<String>) {
        match uids.is_empty() {
            true => drop(self.offered.remove(&slice)),
            false => drop(self.offered.insert(slice, uids)),
        }
    }
}

#[expect(
    clippy::large_enum_variant,
    reason = "looked at and dropped at once; a box would cost an allocation per event"
)]
enum Seen {
    Service(Event<Service>),
    Slice(Event<EndpointSlice>),
    Node(Event<Node>),
    /// None: the API server does not tell this node.
    ServiceCidr(Option<Event<ServiceCIDR>>),
}

pub struct Reconciler {
    node: String,
    events: BoxStream<'static, Vec<Seen>>,
    snapshot: Snapshot,
    /// What the snapshot has and the kernel may not.
    changes: BTreeSet<Change>,
    offers: Vec<(ObjectKey, Vec<String>)>,
    delays: Delays,
    services: Listing,
    slices: Listing,
    nodes: Listing,
    service_cidrs: Listing,
    pod_cidrs: Vec<Ipv4Network>,
    metrics: Arc<Metrics>,
    health: Arc<ProxyHealth>,
    checks: ServiceHealth,
}

impl Reconciler {
    /// Starts the watches; nothing happens until the result is polled.
    pub fn watch(config: &Config, client: Client, metrics: Arc<Metrics>) -> Self {
        let (node, node_ports) = (&config.node_name, &config.node_ports);
        let health = Arc::<ProxyHealth>::default();
        let services = stream(client.clone(), Some(OURS), Seen::Service);
        let slices = stream(client.clone(), Some(OURS), Seen::Slice);
        let nodes = stream(client.clone(), None, Seen::Node);
        let events = futures::stream::select_all([services, slices, nodes, service_cidrs(client)]);
        Self {
            node: node.clone(),
            events: events.ready_chunks(BATCH).boxed(),
            snapshot: Snapshot::new(node).with_node_ports(node_ports.clone()),
            changes: BTreeSet::new(),
            offers: Vec::new(),
            delays: Delays::start(),
            services: Listing::default(),
            slices: Listing::default(),
            nodes: Listing::default(),
            service_cidrs: Listing::default(),
            pod_cidrs: Vec::new(),
            metrics,
            checks: ServiceHealth::new(node_ports, config.node_ip.into(), health.clone()),
            health,
        }
    }

    pub fn health(&self) -> Arc<ProxyHealth> {
        Arc::clone(&self.health)
    }

    /// Waits until the API server says which pod CIDRs the node has. Cancel safe.
    pub async fn await_pod_cidrs(&mut self) -> Vec<Ipv4Network> {
        while self.pod_cidrs.is_empty() {
            self.observe_next().await;
        }
        self.pod_cidrs.clone()
    }

    /// As [`Self::await_pod_cidrs`], for a node that has a memory to fall back on.
    pub async fn await_pod_cidrs_briefly(&mut self) -> Option<Vec<Ipv4Network>> {
        tokio::time::timeout(PATIENCE, self.await_pod_cidrs()).await.ok()
    }

    /// Applies changes for ever. `announce` is called after each success until it succeeds itself; an adopted datapath
    /// is announced without the API server when that stays away.
    pub async fn reconcile(
        mut self,
        kernel: Kernel,
        cluster: &watch::Sender<Cluster>,
        announce: impl Fn() -> anyhow::Result<()>,
    ) {
        let mut pace = Pace::new();
        let mut announced = false;
        let patience = sleep(PATIENCE);
        tokio::pin!(patience);
        loop {
            if self.is_synced() && pace.is_due(&self.changes) {
                self.apply(&kernel, cluster, &mut pace).await;
                announced = announced || (pace.is_healthy() && try_announce(&announce));
            }
            tokio::select! {
                () = self.observe_next() => {}
                () = pace.wait() => {}
                () = &mut patience, if !announced && !patience.is_elapsed() => {
                    info!("the API server does not answer: going on with the datapath as it was");
                    announced = try_announce(&announce);
                }
            }
        }
    }

    async fn apply(&mut self, kernel: &Kernel, cluster: &watch::Sender<Cluster>, pace: &mut Pace) {
        let (snapshot, changes) = (std::mem::take(&mut self.snapshot), std::mem::take(&mut self.changes));
        let (whole, started) = (pace.whole, Instant::now());
        let applied = kernel.with(move |datapath| {
            let result =
                if whole { datapath.reconcile_all(&snapshot) } else { datapath.reconcile(&snapshot, &changes) };
            (snapshot, changes, result)
        });
        let (snapshot, changes, result) = applied.await;
        self.snapshot = snapshot;
        match result {
            Ok(report) => {
                debug!(?report, whole, took = ?started.elapsed(), "applied");
                kernel.heed(report);
                self.metrics.synced(report, started.elapsed());
                self.metrics.known(self.services.known.len());
                self.delays.tell(&self.metrics);
                self.report_health(whole, &changes);
                pace.succeeded();
                if whole {
                    memory::give_back();
                }
                let offers = std::mem::take(&mut self.offers);
                cluster.send_modify(|cluster| offers.into_iter().for_each(|(slice, uids)| cluster.set(slice, uids)));
            }
            Err(error) => {
                self.metrics.failed();
                warn!(%error, "failed to bring the datapath up to date; trying again");
                pace.failed();
            }
        }
    }

    /// Load balancers hear of endpoints when the kernel knows them.
    fn report_health(&mut self, whole: bool, changes: &BTreeSet<Change>) {
        if whole {
            self.checks.set_all(self.snapshot.health_checks().collect());
        } else {
            let services = changes.iter().filter_map(|change| match change {
                Change::Service(key) => Some(key),
                Change::Nodes => None,
            });
            services.for_each(|key| self.checks.set(key, self.snapshot.health_check(key)));
        }
        self.health.updated();
    }

    fn is_synced(&self) -> bool {
        [&self.services, &self.slices, &self.nodes, &self.service_cidrs].iter().all(|listing| listing.synced)
    }

    async fn observe_next(&mut self) {
        match self.events.next().await {
            Some(seen) => seen.into_iter().for_each(|seen| self.observe(seen)),
            // A watch never ends; were it to, the tables stay as they are.
            None => pending().await,
        }
    }

    fn observe(&mut self, seen: Seen) {
        let (known, first_list) = (self.changes.len(), !self.is_synced());
        let triggered = if let Seen::Slice(Event::Apply(slice)) = &seen { trigger_time(slice) } else { None };
        self.note(seen);
        if !self.changes.is_empty() {
            self.health.queued();
        }
        // A first list is no change; it is a start.
        if self.changes.len() > known && !first_list {
            self.delays.changed(triggered);
        }
    }

    fn note(&mut self, seen: Seen) {
        match seen {
            Seen::Service(event) => match self.services.step(event) {
                Step::Upsert(service) => self.changes.extend(self.snapshot.upsert_service(&service)),
                Step::Delete(gone) => {
                    self.changes.extend(gone.iter().filter_map(|key| self.snapshot.delete_service(key)))
                }
            },
            Seen::Slice(event) => match self.slices.step(event) {
                Step::Upsert(slice) => {
                    self.offers.push((key(&slice), offered_here(&self.node, &slice)));
                    self.changes.extend(self.snapshot.upsert_slice(&slice));
                }
                Step::Delete(gone) => {
                    self.changes.extend(gone.iter().filter_map(|key| self.snapshot.delete_slice(key)));
                    self.offers.extend(gone.into_iter().map(|key| (key, Vec::new())));
                }
            },
            Seen::Node(event) => match self.nodes.step(event) {
                Step::Upsert(node) => {
                    self.observe_own(&node);
                    self.changes.extend(self.snapshot.upsert_node(&node));
                }
                Step::Delete(gone) => {
                    if gone.iter().any(|key| key.name == self.node) {
                        self.health.observe(None);
                    }
                    self.changes.extend(gone.iter().filter_map(|key| self.snapshot.delete_node(&key.name)))
                }
            },
            Seen::ServiceCidr(None) => self.service_cidrs.synced = true,
            Seen::ServiceCidr(Some(event)) => match self.service_cidrs.step(event) {
                Step::Upsert(cidr) => self.changes.extend(self.snapshot.upsert_service_cidr(&cidr)),
                Step::Delete(gone) => {
                    self.changes.extend(gone.iter().filter_map(|key| self.snapshot.delete_service_cidr(&key.name)))
                }
            },
        }
    }

    fn observe_own(&mut self, node: &Node) {
        if node.metadata.name.as_ref() != Some(&self.node) {
            return;
        }
        self.health.observe(Some(node));
        let listed = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
        let mut pod_cidrs: Vec<Ipv4Network> = listed.filter_map(|cidr| cidr.parse().ok()).collect();
        pod_cidrs.dedup();
        if !self.pod_cidrs.is_empty() && !pod_cidrs.is_empty() && self.pod_cidrs != pod_cidrs {
            warn!(had = ?self.pod_cidrs, has = ?pod_cidrs, "the node's pod CIDRs changed: restart the agent");
        }
        if self.pod_cidrs.is_empty() {
            self.pod_cidrs = pod_cidrs;
        }
    }
}

fn try_announce(announce: &impl Fn() -> anyhow::Result<()>) -> bool {
    announce().inspect_err(|error| warn!("failed to publish the node's network: {error:#}")).is_ok()
}

fn stream<K>(client: Client, selector: Option<&str>, wrap: fn(Event<K>) -> Seen) -> BoxStream<'static, Seen>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    K::DynamicType: Default,
{
    let config = selector.iter().fold(watcher::Config::default().page_size(PAGE), |config, s| config.labels(s));
    quiet(watcher(Api::<K>::all(client), config).default_backoff()).map(wrap).boxed()
}

/// Nodes of other clusters may not be allowed to read these (upstream's role of nodes does not have them), or there are none
/// (before 1.33): they live without, and hear of it should that change.
fn service_cidrs(client: Client) -> BoxStream<'static, Seen> {
    let mut told = false;
    let events = watcher(Api::<ServiceCIDR>::all(client), watcher::Config::default().page_size(PAGE)).default_backoff();
    let seen = events.filter_map(move |event| {
        let without = event.as_ref().err().filter(|error| is_withheld(error)).map(ToString::to_string);
        if let (Some(error), false) = (&without, told) {
            told = true;
            info!(error, "ServiceCIDRs cannot be read: packets to cluster IPs that no Service has are not held back");
        }
        std::future::ready(match (event, without) {
            (Ok(event), _) => Some(Seen::ServiceCidr(Some(event))),
            (Err(_), Some(_)) => Some(Seen::ServiceCidr(None)),
            (Err(error), None) => {
                debug!(%error, "the watch of ServiceCIDRs is broken; trying again");
                None
            }
        })
    });
    seen.boxed()
}

/// Whether the answer is that this node may not know, or that there is nothing to know.
fn is_withheld(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error)
    | watcher::Error::WatchStartFailed(error)
    | watcher::Error::WatchFailed(error)) = error
    else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if matches!(status.code, 403 | 404))
}

/// Says once that a watch is broken, and once that it works again.
fn quiet<K: Resource<DynamicType: Default>>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
) -> impl Stream<Item = Event<K>> {
    let mut broken = false;
    events.filter_map(move |event| {
        let kind = K::plural(&K::DynamicType::default()).into_owned();
        match &event {
            Err(error) if !broken => warn!(%kind, %error, "the watch is broken; trying again"),
            Err(error) => debug!(%kind, %error, "the watch is still broken"),
            // Each attempt begins with this, before it has reached anybody.
            Ok(Event::Init) => return std::future::ready(event.ok()),
            Ok(_) if broken => info!(%kind, "the watch works again"),
            Ok(_) => {}
        }
        broken = event.is_err();
        std::future::ready(event.ok())
    })
}

fn key<K: Resource>(object: &K) -> ObjectKey {
    let meta = object.meta();
    ObjectKey::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Pods of this node that a slice gives to new connections: ready ones. Those that serve while they terminate are a
/// last resort, and by then the pod is stopping as it should.
fn offered_here(node: &str, slice: &EndpointSlice) -> Vec<String> {
    let here = slice.endpoints.iter().flatten().filter(|endpoint| endpoint.node_name.as_deref() == Some(node));
    let ready = here.filter(|endpoint| {
        endpoint
            .conditions
            .as_ref()
            .is_none_or(|conditions| conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false))
    });
    let valid = ready.filter(|endpoint| endpoint.addresses.first().is_some_and(|text| text.parse::<IpAddr>().is_ok()));
    valid.filter_map(|endpoint| endpoint.target_ref.as_ref()?.uid.clone()).collect()
}

/// When the change that led to an EndpointSlice's happened: the endpoint slice controllers' own word.
fn trigger_time(slice: &EndpointSlice) -> Option<Timestamp> {
    slice.metadata.annotations.as_ref()?.get("endpoints.kubernetes.io/last-change-trigger-time")?.parse().ok()
}

/// Since when changes wait for the kernel, until they are there.
struct Delays {
    started: Timestamp,
    arrived: Vec<Instant>,
    triggered: Vec<Timestamp>,
}

impl Delays {
    fn start() -> Self {
        Self { started: Timestamp::now(), arrived: Vec::new(), triggered: Vec::new() }
    }

    /// What happened before this agent is not its delay.
    fn changed(&mut self, triggered: Option<Timestamp>) {
        self.arrived.push(Instant::now());
        self.triggered.extend(triggered.filter(|at| *at >= self.started));
    }

    fn tell(&mut self, metrics: &Metrics) {
        self.arrived.drain(..).for_each(|at| metrics.arrived(at.elapsed()));
        let now = Timestamp::now();
        let since = |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default();
        self.triggered.drain(..).for_each(|at| metrics.programmed(since(at)));
    }
}

/// Which objects of a kind exist; tells a relist's omissions from its contents.
#[derive(Default)]
struct Listing {
    known: HashSet<ObjectKey>,
    unseen: HashSet<ObjectKey>,
    synced: bool,
}

enum Step<K> {
    Upsert(K),
    Delete(Vec<ObjectKey>),
}

impl Listing {
    fn step<K: Resource>(&mut self, event: Event<K>) -> Step<K> {
        match event {
            Event::Init => {
                self.unseen = self.known.clone();
                Step::Delete(Vec::new())
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let key = key(&object);
                self.unseen.remove(&key);
                self.known.insert(key);
                Step::Upsert(object)
            }
            Event::Delete(object) => {
                let key = key(&object);
                self.known.remove(&key);
                Step::Delete(vec![key])
            }
            Event::InitDone => {
                self.synced = true;
                let gone: Vec<ObjectKey> = self.unseen.drain().collect();
                for key in &gone {
                    self.known.remove(key);
                }
                Step::Delete(gone)
            }
        }
    }
}

/// When to apply: at once on a change, everything on the safety net's timer, everything after a failure, with back-off.
struct Pace {
    whole: bool,
    failures: u32,
    next: tokio::time::Instant,
}

impl Pace {
    fn new() -> Self {
        Self { whole: true, failures: 0, next: tokio::time::Instant::now() }
    }

    fn is_due(&mut self, changes: &BTreeSet<Change>) -> bool {
        let elapsed = tokio::time::Instant::now() >= self.next;
        self.whole |= elapsed;
        // A failed application waits for its back-off, whatever arrives meanwhile.
        elapsed || (self.failures == 0 && !changes.is_empty())
    }

    fn is_healthy(&self) -> bool {
        self.failures == 0
    }

    fn succeeded(&mut self) {
        *self = Self { whole: false, failures: 0, next: tokio::time::Instant::now() + RESYNC };
    }

    fn failed(&mut self) {
        let backoff = Duration::from_millis(250 << self.failures.min(7));
        *self = Self { whole: true, failures: self.failures + 1, next: tokio::time::Instant::now() + backoff };
    }

    async fn wait(&self) {
        tokio::time::sleep_until(self.next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": name}})).unwrap()
    }

    fn deleted<K>(step: Step<K>) -> Vec<String> {
        match step {
            Step::Upsert(_) => panic!("an upsert"),
            Step::Delete(gone) => gone.into_iter().map(|key| key.name).collect(),
        }
    }

    #[test]
    fn a_relist_deletes_exactly_what_it_leaves_out() {
        let mut listing = Listing::default();
        listing.step(Event::<Service>::Init);
        for name in ["a", "b", "c"] {
            listing.step(Event::InitApply(service(name)));
        }
        assert!(!listing.synced);
        assert!(deleted(listing.step(Event::<Service>::InitDone)).is_empty());
        assert!(listing.synced);
        assert_eq!(deleted(listing.step(Event::Delete(service("a")))), ["a"]);
        listing.step(Event::<Service>::Init);
        listing.step(Event::InitApply(service("c")));
        assert_eq!(deleted(listing.step(Event::<Service>::InitDone)), ["b"]);
    }

    #[test]
    fn a_pod_is_offered_until_every_slice_says_it_terminates() {
        let slice = |ready: bool, terminating: bool| -> EndpointSlice {
            serde_json::from_value(json!({
                "metadata": {"namespace": "ns", "name": "s"},
                "addressType": "IPv4",
                "endpoints": [
                    {"addresses": ["10.244.0.5"], "nodeName": "n1", "targetRef": {"uid": "u1"},
                     "conditions": {"ready": ready, "serving": true, "terminating": terminating}},
                    {"addresses": ["10.244.1.5"], "nodeName": "n2", "targetRef": {"uid": "u2"}},
                ],
            }))
            .unwrap()
        };
        let mut cluster = Cluster::default();
        let here = slice(true, false);
        cluster.set(key(&here), offered_here("n1", &here));
        assert!(cluster.offers("u1") && !cluster.offers("u2"));
        cluster.set(key(&here), offered_here("n1", &slice(false, true)));
        assert!(!cluster.offers("u1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_repeated_as_a_whole_after_a_growing_pause() {
        let (mut pace, none) = (Pace::new(), BTreeSet::new());
        let some = BTreeSet::from([Change::Nodes]);
        assert!(pace.is_due(&none) && pace.whole);
        pace.succeeded();
        assert!(!pace.is_due(&none) && pace.is_due(&some) && !pace.whole);
        pace.failed();
        assert!(!pace.is_due(&some));
        tokio::time::advance(Duration::from_millis(250)).await;
        assert!(pace.is_due(&none) && pace.whole);
        pace.failed();
        tokio::time::advance(Duration::from_millis(499)).await;
        assert!(!pace.is_due(&some));
    }
}
