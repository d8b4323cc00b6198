//! Objects whose owners are gone go too: the generic garbage collector. It watches the metadata of every kind that can be
//! deleted, keeps who owns what, and asks the API before it deletes: the graph may be behind, the API is not.

mod graph;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy},
    discovery::{ApiResource, Discovery, Scope, verbs},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::queue::{Next, Outcome, Queue, is_not_found, unless_gone};
use graph::{Graph, Object, Uid, Verdict};

const WORKERS: usize = 10;
/// Kinds that appear later are watched from the next look on.
const REDISCOVER: Duration = Duration::from_secs(30);

struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    kinds: RwLock<HashMap<(String, String), Kind>>,
    queue: Arc<Queue<Uid>>,
}

#[derive(Clone)]
struct Kind {
    resource: ApiResource,
    namespaced: bool,
}

pub fn start(client: Client, shutdown: CancellationToken) -> impl Future<Output = ()> {
    let collector =
        Arc::new(Collector { client, graph: Mutex::default(), kinds: RwLock::default(), queue: Queue::new() });
    async move {
        let reconcile = {
            let collector = collector.clone();
            move |uid| {
                let collector = collector.clone();
                async move { collector.reconcile(uid).await }
            }
        };
        tokio::join!(
            collector.queue.clone().run("garbage", WORKERS, shutdown.clone(), reconcile),
            collector.clone().follow_kinds(shutdown),
        );
    }
}

impl Collector {
    async fn follow_kinds(self: Arc<Self>, shutdown: CancellationToken) {
        let mut tick = interval(REDISCOVER);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watched = HashSet::new();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = shutdown.cancelled() => return,
            }
            let kinds = match discover(&self.client).await {
                Ok(kinds) => kinds,
                Err(error) => {
                    tracing::debug!("garbage collection: {error:#}");
                    continue;
                }
            };
            for kind in kinds {
                let name = (kind.resource.api_version.clone(), kind.resource.kind.clone());
                self.kinds.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), kind.clone());
                if watched.insert(name) {
                    tokio::spawn(self.clone().watch(kind, shutdown.clone()));
                }
            }
        }
    }

    async fn watch(self: Arc<Self>, kind: Kind, shutdown: CancellationToken) {
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(self.client.clone(), &kind.resource);
        let mut events = Box::pin(watcher(api, watcher::Config::default()).backoff(watcher::DefaultBackoff::default()));
        let mut listed = HashSet::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = shutdown.cancelled() => return,
            };
            match event {
                Some(Ok(event)) => self.absorb(&kind, event, &mut listed),
                Some(Err(error)) => tracing::debug!(kind = kind.resource.kind, "garbage collection's watch: {error}"),
                None => return,
            }
        }
    }

    fn absorb(&self, kind: &Kind, event: watcher::Event<PartialObjectMeta<DynamicObject>>, listed: &mut HashSet<Uid>) {
        let wake = match event {
            watcher::Event::Init => {
                listed.clear();
                Vec::new()
            }
            watcher::Event::InitApply(object) => {
                listed.extend(object.uid());
                self.graph().upsert(node(kind, &object))
            }
            watcher::Event::InitDone => {
                let mut graph = self.graph();
                let gone = graph.absent(&kind.resource.kind, &kind.resource.api_version, listed);
                gone.into_iter().flat_map(|uid| graph.remove(&uid)).collect()
            }
            watcher::Event::Apply(object) => self.graph().upsert(node(kind, &object)),
            watcher::Event::Delete(object) => self.graph().remove(&object.uid().unwrap_or_default()),
        };
        wake.into_iter().for_each(|uid| self.queue.add(uid));
    }

    async fn reconcile(&self, uid: Uid) -> Outcome {
        let Some(object) = self.graph().get(&uid) else { return Ok(Next::Wait) };
        if object.is_deleting {
            self.finish_deletion(&object).await?;
        } else if !object.owners.is_empty() {
            self.judge_owners(&object).await?;
        }
        Ok(Next::Wait)
    }

    /// An owner that waits: for its dependents to go, or to be cut loose.
    async fn finish_deletion(&self, owner: &Object) -> anyhow::Result<()> {
        let dependents = self.graph().dependents(&owner.uid);
        if owner.has_finalizer("orphan") {
            for dependent in &dependents {
                self.drop_owners(dependent, std::slice::from_ref(&owner.uid)).await?;
            }
            return self.remove_finalizer(owner, "orphan").await;
        }
        if owner.has_finalizer("foregroundDeletion") {
            let blocking = dependents.iter().filter(|dependent| dependent.blocks(&owner.uid)).count();
            if blocking == 0 {
                return self.remove_finalizer(owner, "foregroundDeletion").await;
            }
            dependents.iter().for_each(|dependent| self.queue.add(dependent.uid.clone()));
        }
        Ok(())
    }

    async fn judge_owners(&self, object: &Object) -> anyhow::Result<()> {
        let mut absent = HashSet::new();
        for owner in &object.owners {
            if !self.graph().knows(&owner.uid) && !self.exists(object, owner).await? {
                absent.insert(owner.uid.clone());
            }
        }
        let verdict = self.graph().judge(object, &absent);
        match verdict {
            Verdict::Keep => Ok(()),
            Verdict::Release(owners) => self.drop_owners(object, &owners).await,
            Verdict::Delete(policy) => self.delete(object, policy).await,
        }
    }

    /// The API's word on an owner that the graph does not know. A kind that the API does not serve counts as there: deleting
    /// for want of knowledge would be the wrong mistake.
    async fn exists(&self, object: &Object, owner: &OwnerReference) -> anyhow::Result<bool> {
        let kind = self.kind(&owner.api_version, &owner.kind);
        let Some(kind) = kind else { return Ok(true) };
        let api = self.api(&kind, object.namespace.as_deref());
        match api.get_metadata(&owner.name).await {
            Ok(found) => Ok(found.uid().as_ref() == Some(&owner.uid)),
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("look for owner {} {}", owner.kind, owner.name)),
        }
    }

    async fn delete(&self, object: &Object, policy: PropagationPolicy) -> anyhow::Result<()> {
        let parameters = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions { uid: Some(object.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let Some(api) = self.api_of(object) else { return Ok(()) };
        unless_gone(api.delete(&object.name, &parameters).await)
            .with_context(|| format!("delete {} {}", object.kind, object.name))?;
        Ok(())
    }

    async fn drop_owners(&self, object: &Object, gone: &[Uid]) -> anyhow::Result<()> {
        let keep: Vec<_> = object.owners.iter().filter(|owner| !gone.contains(&owner.uid)).collect();
        self.patch(object, json!({"metadata": {"uid": object.uid, "ownerReferences": keep}})).await
    }

    async fn remove_finalizer(&self, object: &Object, finalizer: &str) -> anyhow::Result<()> {
        let keep: Vec<_> = object.finalizers.iter().filter(|name| *name != finalizer).collect();
        let patch = json!({"metadata": {
            "uid": object.uid, "resourceVersion": object.version, "finalizers": keep}});
        self.patch(object, patch).await
    }

    async fn patch(&self, object: &Object, patch: serde_json::Value) -> anyhow::Result<()> {
        let Some(api) = self.api_of(object) else { return Ok(()) };
        unless_gone(api.patch(&object.name, &PatchParams::default(), &Patch::Merge(&patch)).await)
            .with_context(|| format!("patch {} {}", object.kind, object.name))?;
        Ok(())
    }

    fn api_of(&self, object: &Object) -> Option<Api<DynamicObject>> {
        Some(self.api(&self.kind(&object.api_version, &object.kind)?, object.namespace.as_deref()))
    }

    fn api(&self, kind: &Kind, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace.filter(|_| kind.namespaced) {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind.resource),
            None => Api::all_with(self.client.clone(), &kind.resource),
        }
    }

    fn kind(&self, api_version: &str, kind: &str) -> Option<Kind> {
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        kinds.get(&(api_version.to_owned(), kind.to_owned())).cloned()
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn discover(client: &Client) -> anyhow::Result<Vec<Kind>> {
    let discovery = Discovery::new(client.clone()).run_aggregated().await.context("discover the API's kinds")?;
    let mut kinds = Vec::new();
    for (resource, capabilities) in discovery.groups().flat_map(|group| group.recommended_resources()) {
        let collectable = [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|v| capabilities.supports_operation(v));
        // Events own nothing and expire by themselves.
        if collectable && resource.kind != "Event" {
            kinds.push(Kind { resource, namespaced: capabilities.scope == Scope::Namespaced });
        }
    }
    Ok(kinds)
}

fn node(kind: &Kind, object: &PartialObjectMeta<DynamicObject>) -> Object {
    Object {
        api_version: kind.resource.api_version.clone(),
        kind: kind.resource.kind.clone(),
        namespace: object.namespace(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        version: object.resource_version(),
        owners: object.owner_references().to_vec(),
        finalizers: object.finalizers().to_vec(),
        is_deleting: object.metadata.deletion_timestamp.is_some(),
    }
}
