//! What a cluster that can be used looks like from outside: nodes Ready, names resolved on each of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::core::v1::Node as ApiNode;
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use super::{Cluster, Node};

/// The API server needs less than a second; a machine that is very busy, some.
const SERVER_LIMIT: Duration = Duration::from_secs(45);
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

pub(crate) async fn client(cluster: &Cluster) -> Result<Client> {
    let kubeconfig =
        Kubeconfig::read_from(cluster.admin_kubeconfig()).context("cannot read the cluster's kubeconfig")?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Hears why something is not there yet.
pub(crate) type Tell<'a> = &'a dyn Fn(&str);

/// Waits until the API server says it is ready.
pub(crate) async fn server(cluster: &Cluster, tell: Tell<'_>) -> Result<()> {
    let client = client(cluster).await?;
    let check = async || {
        let request = http::Request::get("/readyz").body(Vec::new())?;
        let answer = client.request_text(request).await.map(drop);
        answer.map_err(|error| match last_words(cluster) {
            Some(words) => anyhow!("the server ended: {words}"),
            None => anyhow::Error::from(error).context("it does not answer"),
        })
    };
    retry(SERVER_LIMIT, tell, check).await
}

/// Why the server ended, if that is what it did last.
fn last_words(cluster: &Cluster) -> Option<String> {
    let log = std::fs::read_to_string(cluster.node_dir(cluster.control_plane()).join("log/server.log")).ok()?;
    let last = log.lines().rev().find(|line| !line.trim().is_empty())?;
    last.strip_prefix("error: ").map(str::to_owned)
}

/// Waits until every node is Ready, and has the labels that its agent cannot give it.
pub(crate) async fn nodes(cluster: &Cluster, tell: Tell<'_>) -> Result<()> {
    let api: Api<ApiNode> = Api::all(client(cluster).await?);
    for node in &cluster.nodes {
        retry(LIMIT, tell, async || label(&api, node).await).await?;
    }
    retry(LIMIT, tell, async || {
        let list = api.list(&Default::default()).await.context("the API server does not answer")?;
        let waiting: Vec<_> = cluster.nodes.iter().filter_map(|node| why_not_ready(&node.name, &list.items)).collect();
        if waiting.is_empty() { Ok(()) } else { bail!("{}", waiting.join("; ")) }
    })
    .await
}

async fn label(api: &Api<ApiNode>, node: &Node) -> Result<()> {
    let (_, labels) = node.labels();
    if labels.is_empty() {
        return Ok(());
    }
    let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
    match api.patch_metadata(&node.name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(answer)) if answer.code == 404 => bail!("node {} has not registered", node.name),
        Err(error) => Err(error).context("the API server does not answer"),
    }
}

/// `None` when the node is Ready.
pub(crate) fn why_not_ready(name: &str, nodes: &[ApiNode]) -> Option<String> {
    let Some(node) = nodes.iter().find(|node| node.metadata.name.as_deref() == Some(name)) else {
        return Some(format!("node {name} has not registered"));
    };
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => {
            Some(format!("node {name} is not ready: {}", ready.message.as_deref().unwrap_or("no reason given")))
        }
        None => Some(format!("node {name} has no status yet")),
    }
}

/// Waits until every node's name server resolves the cluster's own name.
pub(crate) async fn names(cluster: &Cluster, tell: Tell<'_>) -> Result<()> {
    let expected = cluster.service_subnet.nth(1).context("a service range without addresses")?;
    for node in &cluster.nodes {
        retry(LIMIT, tell, async || {
            let answer = resolve(SocketAddr::from((node.address, 53))).await;
            let answer = answer.with_context(|| format!("the name server on {} does not answer", node.name))?;
            if answer == expected { Ok(()) } else { bail!("{} resolves kubernetes.default to {answer}", node.name) }
        })
        .await?;
    }
    Ok(())
}

/// Address of `kubernetes.default.svc.cluster.local`: one question, the last four bytes of its answer.
async fn resolve(server: SocketAddr) -> Result<Ipv4Addr> {
    const ID: u16 = 0x1e3e;
    let mut question = vec![(ID >> 8) as u8, ID as u8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["kubernetes", "default", "svc", "cluster", "local"] {
        question.push(label.len() as u8);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    let mut answer = [0; 512];
    let length = timeout(Duration::from_millis(500), socket.recv(&mut answer)).await??;
    let records = u16::from_be_bytes([answer[6], answer[7]]);
    // An answer's A record starts right after the question, and its data are its last four bytes.
    let data =
        answer.get(question.len() + 12..question.len() + 16).filter(|_| length >= question.len() + 16 && records > 0);
    let data: [u8; 4] = data.context("no such name yet")?.try_into()?;
    Ok(data.into())
}

async fn retry(limit: Duration, tell: Tell<'_>, check: impl AsyncFn() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let outcome = timeout(Duration::from_secs(5), check()).await;
        let Err(error) = outcome.context("no answer within 5 s").flatten() else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(error).context(format!("gave up after {limit:?}"));
        }
        tell(&format!("{error:#}"));
        sleep(PAUSE).await;
    }
}
