//! Each node its part of the pod CIDR, given once and kept: a node's pods keep their addresses.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use ipnetwork::{IpNetwork, Ipv4Network};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    Options,
    informer::{Informers, ObjectKey, wake_self},
    objects::is_deleting,
    queue::{Next, Outcome, Queue},
    recorder::{Kind, Recorder},
};

pub fn start(
    client: Client,
    informers: Arc<Informers>,
    options: Options,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> {
    let queue = Queue::new();
    informers.nodes.on_change(wake_self(queue.adder()));
    let recorder = Recorder::new(client.clone(), "cidrAllocator");
    // Given out in this process and perhaps not yet seen through the watch.
    let given = Arc::new(Mutex::new(HashSet::new()));
    async move {
        informers.nodes.wait_until_synced().await;
        let reconcile = move |key: ObjectKey| {
            let (client, informers, options) = (client.clone(), informers.clone(), options.clone());
            let (given, recorder) = (given.clone(), recorder.clone());
            async move { assign(&client, &informers, &options, &given, &recorder, key).await }
        };
        // One worker: two nodes never get the same part.
        queue.run("pod-cidr", 1, shutdown, reconcile).await;
    }
}

async fn assign(
    client: &Client,
    informers: &Informers,
    options: &Options,
    given: &Mutex<HashSet<IpNetwork>>,
    recorder: &Recorder,
    key: ObjectKey,
) -> Outcome {
    let Some(node) = informers.nodes.get(&key).filter(|node| cidr(node).is_none() && !is_deleting(node.as_ref()))
    else {
        forget_gone(informers, given);
        return Ok(Next::Wait);
    };
    let mut taken: HashSet<_> = informers.nodes.all().iter().filter_map(|node| cidr(node)).collect();
    taken.extend(given.lock().unwrap_or_else(PoisonError::into_inner).iter());
    let Some(free) = parts(options.pod_cidr, options.node_cidr_mask).find(|part| !taken.contains(part)) else {
        recorder.record(
            node.as_ref(),
            Kind::Warning,
            "CIDRNotAvailable",
            format!("Node {} status is now: CIDRNotAvailable", key.name),
        );
        anyhow::bail!("no /{} is left in {} for node {}", options.node_cidr_mask, options.pod_cidr, key.name);
    };
    given.lock().unwrap_or_else(PoisonError::into_inner).insert(free);
    let patch = json!({"spec": {"podCIDR": free, "podCIDRs": [free]}});
    let api: Api<Node> = Api::all(client.clone());
    let patched = api.patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
    if patched.is_err() {
        given.lock().unwrap_or_else(PoisonError::into_inner).remove(&free);
    }
    patched?;
    Ok(Next::Wait)
}

/// A part in the view is remembered by the view; one of a node that is gone is free again.
fn forget_gone(informers: &Informers, given: &Mutex<HashSet<IpNetwork>>) {
    let nodes = informers.nodes.all();
    if nodes.iter().all(|node| cidr(node).is_some()) {
        given.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn cidr(node: &Node) -> Option<IpNetwork> {
    node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()
}

/// The equal parts of a range, in order.
fn parts(range: IpNetwork, mask: u8) -> impl Iterator<Item = IpNetwork> {
    let IpAddr::V4(first) = range.network() else { return Parts::None };
    let count = 1u32.checked_shl(u32::from(mask.saturating_sub(range.prefix()))).unwrap_or(0);
    Parts::V4 { first: first.into(), mask, next: 0, count }
}

enum Parts {
    None,
    V4 { first: u32, mask: u8, next: u32, count: u32 },
}

impl Iterator for Parts {
    type Item = IpNetwork;

    fn next(&mut self) -> Option<IpNetwork> {
        let Self::V4 { first, mask, next, count } = self else { return None };
        if next >= count {
            return None;
        }
        let address = *first + (*next << (32 - u32::from(*mask)));
        *next += 1;
        Ipv4Network::new(address.into(), *mask).ok().map(IpNetwork::V4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_as_many_parts_as_fit() {
        let all: Vec<_> = parts("10.244.0.0/22".parse().unwrap(), 24).map(|part| part.to_string()).collect();
        assert_eq!(all, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
        assert_eq!(parts("10.244.0.0/16".parse().unwrap(), 24).count(), 256);
    }
}
