//! `kube-root-ca.crt` in every namespace: how a pod knows the API server.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio_util::sync::CancellationToken;

use crate::{
    informer::{Informers, ObjectKey, ROOT_CA, wake_self},
    objects::is_deleting,
    queue::{Next, Outcome, Queue, is_conflict},
};

const KEY: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

pub fn start(
    client: Client,
    informers: Arc<Informers>,
    certificate: String,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> {
    let queue = Queue::new();
    let add = || {
        let queue = queue.clone();
        move |key: ObjectKey| queue.add(if key.namespace.is_empty() { key.name } else { key.namespace })
    };
    informers.namespaces.on_change(wake_self(add()));
    informers.root_ca_configmaps.on_change(wake_self(add()));
    async move {
        informers.namespaces.wait_until_synced().await;
        informers.root_ca_configmaps.wait_until_synced().await;
        let certificate = Arc::new(certificate);
        let reconcile = move |namespace: String| {
            let (client, informers, certificate) = (client.clone(), informers.clone(), certificate.clone());
            async move { publish(&client, &informers, &namespace, &certificate).await }
        };
        queue.run("root-ca", 1, shutdown, reconcile).await;
    }
}

async fn publish(client: &Client, informers: &Informers, namespace: &str, certificate: &str) -> Outcome {
    let alive = |namespace: &Arc<Namespace>| !is_deleting(namespace.as_ref());
    if !informers.namespaces.get(&ObjectKey::new("", namespace)).as_ref().is_some_and(alive) {
        return Ok(Next::Wait);
    }
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let data = BTreeMap::from([(KEY.to_owned(), certificate.to_owned())]);
    match informers.root_ca_configmaps.get(&ObjectKey::new(namespace, ROOT_CA)) {
        Some(current) if current.data.as_ref() == Some(&data) => {}
        Some(current) => {
            let updated = ConfigMap { data: Some(data), ..ConfigMap::clone(&current) };
            api.replace(ROOT_CA, &PostParams::default(), &updated).await?;
        }
        None => match api.create(&PostParams::default(), &config_map(data)).await {
            Err(error) if is_conflict(&error) => {}
            created => drop(created?),
        },
    }
    Ok(Next::Wait)
}

fn config_map(data: BTreeMap<String, String>) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(ROOT_CA.into()),
            annotations: Some(BTreeMap::from([(DESCRIPTION.into(), TEXT.into())])),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..ConfigMap::default()
    }
}
