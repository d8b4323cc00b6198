//! Nodes that fall silent: their conditions become Unknown, they are tainted, their pods stop being ready (so they leave
//! every Service) and go when their toleration ends. The lease is the heartbeat; our own clock measures its age, so a
//! node with a wrong clock is not judged by it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    informer::{Informers, ObjectKey, wake_self},
    objects::is_deleting,
    pods,
    queue::{Next, Outcome, Queue, unless_gone},
    recorder::{Kind, Recorder},
};

const LEASES: &str = "kube-node-lease";
/// Upstream's `--node-monitor-period`.
const PERIOD: Duration = Duration::from_secs(5);
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition type, status that taints, taint.
const PRESSURES: [(&str, &str, &str); 4] = [
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    recorder: Recorder,
    grace: Duration,
    /// The lease's version and when we first saw it.
    heartbeats: Mutex<HashMap<String, (Option<String>, Instant)>>,
}

pub fn start(
    client: Client,
    informers: Arc<Informers>,
    grace: Duration,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> {
    let queue = Queue::new();
    informers.nodes.on_change(wake_self(queue.adder()));
    informers.pods.on_change({
        let queue = queue.clone();
        move |_, after: Option<&Arc<Pod>>| {
            if let Some(node) = after.and_then(|pod| pods::node(pod)) {
                queue.add(ObjectKey::new("", node));
            }
        }
    });
    let recorder = Recorder::new(client.clone(), "node-controller");
    let controller =
        Arc::new(Controller { client, informers: informers.clone(), recorder, grace, heartbeats: Mutex::default() });
    async move {
        informers.nodes.wait_until_synced().await;
        informers.node_leases.wait_until_synced().await;
        informers.pods.wait_until_synced().await;
        let reconcile = {
            let controller = controller.clone();
            move |key| {
                let controller = controller.clone();
                async move { controller.reconcile(key).await }
            }
        };
        tokio::join!(queue.clone().run("node", 2, shutdown.clone(), reconcile), async {
            let mut tick = interval(PERIOD);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = tick.tick() => {}
                    () = shutdown.cancelled() => return,
                }
                for node in informers.nodes.all() {
                    queue.add(ObjectKey::of(node.as_ref()));
                }
            }
        });
    }
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Outcome {
        let Some(node) = self.informers.nodes.get(&key) else {
            self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.name);
            return Ok(Next::Wait);
        };
        if self.is_new(&key.name) {
            let message = format!("Node {0} event: Registered Node {0} in Controller", key.name);
            self.recorder.record(node.as_ref(), Kind::Normal, "RegisteredNode", message);
        }
        if self.is_silent(&node) && condition(&node, "Ready").is_none_or(|ready| ready.status != "Unknown") {
            self.mark_unknown(&node).await?;
            // The changed node brings us back with the taints that follow.
            return Ok(Next::Wait);
        }
        self.taint(&node).await?;
        if condition(&node, "Ready").is_none_or(|ready| ready.status != "True") {
            self.unready_pods(&node).await?;
        }
        self.evict(&node).await
    }

    fn is_new(&self, name: &str) -> bool {
        !self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    fn is_silent(&self, node: &Node) -> bool {
        let name = node.name_any();
        let lease = self.informers.node_leases.get(&ObjectKey::new(LEASES, &*name));
        let version = lease.and_then(|lease| lease.resource_version());
        let mut heartbeats = self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = heartbeats.entry(name).or_insert_with(|| (version.clone(), Instant::now()));
        if entry.0 != version {
            *entry = (version, Instant::now());
        }
        entry.1.elapsed() > self.grace
    }

    async fn mark_unknown(&self, node: &Node) -> anyhow::Result<()> {
        let conditions: Vec<_> = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
            .into_iter()
            .map(|kind| unknown(condition(node, kind), kind, Timestamp::now()))
            .collect();
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = json!({"status": {"conditions": conditions}});
        unless_gone(api.patch_status(&node.name_any(), &PatchParams::default(), &Patch::Strategic(&patch)).await)?;
        let message = format!("Node {} status is now: NodeNotReady", node.name_any());
        self.recorder.record(node, Kind::Normal, "NodeNotReady", message);
        Ok(())
    }

    async fn taint(&self, node: &Node) -> anyhow::Result<()> {
        let current = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let wanted = taints(node, &current, Timestamp::now());
        if wanted != current {
            let api: Api<Node> = Api::all(self.client.clone());
            let patch = json!({"metadata": {"resourceVersion": node.resource_version()}, "spec": {"taints": wanted}});
            unless_gone(api.patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await)?;
        }
        Ok(())
    }

    /// A silent node's pods cannot say that they are not ready; we do, and they leave their Services.
    async fn unready_pods(&self, node: &Node) -> anyhow::Result<()> {
        for pod in self.pods_on(node).iter().filter(|pod| pods::is_ready(pod)) {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let patch = json!({"status": {"conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": Time(Timestamp::now())}]}});
            unless_gone(api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(&patch)).await)?;
            self.recorder.record(pod.as_ref(), Kind::Warning, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }

    /// Pods that do not tolerate a NoExecute taint go, at once or when their toleration has run out.
    async fn evict(&self, node: &Node) -> Outcome {
        let taints: Vec<_> = node
            .spec
            .iter()
            .flat_map(|spec| spec.taints.iter().flatten())
            .filter(|t| t.effect == "NoExecute")
            .collect();
        if taints.is_empty() {
            return Ok(Next::Wait);
        }
        let mut next: Option<Duration> = None;
        for pod in self.pods_on(node).iter().filter(|pod| !is_deleting(pod.as_ref())) {
            match remaining(pod, &taints, Timestamp::now()) {
                Stay::Forever => {}
                Stay::For(left) => next = Some(next.map_or(left, |next| next.min(left))),
                Stay::No => self.delete(pod, node).await?,
            }
        }
        Ok(next.map_or(Next::Wait, Next::After))
    }

    async fn delete(&self, pod: &Pod, node: &Node) -> anyhow::Result<()> {
        let message = format!("Marking for deletion Pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        self.recorder.record(pod, Kind::Normal, "TaintManagerEviction", message);
        tracing::info!(pod = pod.name_any(), node = node.name_any(), "evicted by a taint");
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        unless_gone(api.delete(&pod.name_any(), &DeleteParams::default()).await)?;
        Ok(())
    }

    fn pods_on(&self, node: &Node) -> Vec<Arc<Pod>> {
        let name = node.name_any();
        self.informers.pods.all().into_iter().filter(|pod| pods::node(pod) == Some(&name)).collect()
    }
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn unknown(before: Option<&NodeCondition>, kind: &str, now: Timestamp) -> NodeCondition {
    let (reason, message) = match before {
        Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
        None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
    };
    NodeCondition {
        type_: kind.into(),
        status: "Unknown".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: before.and_then(|condition| condition.last_heartbeat_time.clone()),
        last_transition_time: Some(Time(now)),
    }
}

/// The taints that a node's conditions demand, beside those that others set.
fn taints(node: &Node, current: &[Taint], now: Timestamp) -> Vec<Taint> {
    let ready = condition(node, "Ready").map_or("Unknown", |ready| ready.status.as_str());
    let mut wanted = Vec::new();
    match ready {
        "True" => {}
        "False" => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        _ => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
    }
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    wanted.extend(cordoned.then_some((UNSCHEDULABLE, "NoSchedule")));
    let pressed =
        PRESSURES.iter().filter(|(kind, status, _)| condition(node, kind).is_some_and(|c| c.status == *status));
    wanted.extend(pressed.map(|(_, _, taint)| (*taint, "NoSchedule")));

    let is = |taint: &Taint, wanted: &(&str, &str)| taint.key == wanted.0 && taint.effect == wanted.1;
    let managed = |taint: &Taint| {
        [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
            || PRESSURES.iter().any(|(_, _, key)| taint.key == *key)
    };
    let mut taints: Vec<_> =
        current.iter().filter(|taint| !managed(taint) || wanted.iter().any(|w| is(taint, w))).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| is(taint, &(key, effect))) {
            let time_added = (effect == "NoExecute").then_some(Time(now));
            taints.push(Taint { key: key.into(), effect: effect.into(), time_added, value: None });
        }
    }
    taints
}

#[derive(Debug, PartialEq)]
enum Stay {
    Forever,
    For(Duration),
    No,
}

fn remaining(pod: &Pod, taints: &[&Taint], now: Timestamp) -> Stay {
    let none = Vec::new();
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_ref()).unwrap_or(&none);
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let matching: Vec<_> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        if matching.is_empty() {
            return Stay::No;
        }
        let Some(seconds) = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min() else {
            continue;
        };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let left = seconds - (now.as_second() - since.as_second());
        if left <= 0 {
            return Stay::No;
        }
        let left = Duration::from_secs(u64::try_from(left).unwrap_or(1));
        shortest = Some(shortest.map_or(left, |shortest| shortest.min(left)));
    }
    shortest.map_or(Stay::Forever, Stay::For)
}

/// Upstream's rule: an empty key with Exists matches every taint, an empty effect every effect.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if (!key.is_empty() && key != taint.key) || (!effect.is_empty() && effect != taint.effect) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: serde_json::Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    fn keys(taints: &[Taint]) -> Vec<String> {
        taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
    }

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let silent = node(json!({"spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}));
        let own = Taint { key: "dedicated".into(), effect: "NoSchedule".into(), ..Taint::default() };
        let stale = Taint { key: NOT_READY.into(), effect: "NoExecute".into(), ..Taint::default() };
        assert_eq!(
            keys(&taints(&silent, &[own, stale], Timestamp::UNIX_EPOCH)),
            [
                "dedicated:NoSchedule",
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute",
                "node.kubernetes.io/unschedulable:NoSchedule",
            ]
        );
        let ready = node(json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
        assert_eq!(taints(&ready, &[], Timestamp::UNIX_EPOCH), []);
    }

    #[test]
    fn pods_stay_as_long_as_they_tolerate() {
        let now = Timestamp::from_second(1000).unwrap();
        let since = |second| Some(Time(Timestamp::from_second(second).unwrap()));
        let taint = Taint { key: UNREACHABLE.into(), effect: "NoExecute".into(), value: None, time_added: since(900) };
        let pod = |tolerations| {
            serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}})).unwrap()
        };
        let toleration =
            |seconds: Option<i64>| json!({"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": seconds});
        assert_eq!(remaining(&pod(json!([])), &[&taint], now), Stay::No);
        assert_eq!(
            remaining(&pod(json!([toleration(Some(300))])), &[&taint], now),
            Stay::For(Duration::from_secs(200))
        );
        assert_eq!(remaining(&pod(json!([toleration(Some(50))])), &[&taint], now), Stay::No);
        assert_eq!(remaining(&pod(json!([{"operator": "Exists"}])), &[&taint], now), Stay::Forever);
    }
}
