//! Nobody grants what they do not hold: the check on writes of roles and bindings.

use serde_json::Value;

use super::{MASTERS, User, attributes::Attributes, rbac::Rule};
use crate::{
    api::{
        App,
        object::text,
        status::{Failure, Outcome},
    },
    resources::Resource,
};

const GROUP: &str = "rbac.authorization.k8s.io";

/// # Errors
/// 403, if the object grants more than the writer holds and the writer may neither `escalate` nor `bind`.
pub async fn check(app: &App, user: &User, resource: &Resource, new: &Value, old: Option<&Value>) -> Outcome<()> {
    if resource.group != GROUP || user.in_group(MASTERS) {
        return Ok(());
    }
    let namespace = text(new, &["metadata", "namespace"]);
    let name = text(new, &["metadata", "name"]);
    let rules = match resource.kind {
        "Role" | "ClusterRole" if old.is_some_and(|old| old["rules"] == new["rules"]) => return Ok(()),
        "Role" | "ClusterRole" => {
            if may(app, user, "escalate", resource.plural, namespace, name).await? {
                return Ok(());
            }
            serde_json::from_value::<Vec<Rule>>(new["rules"].clone()).unwrap_or_default()
        }
        _ if old.is_some_and(|old| old["subjects"] == new["subjects"]) => return Ok(()),
        _ => {
            let role = text(new, &["roleRef", "name"]);
            let (plural, home) = match text(new, &["roleRef", "kind"]) {
                "Role" => ("roles", namespace),
                _ => ("clusterroles", ""),
            };
            if may(app, user, "bind", plural, namespace, role).await? {
                return Ok(());
            }
            let rules = app.authorizer.rbac.role(home, role);
            rules.ok_or_else(|| missing_role(resource, name, role))?.to_vec()
        }
    };
    let held = app.authorizer.rbac.rules(user, namespace);
    let missing: Vec<&Rule> = rules.iter().filter(|rule| !held.iter().any(|mine| mine.covers(rule))).collect();
    if missing.is_empty() { Ok(()) } else { Err(escalates(resource, name, user, &missing)) }
}

async fn may(app: &App, user: &User, verb: &str, plural: &str, namespace: &str, name: &str) -> Outcome<bool> {
    let question = Attributes { user, verb, group: GROUP, namespace, plural, subresource: "", name, path: "" };
    Ok(app.authorizer.decide(&question).await?.allowed)
}

fn missing_role(resource: &Resource, name: &str, role: &str) -> Failure {
    Failure::forbidden(resource.group, resource.plural, name, format!("role \"{role}\" not found"))
}

fn escalates(resource: &Resource, name: &str, user: &User, missing: &[&Rule]) -> Failure {
    let list = |label: &str, items: &[String]| match items {
        [] => None,
        items => Some(format!("{label}:[{}]", items.iter().map(|i| format!("{i:?}")).collect::<Vec<_>>().join(" "))),
    };
    let line = |rule: &&Rule| {
        let parts = [
            list("APIGroups", &rule.api_groups),
            list("Resources", &rule.resources),
            list("ResourceNames", &rule.resource_names),
            list("NonResourceURLs", &rule.paths),
            list("Verbs", &rule.verbs),
        ];
        format!("{{{}}}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    };
    let groups = user.groups.iter().map(|g| format!("{g:?}")).collect::<Vec<_>>().join(" ");
    let why = format!(
        "user {:?} (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        missing.iter().map(line).collect::<Vec<_>>().join("\n")
    );
    Failure::forbidden(resource.group, resource.plural, name, why)
}
