//! One watched, in-memory view per kind, shared by every controller. Handlers see each change with the state before it,
//! so an object that stops matching wakes those it used to match.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        certificates::v1::CertificateSigningRequest,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Secret, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of(object: &impl ResourceExt) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

type Handler<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;

pub struct Informer<K> {
    api: Api<K>,
    config: watcher::Config,
    objects: RwLock<BTreeMap<ObjectKey, Arc<K>>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

impl<K> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    pub fn new(client: Client) -> Arc<Self> {
        Self::filtered(client, watcher::Config::default())
    }

    fn filtered(client: Client, config: watcher::Config) -> Arc<Self> {
        Arc::new(Self {
            api: Api::all(client),
            config,
            objects: RwLock::default(),
            handlers: RwLock::default(),
            synced: watch::Sender::new(false),
        })
    }

    /// Calls `handler(before, after)` for every change from now on; must be registered before `Informers::run`.
    pub fn on_change(&self, handler: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync + 'static) {
        self.handlers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(handler));
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read(|objects| objects.get(key).cloned())
    }

    pub fn all(&self) -> Vec<Arc<K>> {
        self.read(|objects| objects.values().cloned().collect())
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = ObjectKey::new(namespace, "");
        self.read(|objects| {
            objects.range(from..).take_while(|(key, _)| key.namespace == namespace).map(|(_, o)| o.clone()).collect()
        })
    }

    /// Resolves after the first complete list.
    pub async fn wait_until_synced(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let backoff = watcher::DefaultBackoff::default();
        let mut events = Box::pin(watcher(self.api.clone(), self.config.clone()).backoff(backoff));
        let mut listing = BTreeMap::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = shutdown.cancelled() => return,
            };
            match event {
                Some(Ok(event)) => self.absorb(event, &mut listing),
                Some(Err(error)) => tracing::debug!(kind = %K::kind(&()), "watch: {error}"),
                None => return,
            }
        }
    }

    fn absorb(&self, event: watcher::Event<K>, listing: &mut BTreeMap<ObjectKey, Arc<K>>) {
        match event {
            watcher::Event::Init => listing.clear(),
            watcher::Event::InitApply(object) => {
                listing.insert(ObjectKey::of(&object), slim(object));
            }
            watcher::Event::InitDone => self.replace(std::mem::take(listing)),
            watcher::Event::Apply(object) => self.set(ObjectKey::of(&object), Some(slim(object))),
            watcher::Event::Delete(object) => self.set(ObjectKey::of(&object), None),
        }
    }

    fn replace(&self, listing: BTreeMap<ObjectKey, Arc<K>>) {
        let gone: Vec<_> = self.read(|objects| objects.keys().filter(|k| !listing.contains_key(k)).cloned().collect());
        for key in gone {
            self.set(key, None);
        }
        for (key, object) in listing {
            self.set(key, Some(object));
        }
        self.synced.send_replace(true);
    }

    fn set(&self, key: ObjectKey, after: Option<Arc<K>>) {
        let before = {
            let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
            match &after {
                Some(object) => objects.insert(key, object.clone()),
                None => objects.remove(&key),
            }
        };
        for handler in self.handlers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            handler(before.as_ref(), after.as_ref());
        }
    }

    fn read<T>(&self, look: impl FnOnce(&BTreeMap<ObjectKey, Arc<K>>) -> T) -> T {
        look(&self.objects.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Managed fields are the larger half of many objects and no controller reads them.
fn slim<K: Resource>(mut object: K) -> Arc<K> {
    object.meta_mut().managed_fields = None;
    Arc::new(object)
}

/// The controlling owner, if any.
pub fn controller_of<K: ResourceExt>(object: &K) -> Option<&OwnerReference> {
    object.meta().owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Wakes `add` with the controller (of kind `kind`) of each changed object, before and after the change.
pub fn wake_owner<K: ResourceExt>(
    kind: &'static str,
    add: impl Fn(ObjectKey),
) -> impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) {
    move |before, after| {
        for object in [before, after].into_iter().flatten() {
            if let Some(owner) = controller_of(object.as_ref()).filter(|owner| owner.kind == kind) {
                add(ObjectKey::new(object.namespace().unwrap_or_default(), owner.name.clone()));
            }
        }
    }
}

/// Wakes `add` with each changed object's own key.
pub fn wake_self<K: ResourceExt>(add: impl Fn(ObjectKey)) -> impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) {
    move |before, after| {
        if let Some(object) = after.or(before) {
            add(ObjectKey::of(object.as_ref()));
        }
    }
}

/// Where a pod finds the API server's authority, in each namespace.
pub const ROOT_CA: &str = "kube-root-ca.crt";
/// What machines without credentials may know about the cluster.
pub const CLUSTER_INFO: &str = "cluster-info";
const BOOTSTRAP_TOKEN: &str = "bootstrap.kubernetes.io/token";

/// Every shared view.
pub struct Informers {
    pub deployments: Arc<Informer<Deployment>>,
    pub replicasets: Arc<Informer<ReplicaSet>>,
    pub pods: Arc<Informer<Pod>>,
    pub nodes: Arc<Informer<Node>>,
    pub node_leases: Arc<Informer<Lease>>,
    pub services: Arc<Informer<Service>>,
    pub endpoints: Arc<Informer<Endpoints>>,
    pub endpointslices: Arc<Informer<EndpointSlice>>,
    pub namespaces: Arc<Informer<Namespace>>,
    pub service_accounts: Arc<Informer<ServiceAccount>>,
    pub root_ca_configmaps: Arc<Informer<ConfigMap>>,
    pub certificate_requests: Arc<Informer<CertificateSigningRequest>>,
    pub bootstrap_tokens: Arc<Informer<Secret>>,
    pub cluster_info: Arc<Informer<ConfigMap>>,
}

impl Informers {
    pub fn new(client: Client) -> Arc<Self> {
        let root_ca = watcher::Config::default().fields(&format!("metadata.name={}", ROOT_CA));
        let tokens = watcher::Config::default().fields(&format!("type={}", BOOTSTRAP_TOKEN));
        let cluster_info = watcher::Config::default().fields(&format!("metadata.name={}", CLUSTER_INFO));
        Arc::new(Self {
            deployments: Informer::new(client.clone()),
            replicasets: Informer::new(client.clone()),
            pods: Informer::new(client.clone()),
            nodes: Informer::new(client.clone()),
            node_leases: Informer::new(client.clone()),
            services: Informer::new(client.clone()),
            endpoints: Informer::new(client.clone()),
            endpointslices: Informer::new(client.clone()),
            namespaces: Informer::new(client.clone()),
            service_accounts: Informer::new(client.clone()),
            root_ca_configmaps: Informer::filtered(client.clone(), root_ca),
            certificate_requests: Informer::new(client.clone()),
            bootstrap_tokens: Informer::filtered(client.clone(), tokens),
            cluster_info: Informer::filtered(client, cluster_info),
        })
    }

    /// What the scheduler looks at, and nothing else.
    pub(crate) async fn run_for_scheduler(self: Arc<Self>, shutdown: CancellationToken) {
        join_all([start(&self.pods, &shutdown), start(&self.nodes, &shutdown)]).await;
    }

    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        join_all([
            start(&self.deployments, &shutdown),
            start(&self.replicasets, &shutdown),
            start(&self.pods, &shutdown),
            start(&self.nodes, &shutdown),
            start(&self.node_leases, &shutdown),
            start(&self.services, &shutdown),
            start(&self.endpoints, &shutdown),
            start(&self.endpointslices, &shutdown),
            start(&self.namespaces, &shutdown),
            start(&self.service_accounts, &shutdown),
            start(&self.root_ca_configmaps, &shutdown),
            start(&self.certificate_requests, &shutdown),
            start(&self.bootstrap_tokens, &shutdown),
            start(&self.cluster_info, &shutdown),
        ])
        .await;
    }
}

fn start<K>(informer: &Arc<Informer<K>>, shutdown: &CancellationToken) -> tokio::task::JoinHandle<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    tokio::spawn(informer.clone().run(shutdown.clone()))
}

/// Looks at everything from time to time even if nothing changed: what a missed event would have cost is bounded.
pub const RESYNC: Duration = Duration::from_secs(600);
