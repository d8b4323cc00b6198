//! Pods that nobody will ever finish: bound to a node that is gone, or deleted before they were scheduled.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, ResourceExt, api::DeleteParams};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    informer::{Informers, ObjectKey},
    objects::is_deleting,
    pods,
    queue::{is_not_found, unless_gone},
};

/// Upstream looks this often, and waits as long for a node that vanished to come back.
const PERIOD: Duration = Duration::from_secs(20);
const QUARANTINE: Duration = Duration::from_secs(40);

pub async fn start(client: Client, informers: Arc<Informers>, shutdown: CancellationToken) {
    informers.pods.wait_until_synced().await;
    informers.nodes.wait_until_synced().await;
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missing = HashMap::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(error) = collect(&client, &informers, &mut missing).await {
            tracing::warn!("pod garbage: {error:#}");
        }
    }
}

async fn collect(client: &Client, informers: &Informers, missing: &mut HashMap<String, Instant>) -> anyhow::Result<()> {
    let pods = informers.pods.all();
    let absent = |name: &str| informers.nodes.get(&ObjectKey::new("", name)).is_none();
    missing.retain(|name, _| absent(name));
    for pod in &pods {
        match pods::node(pod) {
            Some(node) if absent(node) => {
                let since = *missing.entry(node.to_owned()).or_insert_with(Instant::now);
                if since.elapsed() >= QUARANTINE && is_gone(client, node).await? {
                    remove(client, pod, Some("PodGC: node no longer exists")).await?;
                }
            }
            None if is_deleting(pod.as_ref()) => remove(client, pod, None).await?,
            _ => {}
        }
    }
    Ok(())
}

/// The view may be behind: ask before anything is removed.
async fn is_gone(client: &Client, node: &str) -> anyhow::Result<bool> {
    match Api::<Node>::all(client.clone()).get_metadata(node).await {
        Ok(_) => Ok(false),
        Err(error) if is_not_found(&error) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

async fn remove(client: &Client, pod: &Pod, failure: Option<&str>) -> anyhow::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    if let Some(message) = failure.filter(|_| !pods::is_terminal(pod)) {
        let patch = json!({"status": {"phase": "Failed", "message": message}});
        unless_gone(api.patch_status(&pod.name_any(), &Default::default(), &kube::api::Patch::Merge(&patch)).await)?;
    }
    unless_gone(api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await)?;
    Ok(())
}
