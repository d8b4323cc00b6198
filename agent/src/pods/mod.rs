//! The node's pods: follows the API's list of them, gives each an actor, and brings the runtime's events to the right
//! one. After a restart it adopts what runs, and cleans up after pods that went while nobody looked, but only once the
//! API has given its first complete list.

mod actor;
pub mod admission;
mod backoff;
pub(crate) mod cgroups;
mod container;
pub mod env;
pub mod fields;
mod grpc_health;
mod hooks;
mod hosts;
mod http;
pub mod image_gc;
pub mod images;
pub mod labels;
pub mod listening;
mod log_files;
pub mod observed;
pub mod plan;
mod probes;
pub mod quantity;
pub mod resources;
pub mod sandbox;
mod security;
pub mod status;
mod termination;
mod work;
mod writer;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use k8s_cri::v1::PodSandbox;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use actor::View;
use actor::{Actor, Message};

use crate::Config;
use crate::drain::Drain;
use crate::events::{Kind, Recorder};
use crate::node::machine::Machine;
use crate::objects::Objects;
use crate::runtime::Cri;
use crate::runtime::lifecycle::{self, Lifecycle};
use crate::services::Services;
use crate::volumes;

/// What every actor works with.
pub struct Context {
    pub config: Arc<Config>,
    pub client: Client,
    pub cri: Cri,
    pub events: Recorder,
    pub objects: Objects,
    pub services: Services,
    pub images: images::Images,
    pub tokens: volumes::Tokens,
    pub drain: Arc<dyn Drain>,
    pub machine: Machine,
    pub owners: Owners,
    /// The labels the API has for this node, once known.
    pub node_labels: watch::Receiver<Option<BTreeMap<String, String>>>,
    pub registry: Registry,
}

/// Which pod a container or sandbox belongs to: events carry only the container's id.
#[derive(Default)]
pub struct Owners(Mutex<HashMap<String, String>>);

impl Owners {
    pub fn claim<'a>(&self, uid: &str, ids: impl Iterator<Item = &'a String>) {
        let mut owners = self.0.lock().expect("no holder panics");
        ids.for_each(|id| {
            owners.insert(id.clone(), uid.to_owned());
        });
    }

    pub fn release(&self, uid: &str) {
        self.0.lock().expect("no holder panics").retain(|_, owner| owner != uid);
    }

    fn of(&self, id: &str) -> Option<String> {
        self.0.lock().expect("no holder panics").get(id).cloned()
    }
}

/// The pods of the node as others may see them, by uid.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<BTreeMap<String, watch::Receiver<View>>>>);

impl Registry {
    pub fn all(&self) -> Vec<View> {
        self.0.lock().expect("no holder panics").values().map(|view| view.borrow().clone()).collect()
    }

    /// By name, and by uid where one is given.
    pub fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<View> {
        let matches = |view: &View| {
            sandbox::namespace(&view.pod) == namespace
                && sandbox::name(&view.pod) == name
                && uid.is_none_or(|uid| sandbox::uid(&view.pod) == uid)
        };
        self.all().into_iter().find(matches)
    }

    fn insert(&self, uid: String, view: watch::Receiver<View>) {
        self.0.lock().expect("no holder panics").insert(uid, view);
    }

    fn remove(&self, uid: &str) {
        self.0.lock().expect("no holder panics").remove(uid);
    }
}

/// Runs the node's pods until `shutdown`, which leaves them running.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (send, mut lifecycle) = mpsc::unbounded_channel();
    let socket = context.config.container_runtime_endpoint.clone();
    let events = shutdown.clone();
    tokio::spawn(async move { lifecycle::watch(&socket, send, events).await });
    tokio::spawn(image_gc::keep_room(context.cri.clone(), context.config.image_gc, shutdown.clone()));
    let logs = context.config.pod_log_dir.clone();
    tokio::spawn(log_files::keep_small(context.cri.clone(), logs, shutdown.clone()));
    let selector = format!("spec.nodeName={}", context.config.node_name);
    let pods = Api::<core::Pod>::all(context.client.clone());
    let stream = watcher(pods, watcher::Config::default().fields(&selector)).default_backoff();
    let mut stream = std::pin::pin!(stream);
    let mut pods = Pods::new(context);
    if shutdown.run_until_cancelled(pods.find_running()).await.is_none() {
        return Ok(());
    }
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            event = stream.next() => match event {
                Some(Ok(event)) => pods.hear_api(event).await,
                Some(Err(error)) => warn!(%error, "the watch of this node's pods"),
                None => anyhow::bail!("the watch of this node's pods has ended"),
            },
            Some(event) = lifecycle.recv() => pods.hear_runtime(event),
            Some(ended) = pods.actors.join_next() => pods.bury(ended),
        }
    }
}

struct Handle {
    messages: mpsc::UnboundedSender<Message>,
    pod: Arc<core::Pod>,
}

struct Pods {
    context: Arc<Context>,
    handles: HashMap<String, Handle>,
    actors: JoinSet<String>,
    /// Pods the API named since the list began.
    listed: HashSet<String>,
    /// Sandboxes that ran when the agent started.
    adopted: HashMap<String, PodSandbox>,
    /// Pods whose predecessor of the same uid still winds down.
    synced: bool,
}

impl Pods {
    fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            handles: HashMap::new(),
            actors: JoinSet::new(),
            listed: HashSet::new(),
            adopted: HashMap::new(),
            synced: false,
        }
    }

    /// Waits for the runtime: without it nobody knows what to adopt.
    async fn find_running(&mut self) {
        loop {
            match observed::pods_on_node(&self.context.cri).await {
                Ok(found) => {
                    self.adopted = found;
                    return;
                }
                Err(error) => {
                    warn!(%error, "the container runtime does not answer yet");
                    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                }
            }
        }
    }

    async fn hear_api(&mut self, event: watcher::Event<core::Pod>) {
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(pod) => {
                self.listed.insert(sandbox::uid(&pod).to_owned());
                self.upsert(pod);
            }
            watcher::Event::Apply(pod) => self.upsert(pod),
            watcher::Event::Delete(pod) => self.gone(pod),
            watcher::Event::InitDone => self.finish_list(),
        }
    }

    fn upsert(&mut self, pod: core::Pod) {
        let (uid, pod) = (sandbox::uid(&pod).to_owned(), Arc::new(pod));
        match self.handles.get_mut(&uid) {
            Some(handle) => {
                handle.pod = pod.clone();
                // Refused only in the moment between the actor's end and its burial.
                let _ = handle.messages.send(Message::Pod(pod));
            }
            None => {
                let failure = self.admit(&uid, &pod);
                self.spawn(uid, pod, failure);
            }
        }
    }

    /// Only newcomers are judged: what runs, or was let in before, stays.
    fn admit(&self, uid: &str, pod: &core::Pod) -> Option<status::Failure> {
        let status = pod.status.as_ref();
        let known = status.is_some_and(|status| status.start_time.is_some()) || self.adopted.contains_key(uid);
        if known || pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let machine = &self.context.machine;
        let capacity = admission::Capacity {
            milli_cpu: machine.cpus * 1000,
            memory: machine.allocatable_memory(&self.context.config.eviction_hard),
            pods: self.context.config.max_pods.into(),
        };
        let labels = self.context.node_labels.borrow();
        let others = self.handles.values().map(|handle| &*handle.pod);
        let failure = admission::admit(pod, others, &capacity, labels.as_ref()).err()?;
        self.context.events.pod(pod, Kind::Warning, &failure.reason, failure.message.clone());
        Some(failure)
    }

    fn spawn(&mut self, uid: String, pod: Arc<core::Pod>, failure: Option<status::Failure>) {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (view, viewed) = watch::channel(View { pod: pod.clone(), ..Default::default() });
        self.context.registry.insert(uid.clone(), viewed);
        let actor = Actor::new(self.context.clone(), pod.clone(), failure, inbox, view);
        self.handles.insert(uid.clone(), Handle { messages, pod });
        self.actors.spawn(async move {
            actor.run().await;
            uid
        });
    }

    fn gone(&mut self, pod: core::Pod) {
        if let Some(handle) = self.handles.get(sandbox::uid(&pod)) {
            let _ = handle.messages.send(Message::Pod(Arc::new(pod)));
            let _ = handle.messages.send(Message::Gone);
        }
    }

    /// The list is complete: whoever is not on it has gone.
    fn finish_list(&mut self) {
        for (uid, handle) in &self.handles {
            if !self.listed.contains(uid) {
                let _ = handle.messages.send(Message::Gone);
            }
        }
        if !std::mem::replace(&mut self.synced, true) {
            self.end_orphans();
            self.sweep();
        }
    }

    /// Sandboxes of pods that were deleted while the agent was away end like any deleted pod.
    fn end_orphans(&mut self) {
        let orphans: Vec<_> = self.adopted.drain().filter(|(uid, _)| !self.handles.contains_key(uid)).collect();
        for (uid, sandbox) in orphans {
            info!(uid, "a pod was deleted while the agent was away");
            self.spawn(uid.clone(), Arc::new(remembered(&uid, &sandbox)), None);
            let _ = self.handles[&uid].messages.send(Message::Gone);
        }
    }

    /// Directories and cgroups of pods that nobody knows.
    fn sweep(&self) {
        let known: HashSet<String> = self.handles.keys().cloned().collect();
        let config = self.context.config.clone();
        tokio::task::spawn_blocking(move || {
            let entries = std::fs::read_dir(config.root_dir.join("pods")).into_iter().flatten().flatten();
            for uid in
                entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|uid| !known.contains(uid))
            {
                if let Err(error) = volumes::tear_down(&config, &uid) {
                    warn!(uid, %error, "orphaned volumes stay");
                }
            }
            for (_, cgroup) in cgroups::pods(&config.cgroup_root).iter().filter(|(uid, _)| !known.contains(uid)) {
                cgroups::remove(cgroup);
            }
            sweep_logs(&config, &known);
        });
    }

    fn hear_runtime(&self, event: Lifecycle) {
        let (container, message) = match event {
            Lifecycle::Exited { container } => (container.clone(), Message::Exited(container)),
            Lifecycle::OutOfMemory { container } => (container, Message::Look),
            Lifecycle::Relist => {
                self.handles.values().for_each(|handle| drop(handle.messages.send(Message::Look)));
                return;
            }
        };
        if let Some(handle) = self.context.owners.of(&container).and_then(|uid| self.handles.get(&uid)) {
            let _ = handle.messages.send(message);
        }
    }

    fn bury(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => {
                self.handles.remove(&uid);
                self.context.registry.remove(&uid);
            }
            Err(error) => warn!(%error, "a pod's actor failed"),
        }
    }
}

fn sweep_logs(config: &Config, known: &HashSet<String>) {
    let entries = std::fs::read_dir(&config.pod_log_dir).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Namespaces and pod names hold no underscore: what follows the second is the uid.
        let uid = name.splitn(3, '_').nth(2);
        if uid.is_some_and(|uid| !known.contains(uid)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// All that is left of a pod the API has forgotten: enough to end it.
fn remembered(uid: &str, sandbox: &PodSandbox) -> core::Pod {
    let label = |key: &str| sandbox.labels.get(key).cloned();
    core::Pod {
        metadata: ObjectMeta {
            name: label(labels::POD_NAME),
            namespace: label(labels::POD_NAMESPACE),
            uid: Some(uid.to_owned()),
            ..Default::default()
        },
        ..Default::default()
    }
}
