//! The cluster under measurement: a client, and small pods pinned to nodes.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;

/// Image of every pod here: on the nodes anyway, starts at once, ends at once.
pub(crate) const IMAGE: &str = "registry.k8s.io/pause:3.10";
/// On every object made here.
pub(crate) const LABEL: &str = "bench=leme";

/// Which cluster.
#[derive(Args)]
pub(crate) struct Cluster {
    #[arg(long)]
    kubeconfig: PathBuf,
}

impl Cluster {
    pub(crate) async fn client(&self) -> Result<Client> {
        let path = &self.kubeconfig;
        let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }
}

/// A pod as a user would write it; the scheduler places it on the one node its selector leaves.
pub(crate) fn pod(name: &str, node: &str) -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "bench": "leme", "name": name } },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "containers": [{ "name": "pause", "image": IMAGE, "imagePullPolicy": "IfNotPresent" }],
        },
    }))?)
}

pub(crate) fn is_running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// Waits until a pod runs and says where it is.
pub(crate) async fn running(pods: &Api<Pod>, name: &str) -> Result<Pod> {
    let placed = |pod: Option<&Pod>| pod.is_some_and(|pod| is_running(pod) && address(pod).is_some());
    let wait = kube::runtime::wait::await_condition(pods.clone(), name, placed);
    let pod = tokio::time::timeout(std::time::Duration::from_secs(60), wait).await;
    pod.with_context(|| format!("pod {name} does not run"))??.context("the pod is gone")
}

pub(crate) fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref()
}
