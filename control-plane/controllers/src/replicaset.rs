//! ReplicaSets: as many pods as asked for. Adopts matching orphans, releases pods that stopped matching, creates in
//! growing batches so that a quota or a broken webhook costs one failure and not a thousand.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetStatus},
    core::v1::{Pod, PodTemplateSpec},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    informer::{Informers, ObjectKey, controller_of, wake_owner, wake_self},
    objects::{controlled_by, is_deleting, selects},
    pods,
    queue::{Next, Outcome, Queue, unless_gone},
    recorder::{Kind, Recorder},
};

const WORKERS: usize = 5;
/// Upstream's limit per sync.
const BURST: usize = 500;
/// After this long a creation or deletion that the watch never showed no longer holds back the next sync.
const EXPECTATION: Duration = Duration::from_secs(300);

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    recorder: Recorder,
    expectations: Expectations,
}

pub fn start(client: Client, informers: Arc<Informers>, shutdown: CancellationToken) -> impl Future<Output = ()> {
    let queue = Queue::new();
    let controller = Arc::new(Controller {
        recorder: Recorder::new(client.clone(), "replicaset-controller"),
        client,
        informers: informers.clone(),
        expectations: Expectations::default(),
    });
    informers.replicasets.on_change(wake_self(queue.adder()));
    informers.pods.on_change({
        let controller = controller.clone();
        move |before, after| controller.expectations.observe(before.map(Arc::as_ref), after.map(Arc::as_ref))
    });
    informers.pods.on_change(wake_owner("ReplicaSet", queue.adder()));
    informers.pods.on_change(wake_adopters(informers.clone(), queue.clone()));
    async move {
        informers.replicasets.wait_until_synced().await;
        informers.pods.wait_until_synced().await;
        let reconcile = move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(key).await }
        };
        queue.run("replicaset", WORKERS, shutdown, reconcile).await;
    }
}

/// An orphan wakes every ReplicaSet that might adopt it.
fn wake_adopters(
    informers: Arc<Informers>,
    queue: Arc<Queue<ObjectKey>>,
) -> impl Fn(Option<&Arc<Pod>>, Option<&Arc<Pod>>) {
    move |_, after| {
        let Some(pod) = after.filter(|pod| controller_of(pod.as_ref()).is_none()) else { return };
        for set in informers.replicasets.in_namespace(&pod.namespace().unwrap_or_default()) {
            if matches(&set, pod) {
                queue.add(ObjectKey::of(set.as_ref()));
            }
        }
    }
}

fn matches(set: &ReplicaSet, pod: &Pod) -> bool {
    set.spec.as_ref().is_some_and(|spec| selects(&spec.selector, pod.labels()))
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Outcome {
        let Some(set) = self.informers.replicasets.get(&key) else {
            self.expectations.forget(&key);
            return Ok(Next::Wait);
        };
        let settled = self.expectations.met(&key);
        let pods = self.claim(&set).await?;
        let active: Vec<_> = pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        let scaling =
            if settled && !is_deleting(set.as_ref()) { self.scale(&key, &set, &active).await } else { Ok(()) };
        let next = self.report(&set, &pods, &active, scaling.as_ref().err()).await?;
        scaling.map(|()| next)
    }

    /// The pods that are this set's: owned already, or orphans that match and are adopted now.
    async fn claim(&self, set: &ReplicaSet) -> anyhow::Result<Vec<Arc<Pod>>> {
        let namespace = set.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let mut claimed = Vec::new();
        for pod in self.informers.pods.in_namespace(&namespace) {
            match controller_of(pod.as_ref()) {
                Some(owner) if Some(&owner.uid) == set.meta().uid.as_ref() => {
                    if matches(set, &pod) {
                        claimed.push(pod);
                    } else if !is_deleting(set) {
                        release(&api, &pod, &owner.uid).await?;
                    }
                }
                None if matches(set, &pod) && pods::is_active(&pod) && !is_deleting(set) => {
                    if let Some(pod) = adopt(&api, &pod, set).await? {
                        claimed.push(Arc::new(pod));
                    }
                }
                _ => {}
            }
        }
        Ok(claimed)
    }

    async fn scale(&self, key: &ObjectKey, set: &ReplicaSet, active: &[Arc<Pod>]) -> anyhow::Result<()> {
        let wanted = replicas(set);
        if active.len() < wanted {
            self.create(key, set, (wanted - active.len()).min(BURST)).await
        } else if active.len() > wanted {
            let surplus = (active.len() - wanted).min(BURST);
            self.delete(key, set, select_victims(active, surplus)).await
        } else {
            Ok(())
        }
    }

    async fn create(&self, key: &ObjectKey, set: &ReplicaSet, mut missing: usize) -> anyhow::Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let pod = pod_from(set);
        let (parameters, mut batch) = (PostParams::default(), 1);
        self.expectations.expect_creations(key, missing);
        while missing > 0 {
            let size = batch.min(missing);
            let results = join_all((0..size).map(|_| api.create(&parameters, &pod))).await;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(pod) => self.recorder.record(
                        set,
                        Kind::Normal,
                        "SuccessfulCreate",
                        format!("Created pod: {}", pod.name_any()),
                    ),
                    Err(error) => {
                        self.expectations.created(key);
                        failure = Some(error);
                    }
                }
            }
            missing -= size;
            if let Some(error) = failure {
                (0..missing).for_each(|_| self.expectations.created(key));
                self.recorder.record(set, Kind::Warning, "FailedCreate", format!("Error creating: {error}"));
                return Err(anyhow::Error::new(error).context("create pod"));
            }
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, key: &ObjectKey, set: &ReplicaSet, victims: Vec<Arc<Pod>>) -> anyhow::Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        self.expectations.expect_deletions(key, victims.iter().filter_map(|pod| pod.uid()));
        let api = &api;
        let deletions = victims.iter().map(|pod| async move {
            let parameters = DeleteParams {
                preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
                ..DeleteParams::default()
            };
            (pod, api.delete(&pod.name_any(), &parameters).await)
        });
        let mut failure = None;
        for (pod, result) in join_all(deletions).await {
            let name = pod.name_any();
            match result {
                Ok(_) => {
                    self.recorder.record(set, Kind::Normal, "SuccessfulDelete", format!("Deleted pod: {name}"));
                }
                Err(error) => {
                    self.expectations.deleted(key, &pod.uid().unwrap_or_default());
                    if !crate::queue::is_not_found(&error) {
                        self.recorder.record(set, Kind::Warning, "FailedDelete", format!("Error deleting: {error}"));
                        failure = Some(error);
                    }
                }
            }
        }
        failure.map_or(Ok(()), |error| Err(anyhow::Error::new(error).context("delete pod")))
    }

    /// Writes the status if it changed; a pod that is ready but not yet available brings us back in time.
    async fn report(
        &self,
        set: &ReplicaSet,
        pods: &[Arc<Pod>],
        active: &[Arc<Pod>],
        failure: Option<&anyhow::Error>,
    ) -> anyhow::Result<Next> {
        let status = observe(set, pods, active, failure, Timestamp::now());
        let waiting = status.ready_replicas > status.available_replicas;
        if set.status.as_ref() != Some(&status) {
            let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &set.namespace().unwrap_or_default());
            let mut updated = set.clone();
            updated.status = Some(status);
            unless_gone(api.replace_status(&set.name_any(), &PostParams::default(), &updated).await)?;
        }
        let min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        Ok(if waiting {
            Next::After(Duration::from_secs(u64::try_from(min_ready).unwrap_or(0).max(1)))
        } else {
            Next::Wait
        })
    }
}

pub fn replicas(set: &ReplicaSet) -> usize {
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    usize::try_from(replicas).unwrap_or(0)
}

async fn adopt(api: &Api<Pod>, pod: &Pod, set: &ReplicaSet) -> anyhow::Result<Option<Pod>> {
    let mut owners = pod.owner_references().to_vec();
    owners.push(controlled_by(set));
    patch_owners(api, pod, owners).await
}

async fn release(api: &Api<Pod>, pod: &Pod, owner: &str) -> anyhow::Result<Option<Pod>> {
    let owners = pod.owner_references().iter().filter(|o| o.uid != owner).cloned().collect();
    patch_owners(api, pod, owners).await
}

async fn patch_owners(
    api: &Api<Pod>,
    pod: &Pod,
    owners: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>,
) -> anyhow::Result<Option<Pod>> {
    let patch = json!({"metadata": {"uid": pod.uid(), "ownerReferences": owners}});
    Ok(unless_gone(api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await)?)
}

/// A pod as the set's template says.
fn pod_from(set: &ReplicaSet) -> Pod {
    let PodTemplateSpec { metadata, spec } =
        set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let template = metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            namespace: set.namespace(),
            labels: template.labels,
            annotations: template.annotations,
            finalizers: template.finalizers,
            owner_references: Some(vec![controlled_by(set)]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

/// Which pods go first, upstream's order: unscheduled, pending, not ready, cheaper to delete, crowded nodes, younger.
fn select_victims(active: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
    let mut per_node: HashMap<&str, usize> = HashMap::new();
    for pod in active {
        *per_node.entry(pods::node(pod).unwrap_or_default()).or_default() += 1;
    }
    let mut ranked: Vec<_> = active.iter().collect();
    ranked.sort_by_cached_key(|pod| {
        (
            pods::node(pod).is_some(),
            pods::phase(pod) == "Running",
            pods::is_ready(pod),
            deletion_cost(pod),
            Reverse(per_node[pods::node(pod).unwrap_or_default()]),
            Reverse(pods::ready_since(pod)),
            Reverse(pods::restarts(pod)),
            Reverse(pods::created(pod)),
        )
    });
    ranked.into_iter().take(count).cloned().collect()
}

fn deletion_cost(pod: &Pod) -> i32 {
    pod.annotations().get("controller.kubernetes.io/pod-deletion-cost").and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn observe(
    set: &ReplicaSet,
    all: &[Arc<Pod>],
    active: &[Arc<Pod>],
    failure: Option<&anyhow::Error>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let template_labels =
        spec.template.and_then(|template| template.metadata).and_then(|meta| meta.labels).unwrap_or_default();
    let count =
        |test: &dyn Fn(&Pod) -> bool| i32::try_from(active.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let terminating = all.iter().filter(|pod| is_deleting(pod.as_ref()) && !pods::is_terminal(pod)).count();
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: nonzero(count(&|pod| {
            template_labels.iter().all(|(k, v)| pod.labels().get(k) == Some(v))
        })),
        ready_replicas: nonzero(count(&pods::is_ready)),
        available_replicas: nonzero(count(&|pod| pods::is_available(pod, min_ready, now))),
        terminating_replicas: Some(i32::try_from(terminating).unwrap_or(i32::MAX)),
        observed_generation: set.meta().generation,
        conditions: failure_condition(set, failure, now),
    }
}

fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

fn failure_condition(
    set: &ReplicaSet,
    failure: Option<&anyhow::Error>,
    now: Timestamp,
) -> Option<Vec<k8s_openapi::api::apps::v1::ReplicaSetCondition>> {
    use k8s_openapi::{api::apps::v1::ReplicaSetCondition, apimachinery::pkg::apis::meta::v1::Time};
    let mut conditions = set.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let present = conditions.iter().any(|condition| condition.type_ == "ReplicaFailure");
    match failure {
        Some(error) if !present => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some("FailedCreate".into()),
            message: Some(format!("{error:#}")),
            last_transition_time: Some(Time(now)),
        }),
        None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
        Some(_) => {}
    }
    (!conditions.is_empty()).then_some(conditions)
}

/// What was asked of the API and has not come back through the watch yet. While something is outstanding the count of
/// pods is stale and acting on it would create or delete twice.
#[derive(Default)]
struct Expectations(Mutex<HashMap<ObjectKey, Expectation>>);

struct Expectation {
    creations: usize,
    deletions: Vec<String>,
    since: tokio::time::Instant,
}

impl Expectations {
    fn expect_creations(&self, key: &ObjectKey, count: usize) {
        self.with(key, |expectation| expectation.creations += count);
    }

    fn expect_deletions(&self, key: &ObjectKey, uids: impl Iterator<Item = String>) {
        self.with(key, |expectation| expectation.deletions.extend(uids));
    }

    fn created(&self, key: &ObjectKey) {
        self.with(key, |expectation| expectation.creations = expectation.creations.saturating_sub(1));
    }

    fn deleted(&self, key: &ObjectKey, uid: &str) {
        self.with(key, |expectation| expectation.deletions.retain(|expected| expected != uid));
    }

    fn met(&self, key: &ObjectKey) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = all.get(key).is_some_and(|expectation| {
            (expectation.creations > 0 || !expectation.deletions.is_empty())
                && expectation.since.elapsed() < EXPECTATION
        });
        if !open {
            all.remove(key);
        }
        !open
    }

    fn forget(&self, key: &ObjectKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// A pod appeared, started to go, or went.
    fn observe(&self, before: Option<&Pod>, after: Option<&Pod>) {
        let Some(pod) = after.or(before) else { return };
        let Some(owner) = controller_of(pod).filter(|owner| owner.kind == "ReplicaSet") else { return };
        let key = ObjectKey::new(pod.namespace().unwrap_or_default(), owner.name.clone());
        if before.is_none() {
            self.created(&key);
        }
        if after.is_none_or(is_deleting) {
            self.deleted(&key, &pod.uid().unwrap_or_default());
        }
    }

    fn with(&self, key: &ObjectKey, change: impl FnOnce(&mut Expectation)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(key.clone()).or_insert_with(|| Expectation {
            creations: 0,
            deletions: Vec::new(),
            since: tokio::time::Instant::now(),
        }));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, node: Option<&str>, ready: bool, phase: &str) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let value: Value = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<String> {
        pods.iter().map(|pod| pod.name_any()).collect()
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let pods = [
            pod("ready-alone", Some("n2"), true, "Running"),
            pod("ready-crowded-a", Some("n1"), true, "Running"),
            pod("unready", Some("n1"), false, "Running"),
            pod("pending", Some("n1"), false, "Pending"),
            pod("unscheduled", None, false, "Pending"),
        ];
        assert_eq!(
            names(&select_victims(&pods, 5)),
            ["unscheduled", "pending", "unready", "ready-crowded-a", "ready-alone"]
        );
    }

    #[test]
    fn nothing_is_created_twice_while_the_watch_is_behind() {
        let expectations = Expectations::default();
        let key = ObjectKey::new("default", "web");
        expectations.expect_creations(&key, 1);
        assert!(!expectations.met(&key));
        let mut made = Arc::unwrap_or_clone(pod("web-1", None, false, "Pending"));
        made.metadata.namespace = Some("default".into());
        made.metadata.owner_references = Some(vec![
            serde_json::from_value(
                json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}),
            )
            .unwrap(),
        ]);
        expectations.observe(None, Some(&made));
        assert!(expectations.met(&key));
    }

    #[test]
    fn a_status_counts_active_pods_only() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 3}, "spec": {"selector": {}, "replicas": 2}}))
        .unwrap();
        let all = [pod("a", Some("n"), true, "Running"), pod("b", Some("n"), false, "Running")];
        let status = observe(&set, &all, &all, None, Timestamp::now());
        assert_eq!((status.replicas, status.ready_replicas, status.observed_generation), (2, Some(1), Some(3)));
    }
}
