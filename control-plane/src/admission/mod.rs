//! Admission: what is added to or refused of a write after decoding and before validation.
//!
//! One file per upstream plugin; called by the writers in `api` with the object, never with a request.

mod certificates;
mod namespace_lifecycle;
mod node_restriction;
mod pod_defaults;
mod service_account;

use serde_json::Value;

use crate::{
    api::{App, status::Outcome},
    auth::User,
    resources::Resource,
};

pub async fn create(app: &App, user: &User, resource: &Resource, scope: &str, object: &mut Value) -> Outcome<()> {
    namespace_lifecycle::create(app, resource, scope, object).await?;
    node_restriction::create(app, user, resource, object).await?;
    if resource.kind == certificates::KIND {
        certificates::create(resource, object)?;
    }
    if resource.group.is_empty() && resource.plural == "pods" {
        service_account::create(app, scope, object).await?;
        pod_defaults::create(object)?;
    }
    Ok(())
}

pub async fn update(
    app: &App,
    user: &User,
    resource: &Resource,
    subresource: &str,
    object: &mut Value,
    old: &Value,
) -> Outcome<()> {
    node_restriction::update(user, resource, subresource, object, old)?;
    if resource.kind == certificates::KIND {
        certificates::update(app, user, resource, subresource, object, old).await?;
    }
    if resource.group.is_empty() && resource.plural == "pods" && subresource.is_empty() {
        pod_defaults::update(object, old);
    }
    Ok(())
}

pub fn delete(user: &User, resource: &Resource, old: &Value) -> Outcome<()> {
    namespace_lifecycle::delete(resource, old)?;
    node_restriction::delete(user, resource, old)
}
