//! The node's heartbeat: a lease in `kube-node-lease`, renewed every ten seconds whatever else the node does.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;
use tracing::warn;

const NAMESPACE: &str = "kube-node-lease";
const DURATION: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);

/// Renews until `shutdown`; a silent API is asked again every second.
pub async fn renew(client: Client, node: String, shutdown: CancellationToken) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let mut failing = false;
    loop {
        let outcome = tokio::time::timeout(RENEW, renew_once(&leases, &client, &node)).await;
        let error = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the API does not answer".to_owned()),
        };
        if let Some(error) = error.as_ref().filter(|_| !failing) {
            warn!(error, "the node's lease is not renewed");
        }
        failing = error.is_some();
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(if failing { RETRY } else { RENEW }) => {}
        }
    }
}

async fn renew_once(leases: &Api<Lease>, client: &Client, node: &str) -> Result<(), kube::Error> {
    let now = MicroTime(Timestamp::now());
    let patch =
        serde_json::json!({"spec": {"holderIdentity": node, "leaseDurationSeconds": DURATION, "renewTime": now}});
    match leases.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        outcome => return outcome.map(drop),
    }
    // The lease goes with its node.
    let owner = Api::<Node>::all(client.clone()).get_opt(node).await?.and_then(|node| node.metadata.uid);
    let owner = owner.map(|uid| OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.to_owned(),
        uid,
        ..Default::default()
    });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(NAMESPACE.into()),
            owner_references: owner.map(|owner| vec![owner]),
            ..Default::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(DURATION),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    leases.create(&PostParams::default(), &lease).await.map(drop)
}
