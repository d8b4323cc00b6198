//! Pods without a node get one. `filter` says which nodes fit, `score` which is best, `cluster` what each has left; this
//! file takes pods one by one, decides in memory, and binds through the API while the next one is decided.

mod cluster;
mod demand;
mod filter;
mod quantity;
mod score;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Binding, Node, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    informer::{Informers, ObjectKey},
    objects::is_deleting,
    pods,
    queue::{Next, Outcome, Queue, is_conflict, is_not_found, unless_gone},
    recorder::{Kind, Recorder},
};
use cluster::Cluster;
use demand::demand;

/// Decisions are made one at a time under a lock; this many bindings are on their way at once.
const WORKERS: usize = 16;
const NAME: &str = "default-scheduler";
/// A pod that fits nowhere is tried again after this long even if nothing seems to have changed.
const RETRY: Duration = Duration::from_secs(300);

struct Scheduler {
    client: Client,
    informers: Arc<Informers>,
    recorder: Recorder,
    cluster: Mutex<Cluster>,
    /// Pods that fit nowhere: woken when something moves.
    unschedulable: Mutex<HashSet<ObjectKey>>,
    queue: Arc<Queue<ObjectKey>>,
}

pub fn start(client: Client, informers: Arc<Informers>, shutdown: CancellationToken) -> impl Future<Output = ()> {
    let scheduler = Arc::new(Scheduler {
        recorder: Recorder::new(client.clone(), NAME),
        client,
        informers: informers.clone(),
        cluster: Mutex::default(),
        unschedulable: Mutex::default(),
        queue: Queue::new(),
    });
    informers.nodes.on_change({
        let scheduler = scheduler.clone();
        move |before, after| scheduler.see_node(before, after)
    });
    informers.pods.on_change({
        let scheduler = scheduler.clone();
        move |before, after| scheduler.see_pod(before, after)
    });
    async move {
        informers.nodes.wait_until_synced().await;
        informers.pods.wait_until_synced().await;
        let queue = scheduler.queue.clone();
        let reconcile = move |key| {
            let scheduler = scheduler.clone();
            async move { scheduler.schedule(key).await }
        };
        queue.run("scheduler", WORKERS, shutdown, reconcile).await;
    }
}

/// Ours to place.
fn is_waiting(pod: &Pod) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return false };
    pods::node(pod).is_none()
        && !is_deleting(pod)
        && !pods::is_terminal(pod)
        && spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

impl Scheduler {
    fn see_node(&self, before: Option<&Arc<Node>>, after: Option<&Arc<Node>>) {
        let Some(node) = after.or(before) else { return };
        self.cluster().set_node(node.name_any(), after.cloned());
        let changed = match (before, after) {
            (Some(before), Some(after)) => {
                before.spec != after.spec
                    || before.labels() != after.labels()
                    || before.status.as_ref().map(|s| &s.allocatable) != after.status.as_ref().map(|s| &s.allocatable)
            }
            _ => true,
        };
        if changed {
            self.wake();
        }
    }

    fn see_pod(&self, before: Option<&Arc<Pod>>, after: Option<&Arc<Pod>>) {
        self.cluster().observe(before, after);
        match after {
            Some(pod) if is_waiting(pod) => self.queue.add(ObjectKey::of(pod.as_ref())),
            Some(pod) if !pods::is_terminal(pod) => {}
            // Something left: there is room that was not there before.
            _ => self.wake(),
        }
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut *self.unschedulable.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(|key| self.queue.add(key));
    }

    async fn schedule(&self, key: ObjectKey) -> Outcome {
        let Some(pod) = self.informers.pods.get(&key).filter(|pod| is_waiting(pod)) else { return Ok(Next::Wait) };
        match self.decide(&pod) {
            Decision::Placed => Ok(Next::Wait),
            Decision::Node(node) => self.bind(&pod, &node).await,
            Decision::Nowhere(message) => self.give_up(&key, &pod, message).await,
        }
    }

    /// Chooses a node and counts the pod there at once, so that the next decision sees it.
    fn decide(&self, pod: &Arc<Pod>) -> Decision {
        let mut cluster = self.cluster();
        if cluster.is_placed(&pod.uid().unwrap_or_default()) {
            return Decision::Placed;
        }
        let demand = demand(pod);
        let (mut fitting, mut reasons) = (Vec::new(), Vec::new());
        for node in cluster.nodes.values() {
            let why = filter::reasons(&cluster, node, pod, &demand);
            if why.is_empty() { fitting.push(node) } else { reasons.push(why) }
        }
        let Some(node) = score::choose(&cluster, &fitting, pod, &demand).map(|node| node.name_any()) else {
            return Decision::Nowhere(filter::summary(cluster.nodes.len(), &reasons));
        };
        cluster.place(pod, &node);
        Decision::Node(node)
    }

    async fn bind(&self, pod: &Pod, node: &str) -> Outcome {
        let bound = self.send_binding(pod, node).await;
        if let Err(error) = bound {
            self.cluster().forget(&pod.uid().unwrap_or_default());
            if is_not_found(&error) || is_conflict(&error) {
                tracing::debug!(pod = pod.name_any(), node, "not bound: {error}");
                return Ok(Next::Wait);
            }
            return Err(error.into());
        }
        let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        self.recorder.record(pod, Kind::Normal, "Scheduled", format!("Successfully assigned {name} to {node}"));
        Ok(Next::Wait)
    }

    async fn send_binding(&self, pod: &Pod, node: &str) -> kube::Result<()> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.name_any()),
                namespace: pod.namespace(),
                uid: pod.uid(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.into()),
                ..ObjectReference::default()
            },
        };
        let body = serde_json::to_vec(&binding).map_err(kube::Error::SerdeError)?;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        // The answer is a Status, not a Pod.
        let request = kube::core::Request::new(api.resource_url())
            .create_subresource("binding", &pod.name_any(), &PostParams::default(), body)
            .map_err(kube::Error::BuildRequest)?;
        self.client.request_status::<serde_json::Value>(request).await.map(drop)
    }

    async fn give_up(&self, key: &ObjectKey, pod: &Pod, message: String) -> Outcome {
        self.unschedulable.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        let known = pods::condition(pod, "PodScheduled")
            .is_some_and(|condition| condition.status == "False" && condition.message.as_deref() == Some(&message));
        if !known {
            self.recorder.record(pod, Kind::Warning, "FailedScheduling", message.clone());
            let patch = json!({"status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastTransitionTime": Time(Timestamp::now())}]}});
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
            unless_gone(api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(&patch)).await)?;
        }
        Ok(Next::After(RETRY))
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Decision {
    /// Already decided; the watch has not shown it yet.
    Placed,
    Node(String),
    Nowhere(String),
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, extra: Value) -> Arc<Node> {
        let mut value = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": extra,
            "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "3"}}
        });
        value["metadata"]["labels"]["zone"] = json!(name);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn pod(name: &str, spec: Value) -> Arc<Pod> {
        let owners =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
        Arc::new(serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}, "ownerReferences": owners},
            "spec": spec}))
        .unwrap())
    }

    fn plain() -> Value {
        json!({"containers": [{"name": "c"}]})
    }

    fn cluster(nodes: &[Arc<Node>]) -> Cluster {
        let mut cluster = Cluster::default();
        nodes.iter().for_each(|node| cluster.set_node(node.name_any(), Some(node.clone())));
        cluster
    }

    fn place(cluster: &mut Cluster, pod: &Arc<Pod>) -> Result<String, String> {
        let demand = demand(pod);
        let (fits, fails): (Vec<_>, Vec<_>) = cluster
            .nodes
            .values()
            .map(|node| (node, filter::reasons(cluster, node, pod, &demand)))
            .partition(|(_, reasons)| reasons.is_empty());
        let fitting: Vec<_> = fits.into_iter().map(|(node, _)| node).collect();
        let reasons: Vec<_> = fails.into_iter().map(|(_, reasons)| reasons).collect();
        let chosen = score::choose(cluster, &fitting, pod, &demand).map(|node| node.name_any());
        let chosen = chosen.ok_or_else(|| filter::summary(cluster.nodes.len(), &reasons))?;
        cluster.place(pod, &chosen);
        Ok(chosen)
    }

    #[test]
    fn a_controllers_pods_are_spread_over_the_nodes() {
        let mut cluster = cluster(&[node("a", json!({})), node("b", json!({})), node("c", json!({}))]);
        for round in 0..3 {
            let used: HashSet<_> =
                (0..3).map(|i| place(&mut cluster, &pod(&format!("p{round}{i}"), plain())).unwrap()).collect();
            assert_eq!(used.len(), 3, "each round covers every node");
        }
    }

    #[test]
    fn a_pod_that_fits_nowhere_says_why_in_upstreams_words() {
        let tainted = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
        let mut cluster =
            cluster(&[node("a", json!({"unschedulable": true})), node("b", tainted), node("c", json!({}))]);
        let huge = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "100"}}}]});
        assert_eq!(
            place(&mut cluster, &pod("p", huge)),
            Err("0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, 1 node(s) were unschedulable.".into())
        );
    }

    #[test]
    fn host_ports_and_pod_counts_are_limits() {
        let mut cluster = cluster(&[node("a", json!({}))]);
        let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
        assert_eq!(place(&mut cluster, &pod("p1", port.clone())), Ok("a".into()));
        let taken = "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
        assert_eq!(place(&mut cluster, &pod("p2", port)), Err(taken.into()));
        place(&mut cluster, &pod("p3", plain())).unwrap();
        place(&mut cluster, &pod("p4", plain())).unwrap();
        assert_eq!(place(&mut cluster, &pod("p5", plain())), Err("0/1 nodes are available: 1 Too many pods.".into()));
        cluster.forget("p1");
        assert_eq!(place(&mut cluster, &pod("p6", plain())), Ok("a".into()));
    }

    #[test]
    fn selectors_and_affinity_are_obeyed() {
        let mut cluster = cluster(&[node("a", json!({})), node("b", json!({}))]);
        let selected = json!({"containers": [], "nodeSelector": {"kubernetes.io/hostname": "b"}});
        assert_eq!(place(&mut cluster, &pod("p1", selected)), Ok("b".into()));
        let term = json!({"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "zone"});
        let anti = json!({"containers": [], "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}});
        assert_eq!(place(&mut cluster, &pod("p2", anti.clone())), Ok("a".into()));
        let message = place(&mut cluster, &pod("p3", anti)).unwrap_err();
        assert!(message.contains("2 node(s) didn't match pod anti-affinity rules"), "{message}");
        let existing = place(&mut cluster, &pod("p4", json!({"containers": []})));
        assert_eq!(existing, Ok("b".into()), "the pod on a does not want neighbours");
    }

    #[test]
    fn hard_topology_spread_keeps_the_skew() {
        let mut cluster = cluster(&[node("a", json!({})), node("b", json!({}))]);
        let constraint = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}}});
        let spec = json!({"containers": [], "topologySpreadConstraints": [constraint]});
        let used: HashSet<_> =
            (0..2).map(|i| place(&mut cluster, &pod(&format!("p{i}"), spec.clone())).unwrap()).collect();
        assert_eq!(used.len(), 2);
    }
}
