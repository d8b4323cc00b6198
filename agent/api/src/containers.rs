//! Finds the container that a request names in what the node knows of its pods.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::answer::Refusal;
use crate::node::Node;

/// The pod, if the node has it and, where a uid is named, this incarnation of it.
pub(crate) fn pod(node: &dyn Node, namespace: &str, name: &str, uid: Option<&str>) -> Result<Arc<Pod>, Refusal> {
    node.pod(namespace, name)
        .filter(|pod| uid.is_none_or(|uid| pod.metadata.uid.as_deref() == Some(uid)))
        .ok_or_else(|| Refusal::not_found("pod does not exist"))
}

/// The id of a container that runs now.
pub(crate) fn running(pod: &Pod, container: &str) -> Result<String, Refusal> {
    status(pod, container)
        .filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
        .and_then(|status| status.container_id.as_deref())
        .map(bare)
        .ok_or_else(|| Refusal::internal(format!("container not found (\"{container}\")")))
}

pub(crate) fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .find(|status| status.name == container)
}

pub(crate) fn is_declared(pod: &Pod, container: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let init = spec.init_containers.iter().flatten();
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|each| &each.name);
    spec.containers.iter().chain(init).map(|each| &each.name).chain(ephemeral).any(|name| name == container)
}

/// `containerd://abc` → `abc`.
pub(crate) fn bare(id: &str) -> String {
    id.split_once("://").map_or(id, |(_, id)| id).to_owned()
}
