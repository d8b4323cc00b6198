//! What an agent may write: its own node, its lease, the status of its pods, and no way to reach further.
//!
//! Upstream's NodeRestriction. The authorizer lets an agent read what its pods use; so an agent must not bring about pods
//! that use more, nor draw pods to itself by labels and taints.

use serde_json::Value;

use crate::{
    api::{
        App,
        object::text,
        status::{Failure, Outcome},
    },
    auth::{User, node::refers_to},
    resources::{Resource, node::may_label_itself},
};

const MIRROR: &str = "kubernetes.io/config.mirror";

/// One write of an agent.
struct Write<'a> {
    node: &'a str,
    resource: &'a Resource,
    name: &'a str,
}

impl Write<'_> {
    fn refuse(&self, why: String) -> Outcome<()> {
        Err(Failure::forbidden(self.resource.group, self.resource.plural, self.name, why))
    }
}

fn write<'a>(user: &'a User, resource: &'a Resource, object: &'a Value) -> Option<Write<'a>> {
    Some(Write { node: user.node()?, resource, name: text(object, &["metadata", "name"]) })
}

pub async fn create(app: &App, user: &User, resource: &Resource, object: &Value) -> Outcome<()> {
    let Some(write) = write(user, resource, object) else { return Ok(()) };
    match (resource.group, resource.plural) {
        ("", "nodes") => write.node_itself(object, &Value::Null),
        ("", "pods") => write.mirror_pod(app, object).await,
        ("coordination.k8s.io", "leases") => write.lease(),
        _ => Ok(()),
    }
}

pub fn update(user: &User, resource: &Resource, subresource: &str, object: &Value, old: &Value) -> Outcome<()> {
    let Some(write) = write(user, resource, old) else { return Ok(()) };
    match (resource.group, resource.plural) {
        // The spec is not written through the status.
        ("", "nodes") if subresource == "status" => write.labels(object, old),
        ("", "nodes") => write.node_itself(object, old),
        ("", "pods") if subresource == "status" => write.pod_status(object, old),
        ("", "pods") => write.refuse(format!("node {:?} can only create and delete mirror pods", write.node)),
        ("coordination.k8s.io", "leases") => write.lease(),
        _ => Ok(()),
    }
}

/// Evictions, too.
pub fn delete(user: &User, resource: &Resource, old: &Value) -> Outcome<()> {
    let Some(write) = write(user, resource, old) else { return Ok(()) };
    match (resource.group, resource.plural) {
        ("", "nodes") => write.own_name(),
        ("", "pods") if text(old, &["spec", "nodeName"]) != write.node => {
            write.refuse(format!("node {:?} can only delete pods with spec.nodeName set to itself", write.node))
        }
        ("coordination.k8s.io", "leases") => write.lease(),
        _ => Ok(()),
    }
}

impl Write<'_> {
    fn own_name(&self) -> Outcome<()> {
        if self.name == self.node {
            return Ok(());
        }
        self.refuse(format!("node {:?} is not allowed to modify node {:?}", self.node, self.name))
    }

    /// `old` is null for a new one.
    fn node_itself(&self, new: &Value, old: &Value) -> Outcome<()> {
        self.labels(new, old)?;
        let node = self.node;
        if !new["spec"]["configSource"].is_null() && new["spec"]["configSource"] != old["spec"]["configSource"] {
            return self.refuse(format!("node {node:?} is not allowed to set configSource"));
        }
        if !old.is_null() && list(&new["spec"]["taints"]) != list(&old["spec"]["taints"]) {
            return self.refuse(format!("node {node:?} is not allowed to modify taints"));
        }
        Ok(())
    }

    fn labels(&self, new: &Value, old: &Value) -> Outcome<()> {
        self.own_name()?;
        let node = self.node;
        let labels = forbidden_labels(new, old);
        match (labels.is_empty(), old.is_null()) {
            (true, _) => Ok(()),
            (_, true) => {
                self.refuse(format!("node {node:?} is not allowed to set the following labels: {}", labels.join(", ")))
            }
            _ => self.refuse(format!("is not allowed to modify labels: {}", labels.join(", "))),
        }
    }

    async fn mirror_pod(&self, app: &App, pod: &Value) -> Outcome<()> {
        let node = self.node;
        if pod["metadata"]["annotations"].get(MIRROR).is_none() {
            let why = format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods");
            return self.refuse(why);
        }
        if text(pod, &["spec", "nodeName"]) != node {
            return self.refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
        }
        self.owner(app, pod).await?;
        let kinds = [("serviceaccounts", "a service account"), ("secrets", "secrets"), ("configmaps", "configmaps")];
        if let Some((_, what)) = kinds.iter().find(|(plural, _)| refers_to(pod, plural, |_| true)) {
            return self.refuse(format!("node {node:?} can not create pods that reference {what}"));
        }
        let volumes = list(&pod["spec"]["volumes"]);
        let source = |volume: &Value, key: &str| {
            !volume[key].is_null() || list(&volume["projected"]["sources"]).iter().any(|source| !source[key].is_null())
        };
        let beyond = [
            ("persistentVolumeClaim", "persistentvolumeclaims"),
            ("clusterTrustBundle", "clustertrustbundles"),
            ("serviceAccountToken", "a service account"),
        ];
        match beyond.iter().find(|(key, _)| volumes.iter().any(|volume| source(volume, key))) {
            Some((_, what)) => self.refuse(format!("node {node:?} can not create pods that reference {what}")),
            None => Ok(()),
        }
    }

    /// A mirror pod goes with its node.
    async fn owner(&self, app: &App, pod: &Value) -> Outcome<()> {
        let node = self.node;
        let [owner] = list(&pod["metadata"]["ownerReferences"]) else {
            return self
                .refuse(format!("node {node:?} can only create pods with a single owner reference set to itself"));
        };
        let itself = [("apiVersion", "v1"), ("kind", "Node"), ("name", node)];
        if itself.iter().any(|(key, value)| text(owner, &[key]) != *value) {
            return self.refuse(format!("node {node:?} can only create pods with an owner reference set to itself"));
        }
        if owner["controller"] != true {
            let why = format!("node {node:?} can only create pods with a controller owner reference set to itself");
            return self.refuse(why);
        }
        if owner["blockOwnerDeletion"] == true {
            return self.refuse(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
        }
        let nodes = app.registry.builtin("nodes");
        let own = nodes.get("", node).await?.ok_or_else(|| Failure::not_found(nodes.resource, node))?.value();
        let (said, uid) = (text(owner, &["uid"]), text(&own, &["metadata", "uid"]));
        if said == uid { Ok(()) } else { self.refuse(format!("node {node} UID mismatch: expected {said} got {uid}")) }
    }

    fn pod_status(&self, new: &Value, old: &Value) -> Outcome<()> {
        let node = self.node;
        if text(old, &["spec", "nodeName"]) != node {
            let why = format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself");
            return self.refuse(why);
        }
        let labels = |pod: &Value| pod["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        if labels(new) != labels(old) {
            return self.refuse(format!("node {node:?} cannot update labels through pod status"));
        }
        if list(&new["status"]["resourceClaimStatuses"]) != list(&old["status"]["resourceClaimStatuses"]) {
            return self.refuse(format!("node {node:?} cannot update resource claim statuses"));
        }
        Ok(())
    }

    fn lease(&self) -> Outcome<()> {
        if self.name == self.node {
            return Ok(());
        }
        self.refuse("can only access node lease with the same name as the requesting node".into())
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Labels that differ and are not the agent's to set.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let labels = |node: &Value| node["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let (new, old) = (labels(new), labels(old));
    let mut keys: Vec<String> =
        new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key)).cloned().collect();
    keys.retain(|key| !may_label_itself(key));
    keys.sort();
    keys.dedup();
    keys
}
