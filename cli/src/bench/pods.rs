//! The objects of a measurement: everything in one namespace, which is removed with all of it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, Service, ServiceAccount};
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use leme_measure::{Measurement, measurement};
use serde_json::{Value, json};

use super::load::Plan;

pub(crate) const NAMESPACE: &str = "leme-bench";
pub(crate) const PORT: u16 = 8080;
const SERVER: &str = "server";
/// Nothing runs longer, whatever becomes of the one who started it.
const DEADLINE: Duration = Duration::from_secs(1_800);
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Pods {
    client: Client,
    image: String,
}

impl Pods {
    /// Makes the namespace; one that is there belongs to somebody else, or to a run that was cut off.
    pub(crate) async fn create(client: Client, image: String) -> Result<Self> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": NAMESPACE, "labels": { "app.kubernetes.io/managed-by": "leme" } },
        });
        match namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await {
            Ok(_) => Ok(Self { client, image }),
            Err(kube::Error::Api(status)) if status.code == 409 => bail!(
                "namespace {NAMESPACE} exists: another measurement is under way, or one was cut off; in that case \
                 remove it with `kubectl delete namespace {NAMESPACE}`"
            ),
            Err(error) => Err(error).context("cannot make a namespace"),
        }
    }

    /// No pod is admitted before the namespace has its account.
    pub(crate) async fn await_account(&self) -> Result<()> {
        let accounts: Api<ServiceAccount> = self.api();
        let made = await_condition(accounts, "default", |account: Option<&ServiceAccount>| account.is_some());
        match tokio::time::timeout(PATIENCE, made).await {
            Ok(made) => made.map(drop).context("cannot wait for the namespace's account"),
            Err(_) => bail!("namespace {NAMESPACE} gets no service account"),
        }
    }

    pub(crate) async fn remove(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let removed = namespaces.delete(NAMESPACE, &DeleteParams::default()).await;
        removed.with_context(|| format!("namespace {NAMESPACE} stays: `kubectl delete namespace {NAMESPACE}`"))?;
        let gone = await_condition(namespaces, NAMESPACE, |namespace: Option<&Namespace>| namespace.is_none());
        match tokio::time::timeout(PATIENCE, gone).await {
            Ok(gone) => Ok(gone.map(drop)?),
            Err(_) => bail!("namespace {NAMESPACE} is still being removed after {PATIENCE:?}"),
        }
    }

    /// The server's own address once it runs.
    pub(crate) async fn start_server(&self, node: &str) -> Result<String> {
        self.start(SERVER, node, &["serve".into(), "--port".into(), PORT.to_string()]).await?;
        let pods: Api<Pod> = self.api();
        let pod = self
            .await_pod(&pods, SERVER, PATIENCE, |pod| phase(pod) == Some("Running") && address(pod).is_some())
            .await?;
        Ok(address(&pod).context("a running pod without an address")?.to_owned())
    }

    /// Cluster address and NodePort.
    pub(crate) async fn expose(&self) -> Result<(String, u16)> {
        let port = |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": PORT });
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": SERVER },
            "spec": { "type": "NodePort", "selector": { "name": SERVER }, "ports": [port("TCP"), port("UDP")] },
        });
        let services: Api<Service> = self.api();
        // Both protocols are measured on one number.
        let mut service = services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
        let spec = service.spec.as_mut().context("a Service without a specification")?;
        let ports = spec.ports.as_mut().context("a Service without ports")?;
        let number = ports.first().and_then(|port| port.node_port).context("a Service without a NodePort")?;
        if ports.iter().any(|port| port.node_port != Some(number)) {
            ports.iter_mut().for_each(|port| port.node_port = Some(number));
            service = services.replace(SERVER, &PostParams::default(), &service).await?;
        }
        let address = service.spec.and_then(|spec| spec.cluster_ip).context("a Service without an address")?;
        Ok((address, u16::try_from(number)?))
    }

    /// Runs a client to its end and returns what it measured.
    pub(crate) async fn load(&self, name: &str, node: &str, plan: &Plan) -> Result<Vec<Measurement>> {
        self.start(name, node, &["load".into(), serde_json::to_string(plan)?]).await?;
        let pods: Api<Pod> = self.api();
        self.await_pod(&pods, name, PATIENCE, |pod| !matches!(phase(pod), None | Some("Pending"))).await?;
        let follow = LogParams { follow: true, ..Default::default() };
        let mut lines = pods.log_stream(name, &follow).await?.lines();
        let (mut measured, mut said) = (Vec::new(), String::new());
        while let Some(line) = lines.try_next().await? {
            match measurement::parse(&line) {
                Ok(parsed) => measured.extend(parsed),
                Err(_) => said = line,
            }
        }
        let ended = |pod: &Pod| matches!(phase(pod), Some("Succeeded" | "Failed"));
        let pod = self.await_pod(&pods, name, DEADLINE, ended).await?;
        if phase(&pod) != Some("Succeeded") {
            bail!("the client on {node} failed: {said}");
        }
        if !said.is_empty() {
            eprintln!("  {said}");
        }
        Ok(measured)
    }

    async fn start(&self, name: &str, node: &str, arguments: &[String]) -> Result<()> {
        let pods: Api<Pod> = self.api();
        let pod = serde_json::from_value(self.pod(name, node, arguments))?;
        pods.create(&PostParams::default(), &pod).await.with_context(|| format!("cannot make pod {name}"))?;
        Ok(())
    }

    /// As the strictest pod security standard wants it. The node is named by affinity, so that the scheduler still
    /// judges whether it has room.
    fn pod(&self, name: &str, node: &str, arguments: &[String]) -> Value {
        let all: Vec<&str> = ["bench"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        let named = json!({ "key": "metadata.name", "operator": "In", "values": [node] });
        let terms = json!({ "nodeSelectorTerms": [{ "matchFields": [named] }] });
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "name": name } },
            "spec": {
                "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": terms } },
                "restartPolicy": "Never", "activeDeadlineSeconds": DEADLINE.as_secs(),
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false, "enableServiceLinks": false,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 65534, "seccompProfile": { "type": "RuntimeDefault" },
                },
                "containers": [{
                    "name": "leme", "image": self.image, "imagePullPolicy": "IfNotPresent", "args": all,
                    "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
                }],
            },
        })
    }

    /// Until the pod is as wanted. A pod that cannot become so is told with its reason.
    async fn await_pod(
        &self,
        pods: &Api<Pod>,
        name: &str,
        patience: Duration,
        wanted: impl Fn(&Pod) -> bool,
    ) -> Result<Pod> {
        let decided = |pod: Option<&Pod>| pod.is_none_or(|pod| wanted(pod) || fault(pod).is_some());
        let pod = match tokio::time::timeout(patience, await_condition(pods.clone(), name, decided)).await {
            Ok(pod) => pod?.with_context(|| format!("pod {name} is gone"))?,
            Err(_) => bail!("pod {name} does not get on after {patience:?}: {}", self.last_event(name).await),
        };
        match fault(&pod) {
            Some(reason) if !wanted(&pod) => bail!("pod {name} cannot run: {reason}{}", self.advice(&reason)),
            _ => Ok(pod),
        }
    }

    /// What the cluster has said about a pod last.
    async fn last_event(&self, name: &str) -> String {
        let about = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let events = self.api::<Event>().list(&about).await.map(|list| list.items).unwrap_or_default();
        let last = events.into_iter().max_by_key(|event| event.last_timestamp.clone());
        last.and_then(|event| event.message).unwrap_or_else(|| "no reason is told".into())
    }

    fn advice(&self, reason: &str) -> String {
        match reason.contains("Image") || reason.contains("ErrImage") {
            true => {
                format!("\nThe nodes need image {}: `leme bench image --help` tells how to give it to them", self.image)
            }
            false => String::new(),
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref()
}

/// Why a pod's container will not start, if that is certain.
fn fault(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let waiting = statuses.iter().find_map(|status| status.state.as_ref()?.waiting.as_ref())?;
    let reason = waiting.reason.as_deref()?;
    let hopeless =
        ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "CreateContainerError"];
    hopeless.contains(&reason).then(|| format!("{reason}: {}", waiting.message.as_deref().unwrap_or_default()))
}

/// A node that takes ordinary pods, and its address.
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) address: String,
}

/// The named nodes, or the first two that are ready and take pods.
pub(crate) async fn places(client: &Client, named: &[String]) -> Result<Vec<Place>> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await.context("cannot list nodes")?;
    let place = |node: &Node| {
        let addresses = node.status.as_ref()?.addresses.as_ref()?;
        let internal = addresses.iter().find(|address| address.type_ == "InternalIP")?;
        Some(Place { name: node.metadata.name.clone()?, address: internal.address.clone() })
    };
    if named.is_empty() {
        return Ok(nodes.iter().filter(|node| takes_pods(node)).filter_map(place).take(2).collect());
    }
    let find = |name: &String| {
        let node = nodes.iter().find(|node| node.metadata.name.as_ref() == Some(name));
        node.and_then(place).with_context(|| format!("there is no node {name} with an address"))
    };
    named.iter().map(find).collect()
}

fn takes_pods(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let closed = spec.is_some_and(|spec| spec.unschedulable.unwrap_or(false));
    let tainted = spec.and_then(|spec| spec.taints.as_ref());
    let tainted = tainted.is_some_and(|taints| taints.iter().any(|taint| taint.effect != "PreferNoSchedule"));
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.is_some_and(|all| all.iter().any(|it| it.type_ == "Ready" && it.status == "True"));
    ready && !closed && !tainted
}
