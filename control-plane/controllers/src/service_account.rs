//! A `default` service account in every namespace.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio_util::sync::CancellationToken;

use crate::{
    informer::{Informers, ObjectKey, wake_self},
    objects::is_deleting,
    queue::{Next, Outcome, Queue, is_conflict},
};

const NAME: &str = "default";

pub fn start(client: Client, informers: Arc<Informers>, shutdown: CancellationToken) -> impl Future<Output = ()> {
    let queue = Queue::new();
    let add = || {
        let queue = queue.clone();
        move |key: ObjectKey| queue.add(if key.namespace.is_empty() { key.name } else { key.namespace })
    };
    informers.namespaces.on_change(wake_self(add()));
    informers.service_accounts.on_change(wake_self(add()));
    async move {
        informers.namespaces.wait_until_synced().await;
        informers.service_accounts.wait_until_synced().await;
        let reconcile = move |namespace: String| {
            let (client, informers) = (client.clone(), informers.clone());
            async move { ensure(&client, &informers, &namespace).await }
        };
        queue.run("service-account", 1, shutdown, reconcile).await;
    }
}

async fn ensure(client: &Client, informers: &Informers, namespace: &str) -> Outcome {
    let alive = |namespace: &Arc<Namespace>| !is_deleting(namespace.as_ref());
    let wanted = informers.namespaces.get(&ObjectKey::new("", namespace)).as_ref().is_some_and(alive);
    if !wanted || informers.service_accounts.get(&ObjectKey::new(namespace, NAME)).is_some() {
        return Ok(Next::Wait);
    }
    let account = ServiceAccount {
        metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
        ..ServiceAccount::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), &account).await {
        Err(error) if is_conflict(&error) => Ok(Next::Wait),
        created => created.map(|_| Next::Wait).map_err(Into::into),
    }
}
