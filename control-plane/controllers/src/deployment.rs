//! Deployments: one ReplicaSet per template, the newest grown and the others shrunk within the strategy's limits.
//! `rollout` decides the numbers, `status` what is reported; this file looks and acts.

mod rollout;
mod status;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    informer::{Informers, ObjectKey, controller_of, wake_owner, wake_self},
    objects::{controlled_by, is_deleting, selects, short_hash},
    pods,
    queue::{Next, Outcome, Queue, is_conflict, unless_gone},
    recorder::{Kind, Recorder},
};
use rollout::{Limits, Share, Step, grow, made_for, rescale, roll};
use status::{Verdict, is_complete, judge, observe, progress};

const WORKERS: usize = 5;
const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not inherit.
const OWN: [&str; 5] =
    ["kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAXIMUM];

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    recorder: Recorder,
}

/// A Deployment's ReplicaSets, oldest first.
struct Sets {
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    fn all(&self) -> Vec<Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new).cloned().collect()
    }

    fn find(&self, name: &str) -> Option<&Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new).find(|set| set.name_any() == name)
    }
}

pub fn start(client: Client, informers: Arc<Informers>, shutdown: CancellationToken) -> impl Future<Output = ()> {
    let queue = Queue::new();
    informers.deployments.on_change(wake_self(queue.adder()));
    informers.replicasets.on_change(wake_owner("Deployment", queue.adder()));
    informers.replicasets.on_change(wake_adopters(informers.clone(), queue.clone()));
    informers.pods.on_change(wake_recreators(informers.clone(), queue.clone()));
    let recorder = Recorder::new(client.clone(), "deployment-controller");
    let controller = Arc::new(Controller { client, informers: informers.clone(), recorder });
    async move {
        informers.deployments.wait_until_synced().await;
        informers.replicasets.wait_until_synced().await;
        let reconcile = move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(key).await }
        };
        queue.run("deployment", WORKERS, shutdown, reconcile).await;
    }
}

fn wake_adopters(
    informers: Arc<Informers>,
    queue: Arc<Queue<ObjectKey>>,
) -> impl Fn(Option<&Arc<ReplicaSet>>, Option<&Arc<ReplicaSet>>) {
    move |_, after| {
        let Some(set) = after.filter(|set| controller_of(set.as_ref()).is_none()) else { return };
        for deployment in informers.deployments.in_namespace(&set.namespace().unwrap_or_default()) {
            if matches(&deployment, set) {
                queue.add(ObjectKey::of(deployment.as_ref()));
            }
        }
    }
}

/// Recreate goes on when the last old pod is gone, which no ReplicaSet's status shows.
fn wake_recreators(
    informers: Arc<Informers>,
    queue: Arc<Queue<ObjectKey>>,
) -> impl Fn(Option<&Arc<k8s_openapi::api::core::v1::Pod>>, Option<&Arc<k8s_openapi::api::core::v1::Pod>>) {
    move |before, after| {
        let (Some(pod), None) = (before, after) else { return };
        let namespace = pod.namespace().unwrap_or_default();
        let Some(owner) = controller_of(pod.as_ref()) else { return };
        let Some(set) = informers.replicasets.get(&ObjectKey::new(&*namespace, &*owner.name)) else { return };
        if let Some(owner) = controller_of(set.as_ref()) {
            queue.add(ObjectKey::new(namespace, owner.name.clone()));
        }
    }
}

fn matches(deployment: &Deployment, set: &ReplicaSet) -> bool {
    deployment.spec.as_ref().is_some_and(|spec| selects(&spec.selector, set.labels()))
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Outcome {
        let Some(deployment) = self.informers.deployments.get(&key) else { return Ok(Next::Wait) };
        let mut sets = self.claim(&deployment).await?;
        let news = if is_deleting(deployment.as_ref()) { None } else { self.progress(&deployment, &mut sets).await? };
        self.report(&deployment, &sets, news).await
    }

    /// Moves the deployment one step; what there is to tell about it.
    async fn progress(&self, deployment: &Deployment, sets: &mut Sets) -> anyhow::Result<Option<Verdict>> {
        let limits = Limits::of(deployment);
        let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
        if let Some(steps) = resize(limits, sets) {
            self.apply(deployment, sets, limits, steps).await?;
            return Ok(paused.then(|| progress("Unknown", "DeploymentPaused", "Deployment is paused".into())));
        }
        if paused {
            return Ok(Some(progress("Unknown", "DeploymentPaused", "Deployment is paused".into())));
        }
        let recreate = is_recreate(deployment);
        if recreate && sets.new.as_ref().is_none_or(|new| Share::of(new).replicas == 0) && self.is_any_old_left(sets) {
            let steps = sets
                .old
                .iter()
                .map(|set| Share::of(set))
                .filter(|s| s.replicas > 0)
                .map(|s| Step { name: s.name, replicas: 0 });
            self.apply(deployment, sets, limits, steps.collect()).await?;
            return Ok(None);
        }
        let news = self.ensure_new(deployment, sets, limits).await?;
        let new = Share::of(sets.new.as_ref().context("the new ReplicaSet")?);
        let steps = if recreate {
            (new.replicas != limits.replicas)
                .then_some(Step { name: new.name, replicas: limits.replicas })
                .into_iter()
                .collect()
        } else {
            roll(limits, &new, &sets.old.iter().map(|set| Share::of(set)).collect::<Vec<_>>())
        };
        self.apply(deployment, sets, limits, steps).await?;
        Ok(news)
    }

    /// Under Recreate: old ReplicaSets with replicas, or old pods that are still there.
    fn is_any_old_left(&self, sets: &Sets) -> bool {
        sets.old.iter().any(|set| {
            let namespace = set.namespace().unwrap_or_default();
            let owns = |pod: &k8s_openapi::api::core::v1::Pod| {
                controller_of(pod).is_some_and(|owner| Some(&owner.uid) == set.meta().uid.as_ref())
            };
            Share::of(set).replicas > 0
                || self.informers.pods.in_namespace(&namespace).iter().any(|pod| owns(pod) && !pods::is_terminal(pod))
        })
    }

    /// The ReplicaSets that are this deployment's; matching orphans are adopted, owned ones that stopped matching let go.
    async fn claim(&self, deployment: &Deployment) -> anyhow::Result<Sets> {
        let namespace = deployment.namespace().unwrap_or_default();
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &namespace);
        let mut mine = Vec::new();
        for set in self.informers.replicasets.in_namespace(&namespace) {
            let owned = controller_of(set.as_ref()).map(|owner| Some(&owner.uid) == deployment.meta().uid.as_ref());
            match (owned, matches(deployment, &set)) {
                (Some(true), true) => mine.push(set),
                (Some(true), false) if !is_deleting(deployment) => set_owners(&api, &set, None).await?,
                (None, true) if !is_deleting(deployment) && !is_deleting(set.as_ref()) => {
                    set_owners(&api, &set, Some(deployment)).await?;
                    mine.push(set);
                }
                _ => {}
            }
        }
        mine.sort_by_key(|set| (set.meta().creation_timestamp.clone().map(|time| time.0), set.name_any()));
        let template = deployment.spec.as_ref().map(|spec| without_hash(&spec.template));
        let is_new = |set: &Arc<ReplicaSet>| template_of(set).map(|t| without_hash(&t)) == template;
        let new = mine.iter().find(|set| is_new(set)).cloned();
        let old =
            mine.into_iter().filter(|set| new.as_ref().is_none_or(|new| new.name_any() != set.name_any())).collect();
        Ok(Sets { new, old })
    }

    async fn ensure_new(
        &self,
        deployment: &Deployment,
        sets: &mut Sets,
        limits: Limits,
    ) -> anyhow::Result<Option<Verdict>> {
        let revision = sets.old.iter().map(|set| revision(set.as_ref())).max().unwrap_or(0) + 1;
        if let Some(new) = sets.new.clone() {
            let revision = revision.max(self::revision(new.as_ref()));
            self.annotate(deployment, &new, revision).await?;
            let known = deployment.status.as_ref().is_some_and(|s| status::condition(s, "Progressing").is_some());
            return Ok((!known).then(|| {
                progress("True", "FoundNewReplicaSet", format!("Found new replica set \"{}\"", new.name_any()))
            }));
        }
        let total = sets.old.iter().map(|set| Share::of(set).replicas).sum();
        let wanted = if is_recreate(deployment) { limits.replicas } else { grow(limits, 0, total) };
        let new = self.create(deployment, wanted, revision, limits).await?;
        let name = new.name_any();
        self.tell_scaled(deployment, &name, 0, wanted);
        sets.new = Some(Arc::new(new));
        self.set_revision(deployment, revision).await?;
        Ok(Some(progress("True", "NewReplicaSetCreated", format!("Created new replica set \"{name}\""))))
    }

    async fn create(
        &self,
        deployment: &Deployment,
        replicas: i32,
        revision: i64,
        limits: Limits,
    ) -> anyhow::Result<ReplicaSet> {
        let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
        let set = new_set(deployment, replicas, revision, limits, collisions);
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        match api.create(&PostParams::default(), &set).await {
            Ok(set) => Ok(set),
            Err(error) if is_conflict(&error) => {
                let existing = api.get(&set.name_any()).await?;
                let ours =
                    controller_of(&existing).is_some_and(|owner| Some(&owner.uid) == deployment.meta().uid.as_ref());
                if ours
                    && template_of(&existing).map(|t| without_hash(&t)) == template_of(&set).map(|t| without_hash(&t))
                {
                    return Ok(existing);
                }
                self.count_collision(deployment, collisions).await?;
                Err(anyhow::Error::new(error).context("the template's hash is taken by another ReplicaSet"))
            }
            Err(error) => {
                self.recorder.record(
                    deployment,
                    Kind::Warning,
                    "ReplicaSetCreateError",
                    format!("Failed to create new replica set \"{}\": {error}", set.name_any()),
                );
                Err(anyhow::Error::new(error).context("create replica set"))
            }
        }
    }

    async fn count_collision(&self, deployment: &Deployment, collisions: Option<i32>) -> anyhow::Result<()> {
        let mut status = deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(collisions.unwrap_or(0) + 1);
        self.write_status(deployment, status).await
    }

    async fn apply(
        &self,
        deployment: &Deployment,
        sets: &Sets,
        limits: Limits,
        steps: Vec<Step>,
    ) -> anyhow::Result<()> {
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        for step in steps {
            let before = sets.find(&step.name).map_or(0, |set| Share::of(set).replicas);
            let patch = json!({
                "metadata": {"annotations": sizes(limits)},
                "spec": {"replicas": step.replicas},
            });
            unless_gone(api.patch(&step.name, &PatchParams::default(), &Patch::Merge(&patch)).await)?;
            if before != step.replicas {
                self.tell_scaled(deployment, &step.name, before, step.replicas);
            }
        }
        Ok(())
    }

    fn tell_scaled(&self, deployment: &Deployment, set: &str, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.recorder.record(deployment, Kind::Normal, "ScalingReplicaSet", message);
    }

    /// The new ReplicaSet carries the newest revision (a rollback gives an old one a new number) and the deployment's annotations.
    async fn annotate(&self, deployment: &Deployment, set: &ReplicaSet, revision: i64) -> anyhow::Result<()> {
        let wanted = inherited(deployment, set, revision);
        let current = set.annotations();
        let changed: BTreeMap<_, _> = wanted.into_iter().filter(|(k, v)| current.get(k) != Some(v)).collect();
        if !changed.is_empty() {
            let api: Api<ReplicaSet> =
                Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
            let patch = json!({"metadata": {"annotations": changed}});
            unless_gone(api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await)?;
        }
        self.set_revision(deployment, revision).await
    }

    async fn set_revision(&self, deployment: &Deployment, revision: i64) -> anyhow::Result<()> {
        if self::revision(deployment) == revision {
            return Ok(());
        }
        let mut updated = deployment.clone();
        updated.annotations_mut().insert(REVISION.into(), revision.to_string());
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        unless_gone(api.replace(&deployment.name_any(), &PostParams::default(), &updated).await)?;
        Ok(())
    }

    async fn report(&self, deployment: &Deployment, sets: &Sets, news: Option<Verdict>) -> Outcome {
        let mut status = observe(deployment, sets.new.as_ref(), &sets.all());
        let deadline = judge(deployment, &mut status, sets.new.as_ref(), news, Timestamp::now());
        if is_complete(deployment, &status) {
            self.forget_history(deployment, sets).await?;
        }
        self.write_status(deployment, status).await?;
        Ok(deadline.map_or(Next::Wait, |seconds| Next::After(Duration::from_secs(seconds))))
    }

    async fn write_status(&self, deployment: &Deployment, status: DeploymentStatus) -> anyhow::Result<()> {
        if deployment.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        let mut updated = deployment.clone();
        updated.status = Some(status);
        // The annotation just written moved the version on: the status belongs to what was observed, not to a version.
        updated.metadata.resource_version = None;
        unless_gone(api.replace_status(&deployment.name_any(), &PostParams::default(), &updated).await)?;
        Ok(())
    }

    /// Old empty ReplicaSets beyond the history limit go, oldest revision first.
    async fn forget_history(&self, deployment: &Deployment, sets: &Sets) -> anyhow::Result<()> {
        let limit = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
        let mut idle: Vec<_> = sets.old.iter().filter(|set| is_idle(set)).collect();
        idle.sort_by_key(|set| revision(set.as_ref()));
        let surplus = sets.old.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        for set in idle.into_iter().take(surplus) {
            unless_gone(api.delete(&set.name_any(), &DeleteParams::background()).await)?;
        }
        Ok(())
    }
}

/// A changed replica count comes before anything else: without a rollout one ReplicaSet takes it all, during one it is
/// shared. `None`: the numbers were made for this count.
fn resize(limits: Limits, sets: &Sets) -> Option<Vec<Step>> {
    let active: Vec<_> = sets.all().into_iter().filter(|set| Share::of(set).replicas > 0).collect();
    let changed = active.iter().any(|set| made_for(set).0.is_some_and(|desired| desired != limits.replicas));
    if !changed {
        return None;
    }
    let shares: Vec<_> = active.iter().map(|set| Share::of(set)).collect();
    let mut steps = match &shares[..] {
        [only] => vec![Step { name: only.name.clone(), replicas: limits.replicas }],
        _ => rescale(limits, &shares, active.iter().filter_map(|set| made_for(set).1).max().unwrap_or(0)),
    };
    // Those whose number stays must still learn what it was made for.
    for share in shares {
        if steps.iter().all(|step| step.name != share.name) {
            steps.push(Step { name: share.name, replicas: share.replicas });
        }
    }
    Some(steps)
}

fn is_idle(set: &ReplicaSet) -> bool {
    let observed = set.status.clone().unwrap_or_default();
    Share::of(set).replicas == 0
        && observed.replicas == 0
        && observed.observed_generation >= set.meta().generation
        && !is_deleting(set)
}

fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn revision<K: ResourceExt>(object: &K) -> i64 {
    object.annotations().get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn template_of(set: &ReplicaSet) -> Option<PodTemplateSpec> {
    set.spec.as_ref()?.template.clone()
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(HASH);
    }
    template
}

fn sizes(limits: Limits) -> BTreeMap<String, String> {
    BTreeMap::from([(DESIRED.into(), limits.replicas.to_string()), (MAXIMUM.into(), limits.maximum().to_string())])
}

/// What the new ReplicaSet inherits, with its revision; an earlier revision of the same set is kept in its history.
fn inherited(deployment: &Deployment, set: &ReplicaSet, number: i64) -> BTreeMap<String, String> {
    let own = |name: &String| OWN.contains(&name.as_str());
    let mut annotations: BTreeMap<_, _> =
        deployment.annotations().iter().filter(|(k, _)| !own(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
    annotations.insert(REVISION.into(), number.to_string());
    let before = revision(set);
    if before != 0 && before != number {
        let history = set.annotations().get(REVISION_HISTORY).filter(|text| !text.is_empty());
        let history = history.map_or_else(|| before.to_string(), |text| format!("{text},{before}"));
        annotations.insert(REVISION_HISTORY.into(), history);
    }
    annotations
}

fn new_set(
    deployment: &Deployment,
    replicas: i32,
    revision: i64,
    limits: Limits,
    collisions: Option<i32>,
) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let hash = short_hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector: LabelSelector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH.into(), hash.clone());
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels: Some(labels),
            owner_references: Some(vec![controlled_by(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    let mut annotations = inherited(deployment, &set, revision);
    annotations.extend(sizes(limits));
    set.metadata.annotations = Some(annotations);
    set
}

async fn set_owners(api: &Api<ReplicaSet>, set: &ReplicaSet, owner: Option<&Deployment>) -> anyhow::Result<()> {
    let mut owners = set.owner_references().to_vec();
    owners.retain(|owner| owner.controller != Some(true));
    owners.extend(owner.map(controlled_by));
    let patch = json!({"metadata": {"uid": set.uid(), "ownerReferences": owners}});
    unless_gone(api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await)?;
    Ok(())
}
