//! Namespaces that are going: everything in them goes first, whatever its kind, then the `kubernetes` finalizer.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use futures::future::join_all;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, PartialObjectMeta},
    core::Request,
    discovery::{ApiResource, Discovery, Scope, verbs},
};
use tokio_util::sync::CancellationToken;

use crate::{
    informer::{Informers, ObjectKey, wake_self},
    objects::is_deleting,
    queue::{Next, Outcome, Queue, unless_gone},
};

/// Content with a grace period or finalizers is looked at again this often.
const RECHECK: Duration = Duration::from_millis(500);
const FINALIZER: &str = "kubernetes";

pub fn start(client: Client, informers: Arc<Informers>, shutdown: CancellationToken) -> impl Future<Output = ()> {
    let queue = Queue::new();
    informers.namespaces.on_change(wake_self(queue.adder()));
    async move {
        informers.namespaces.wait_until_synced().await;
        let reconcile = move |key: ObjectKey| {
            let (client, informers) = (client.clone(), informers.clone());
            async move {
                match informers.namespaces.get(&key).filter(|namespace| is_deleting(namespace.as_ref())) {
                    Some(namespace) => finalize(&client, &namespace).await,
                    None => Ok(Next::Wait),
                }
            }
        };
        queue.run("namespace", 4, shutdown, reconcile).await;
    }
}

async fn finalize(client: &Client, namespace: &Namespace) -> Outcome {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(Next::Wait);
    }
    let name = namespace.name_any();
    let kinds = deletable(client).await?;
    let left: usize = join_all(kinds.iter().map(|kind| empty(client, kind, &name)))
        .await
        .into_iter()
        .sum::<anyhow::Result<usize>>()?;
    if left > 0 {
        return Ok(Next::After(RECHECK));
    }
    let mut done = namespace.clone();
    done.metadata.resource_version = None;
    done.spec.get_or_insert_default().finalizers = Some(finalizers.into_iter().filter(|f| f != FINALIZER).collect());
    let request = Request::new("/api/v1/namespaces").replace_subresource(
        "finalize",
        &name,
        &Default::default(),
        serde_json::to_vec(&done)?,
    )?;
    unless_gone(client.request::<Namespace>(request).await)?;
    Ok(Next::Wait)
}

/// The namespaced kinds whose objects can be listed and deleted, as the API says now.
async fn deletable(client: &Client) -> anyhow::Result<Vec<ApiResource>> {
    let discovery = Discovery::new(client.clone()).run_aggregated().await.context("discover the API's kinds")?;
    let kinds = discovery.groups().flat_map(|group| group.recommended_resources());
    let wanted = kinds.filter(|(_, capabilities)| {
        capabilities.scope == Scope::Namespaced
            && capabilities.supports_operation(verbs::DELETE)
            && capabilities.supports_operation(verbs::LIST)
    });
    Ok(wanted.map(|(resource, _)| resource).collect())
}

/// Deletes what is there of one kind; how many objects are still left.
async fn empty(client: &Client, kind: &ApiResource, namespace: &str) -> anyhow::Result<usize> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, kind);
    let left = list(&api).await?;
    if left.iter().all(is_deleting) {
        return Ok(left.len());
    }
    api.delete_collection(&DeleteParams::background(), &ListParams::default())
        .await
        .with_context(|| format!("delete {} in namespace {namespace}", kind.plural))?;
    Ok(list(&api).await?.len())
}

async fn list(api: &Api<DynamicObject>) -> kube::Result<Vec<PartialObjectMeta<DynamicObject>>> {
    Ok(api.list_metadata(&ListParams::default()).await?.items)
}
