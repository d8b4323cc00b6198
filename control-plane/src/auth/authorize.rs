//! May they: `system:masters`, then the node rules, then RBAC; refusals in upstream's words.

use std::sync::Arc;

use super::{MASTERS, attributes::Attributes, node, rbac::Rbac};
use crate::api::{
    registry::Registry,
    status::{Failure, Outcome},
};

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
