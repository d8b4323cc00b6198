//! May they: `system:masters`, then the node rules, then RBAC; refusals in upstream's words.

use std::sync::Arc;

use http::Method;

use super::{MASTERS, User, node, rbac::Rbac};
use crate::api::{
    path::Target,
    registry::Registry,
    status::{Failure, Outcome},
};

/// One question.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a User,
    pub verb: &'a str,
    pub group: &'a str,
    pub namespace: &'a str,
    pub plural: &'a str,
    pub subresource: &'a str,
    pub name: &'a str,
    /// Set, and nothing else but the verb, for a question about a path.
    pub path: &'a str,
}

impl<'a> Attributes<'a> {
    pub fn resource(user: &'a User, target: &'a Target) -> Self {
        Self {
            user,
            verb: target.verb,
            group: &target.group,
            namespace: &target.namespace,
            plural: &target.plural,
            subresource: &target.subresource,
            name: &target.name,
            path: "",
        }
    }

    pub fn path(user: &'a User, method: &Method, path: &'a str) -> Self {
        let verb = match *method {
            Method::POST => "post",
            Method::PUT => "put",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            Method::HEAD => "head",
            _ => "get",
        };
        Self { user, verb, group: "", namespace: "", plural: "", subresource: "", name: "", path }
    }

    pub fn is_resource(&self) -> bool {
        self.path.is_empty()
    }
}

/// An answer, with a reason where there is one to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
}

pub struct Authorizer {
    pub rbac: Rbac,
    registry: Arc<Registry>,
}

impl Authorizer {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { rbac: Rbac::new(registry.clone()), registry }
    }

    pub async fn decide(&self, a: &Attributes<'_>) -> Outcome<Decision> {
        if a.user.in_group(MASTERS) {
            return Ok(Decision { allowed: true, reason: String::new() });
        }
        let mut reason = String::new();
        if let Some(name) = a.user.node() {
            match node::decide(&self.registry, name, a).await? {
                node::Opinion::Allow => return Ok(Decision { allowed: true, reason }),
                node::Opinion::None(why) => reason = why,
            }
        }
        Ok(match self.rbac.allows(a) {
            Some(reason) => Decision { allowed: true, reason },
            None => Decision { allowed: false, reason },
        })
    }

    /// # Errors
    /// 403, if the answer is no.
    pub async fn require(&self, a: &Attributes<'_>) -> Outcome<()> {
        let decision = self.decide(a).await?;
        if decision.allowed { Ok(()) } else { Err(refusal(a, &decision.reason)) }
    }
}

/// Upstream's sentence.
pub fn refusal(a: &Attributes<'_>, reason: &str) -> Failure {
    let user = &a.user.name;
    let suffix = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if !a.is_resource() {
        let message = format!("forbidden: User \"{user}\" cannot {} path \"{}\"{suffix}", a.verb, a.path);
        return Failure::new(403, "Forbidden", message, Some(serde_json::json!({})));
    }
    let resource = match a.subresource {
        "" => a.plural.to_owned(),
        subresource => format!("{}/{subresource}", a.plural),
    };
    let scope = match a.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let why = format!(
        "User \"{user}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}{suffix}",
        a.verb, a.group
    );
    Failure::forbidden(a.group, a.plural, a.name, why)
}
