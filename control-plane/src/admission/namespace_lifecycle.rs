//! NamespaceLifecycle: nothing is created in a namespace that is absent or going; the system's namespaces stay.

use serde_json::{Value, json};

use crate::{
    api::{
        App,
        object::text,
        status::{Failure, Outcome},
    },
    resources::Resource,
};

const STAY: &[&str] = &["default", "kube-system", "kube-public"];

pub async fn create(app: &App, resource: &Resource, scope: &str, object: &Value) -> Outcome<()> {
    if !resource.namespaced {
        return Ok(());
    }
    let namespaces = app.registry.builtin("namespaces");
    let namespace = match namespaces.peek("", scope) {
        Some(item) => item,
        // The cache may trail another server's write.
        None => namespaces.get("", scope).await?.ok_or_else(|| Failure::not_found(namespaces.resource, scope))?,
    };
    if !namespace.is_terminating() {
        return Ok(());
    }
    let name = text(object, &["metadata", "name"]);
    let why = format!("unable to create new content in namespace {scope} because it is being terminated");
    let mut failure = Failure::forbidden(resource.group, resource.plural, name, why);
    if let Some(details) = &mut failure.details {
        let message = format!("namespace {scope} is being terminated");
        details["causes"] =
            json!([{"reason": "NamespaceTerminating", "message": message, "field": "metadata.namespace"}]);
    }
    Err(failure)
}

pub fn delete(resource: &Resource, old: &Value) -> Outcome<()> {
    let name = text(old, &["metadata", "name"]);
    if resource.group.is_empty() && resource.plural == "namespaces" && STAY.contains(&name) {
        return Err(Failure::forbidden("", "namespaces", name, "this namespace may not be deleted"));
    }
    Ok(())
}
