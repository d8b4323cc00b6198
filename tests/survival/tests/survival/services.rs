//! Services and their endpoints change by the thousand, through the API.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use leme_tests_cluster::Cluster;
use leme_tests_survival::scale;
use serde_json::{Value, json};

use crate::survive;

/// Changes of one Service's life, and how many live at a time.
const CHANGES: usize = 50;
const TOGETHER: usize = 20;

pub(crate) fn services_that_change_fail_no_request_of_others(cluster: &Cluster) -> Result<()> {
    survive(cluster, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = client(cluster).await?;
            let lives = (0..scale(10_000, 2_000) / CHANGES).map(|number| live(client.clone(), number));
            stream::iter(lives).buffer_unordered(TOGETHER).try_collect::<()>().await
        })
    })
}

async fn client(cluster: &Cluster) -> Result<kube::Client> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.read_timeout = Some(Duration::from_secs(30));
    Ok(kube::Client::try_from(config)?)
}

/// One Service from its creation to its deletion, and the Service that the traffic asks changes now and then, too: a port
/// more, a port less.
async fn live(client: kube::Client, number: usize) -> Result<()> {
    let services = Api::<Service>::default_namespaced(client.clone());
    let slices = Api::<EndpointSlice>::default_namespaced(client);
    let name = format!("changing-{number}");
    let (create, patch) = (PostParams::default(), PatchParams::default());
    services.create(&create, &serde_json::from_value(service(&name))?).await.context("create a Service")?;
    slices.create(&create, &serde_json::from_value(slice(&name))?).await.context("create endpoints")?;
    for change in 0..CHANGES - 6 {
        if change % 4 == 3 {
            let ports = Patch::Merge(json!({ "spec": { "ports": ports(change) } }));
            services.patch(&name, &patch, &ports).await.context("change a Service")?;
        } else {
            let endpoints = Patch::Merge(json!({ "endpoints": endpoints(number + change) }));
            slices.patch(&name, &patch, &endpoints).await.context("change endpoints")?;
        }
    }
    for port in [json!({ "name": "more", "port": 9000 }), json!({ "$patch": "delete", "port": 9000 })] {
        let ports = Patch::Strategic(json!({ "spec": { "ports": [port] } }));
        services.patch("steady", &patch, &ports).await.context("change the Service that is asked")?;
    }
    slices.delete(&name, &DeleteParams::default()).await.context("delete endpoints")?;
    services.delete(&name, &DeleteParams::default()).await.context("delete a Service")?;
    Ok(())
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "type": "NodePort", "ports": ports(0) },
    })
}

fn ports(change: usize) -> Value {
    let port = |index: usize| json!({ "name": format!("p{index}"), "port": 7000 + index, "targetPort": 80 });
    (0..1 + change % 3).map(port).collect()
}

fn slice(name: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
        "ports": [{ "name": "p0", "port": 80 }, { "name": "p1", "port": 81 }],
        "endpoints": endpoints(0),
    })
}

/// Nobody is there: nobody asks these Services.
fn endpoints(change: usize) -> Value {
    let endpoint = |index: usize| {
        json!({
            "addresses": [format!("10.244.{}.{}", 200 + change % 20, 2 + index)],
            "conditions": { "ready": index % 5 != 4 },
        })
    };
    (0..change % 11).map(endpoint).collect()
}
