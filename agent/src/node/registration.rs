//! Registers the node and keeps its status true: looked at every ten seconds, and at once when something calls;
//! written when it changed, else every five minutes (the lease is the heartbeat).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::*;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::conditions::{conditions, measure};
use super::machine::Machine;
use crate::Config;
use crate::config::KUBELET_VERSION;
use crate::events::{Kind, Recorder};
use crate::runtime::Cri;

const LOOK: Duration = Duration::from_secs(10);
const SAY: Duration = Duration::from_secs(300);
/// Until the node is ready it looks often: a cluster's first second counts.
const EAGER: Duration = Duration::from_millis(200);
/// How long an agent that starts again may take before its node counts as not ready.
const COMEBACK: Duration = Duration::from_secs(10);
/// Upstream's `--node-status-max-images`.
const MAX_IMAGES: usize = 50;

/// What the report needs to know and whom it tells.
pub struct Report {
    pub config: Arc<Config>,
    pub client: Client,
    pub cri: Cri,
    pub machine: Machine,
    pub events: Recorder,
    /// Why the network cannot serve yet; none: it can.
    pub network: watch::Receiver<Option<String>>,
    pub labels: watch::Sender<Option<BTreeMap<String, String>>>,
    /// Somebody saw a change that the API should know of now.
    pub nudge: Arc<Notify>,
}

/// Reports until `shutdown`.
pub async fn report(mut report: Report, shutdown: CancellationToken) {
    let api: Api<Node> = Api::all(report.client.clone());
    let mut said: Option<(NodeStatus, Instant)> = None;
    let mut failing = false;
    report.event(Kind::Normal, "Starting", "Starting kubelet.");
    // The error of one that stays away for longer is told below.
    let _ = tokio::time::timeout(COMEBACK, report.come_back(&api)).await;
    loop {
        let outcome = tokio::time::timeout(LOOK, report.say(&api, &mut said)).await;
        let error = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the API does not answer".into()),
        };
        if let Some(error) = error.as_ref().filter(|_| !failing) {
            warn!(error, "the node's status is not told");
        }
        failing = error.is_some();
        let ready = said.as_ref().is_some_and(|(status, _)| is_ready(status));
        let pause = if ready && !failing { LOOK } else { EAGER };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = report.nudge.notified() => {}
            Ok(()) = report.network.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn is_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

impl Report {
    /// A node that the API shows as ready goes on being so while its agent starts again: its pods never stopped.
    async fn come_back(&mut self, api: &Api<Node>) {
        let known = loop {
            match api.get_opt(&self.config.node_name).await {
                Ok(known) => break known,
                Err(_) => tokio::time::sleep(EAGER).await,
            }
        };
        let Some(was) = known.and_then(|node| node.status).filter(is_ready) else { return };
        while !is_ready(&self.status(Some(&was)).await) {
            tokio::select! {
                Ok(()) = self.network.changed() => {}
                () = tokio::time::sleep(EAGER) => {}
            }
        }
    }

    async fn say(&self, api: &Api<Node>, said: &mut Option<(NodeStatus, Instant)>) -> Result<(), kube::Error> {
        let name = &self.config.node_name;
        let before = said.as_ref().map(|(status, _)| status.clone());
        let status = self.status(before.as_ref()).await;
        let due = said.as_ref().is_none_or(|(_, at)| at.elapsed() >= SAY);
        if !due && before.as_ref().is_some_and(|old| same(old, &status)) {
            return Ok(());
        }
        if before.is_none() {
            self.register(api).await?;
        }
        let patch = serde_json::json!({ "status": status });
        let node = match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            // Deleted by hand: registered anew at the next look.
            Err(kube::Error::Api(answer)) if answer.code == 404 => {
                *said = None;
                return Ok(());
            }
            answer => answer?,
        };
        self.tell_changes(before.as_ref(), &status);
        self.labels.send_replace(node.metadata.labels);
        *said = Some((status, Instant::now()));
        Ok(())
    }

    /// Makes the node, or brings the labels of an existing one up to date.
    async fn register(&self, api: &Api<Node>) -> Result<(), kube::Error> {
        let name = &self.config.node_name;
        let labels = self.node_labels();
        let taints = Some(self.config.register_with_taints.clone()).filter(|taints| !taints.is_empty());
        let node = Node {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels.clone()),
                annotations: Some(
                    [("volumes.kubernetes.io/controller-managed-attach-detach".into(), "true".into())].into(),
                ),
                ..Default::default()
            },
            spec: Some(NodeSpec { taints, ..Default::default() }),
            status: None,
        };
        match api.create(&PostParams::default(), &node).await {
            Ok(_) => {
                info!(node = name, "registered");
                Ok(())
            }
            Err(kube::Error::Api(answer)) if answer.code == 409 => {
                let patch = Patch::Merge(serde_json::json!({"metadata": {"labels": labels}}));
                api.patch(name, &PatchParams::default(), &patch).await.map(drop)
            }
            Err(error) => Err(error),
        }
    }

    fn node_labels(&self) -> BTreeMap<String, String> {
        let arch = self.machine.architecture;
        let own = [
            ("kubernetes.io/hostname", self.config.node_name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", arch),
        ];
        let mut labels = self.config.node_labels.clone();
        labels.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
        labels
    }

    async fn status(&self, before: Option<&NodeStatus>) -> NodeStatus {
        let troubles = self.network.borrow().clone();
        let vitals = measure(&self.cri, &self.config.root_dir, troubles).await;
        let old = before.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let capacity = self.capacity();
        NodeStatus {
            addresses: Some(self.addresses()),
            allocatable: Some(self.allocatable(&capacity)),
            capacity: Some(capacity),
            conditions: Some(conditions(&vitals, &self.config.eviction_hard, old, Timestamp::now())),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: self.config.kubelet_address.port().into() }),
            }),
            images: Some(self.images().await).filter(|images| !images.is_empty()),
            node_info: Some(self.node_info(before).await),
            ..Default::default()
        }
    }

    fn addresses(&self) -> Vec<NodeAddress> {
        let address = |type_: &str, address: String| NodeAddress { type_: type_.into(), address };
        vec![address("InternalIP", self.config.node_ip.to_string()), address("Hostname", self.config.node_name.clone())]
    }

    fn allocatable(&self, capacity: &BTreeMap<String, Quantity>) -> BTreeMap<String, Quantity> {
        let (thresholds, mut left) = (&self.config.eviction_hard, capacity.clone());
        left.insert("memory".into(), Quantity(format!("{}Ki", self.machine.allocatable_memory(thresholds) / 1024)));
        left.insert("ephemeral-storage".into(), Quantity(self.machine.allocatable_storage(thresholds).to_string()));
        left
    }

    fn capacity(&self) -> BTreeMap<String, Quantity> {
        let Machine { cpus, memory, storage, hugepages, .. } = &self.machine;
        let kib = |bytes: &i64| Quantity(format!("{}Ki", bytes / 1024));
        let mut all = BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpus.to_string())),
            ("memory".to_owned(), kib(memory)),
            ("ephemeral-storage".to_owned(), kib(storage)),
            ("pods".to_owned(), Quantity(self.config.max_pods.to_string())),
        ]);
        let pages = |bytes: &i64| if *bytes == 0 { Quantity("0".into()) } else { kib(bytes) };
        all.extend(hugepages.iter().map(|(name, bytes)| (name.clone(), pages(bytes))));
        all
    }

    async fn node_info(&self, before: Option<&NodeStatus>) -> NodeSystemInfo {
        let known =
            before.and_then(|status| status.node_info.as_ref()).map(|info| info.container_runtime_version.clone());
        let runtime = match self.cri.version().await {
            Ok(version) => {
                let number = version.runtime_version.trim_start_matches('v');
                format!("{}://{}", version.runtime_name, number.split('~').next().unwrap_or(number))
            }
            Err(_) => known.unwrap_or_else(|| "containerd://Unknown".into()),
        };
        NodeSystemInfo {
            architecture: self.machine.architecture.into(),
            boot_id: self.machine.boot_id.clone(),
            container_runtime_version: runtime,
            kernel_version: self.machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.into(),
            machine_id: self.machine.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: self.machine.os_image.clone(),
            system_uuid: self.machine.system_uuid.clone(),
            ..Default::default()
        }
    }

    /// The largest, since the scheduler prefers nodes that need not pull those.
    async fn images(&self) -> Vec<ContainerImage> {
        let mut images = self.cri.list_images().await.unwrap_or_default();
        images.sort_by_key(|image| std::cmp::Reverse(image.size));
        let names =
            |image: &k8s_cri::v1::Image| image.repo_digests.iter().chain(&image.repo_tags).take(5).cloned().collect();
        let entry = |image: &k8s_cri::v1::Image| ContainerImage {
            names: Some(names(image)),
            size_bytes: Some(image.size as i64),
        };
        images.iter().take(MAX_IMAGES).map(entry).collect()
    }

    fn tell_changes(&self, before: Option<&NodeStatus>, now: &NodeStatus) {
        let holds = |status: Option<&NodeStatus>, kind: &str| {
            let found = status?.conditions.iter().flatten().find(|condition| condition.type_ == kind)?;
            Some(found.status == "True")
        };
        let names = [
            ("Ready", "NodeReady", "NodeNotReady"),
            ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
            ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
            ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        ];
        for (kind, yes, no) in names {
            let (old, new) = (holds(before, kind), holds(Some(now), kind));
            let quiet = old.is_none() && kind == "Ready" && new == Some(false);
            if old == new || quiet {
                continue;
            }
            let reason = if new == Some(true) { yes } else { no };
            self.event(Kind::Normal, reason, &format!("Node {} status is now: {reason}", self.config.node_name));
        }
    }

    fn event(&self, kind: Kind, reason: &str, message: &str) {
        let name = Some(self.config.node_name.clone());
        // Upstream names the node as its own uid; describe finds the events by it.
        let about = ObjectReference { kind: Some("Node".into()), name: name.clone(), uid: name, ..Default::default() };
        self.events.event(about, kind, reason, message);
    }
}

/// Heartbeat times do not make a status another.
fn same(old: &NodeStatus, new: &NodeStatus) -> bool {
    let without_heartbeat = |status: &NodeStatus| {
        let mut status = status.clone();
        status.conditions.iter_mut().flatten().for_each(|condition| condition.last_heartbeat_time = None);
        status
    };
    without_heartbeat(old) == without_heartbeat(new)
}
