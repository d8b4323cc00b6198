//! What an agent (`system:node:<name>` in `system:nodes`) may do: look after its own node and the pods bound to it.
//!
//! Secrets, configmaps and tokens only as far as a pod on the node uses them. What an agent may write of its own node,
//! lease and pods is `admission::node_restriction`'s.

use serde_json::Value;

use super::attributes::Attributes;
use crate::api::{object::text, registry::Registry, status::Outcome};

pub enum Opinion {
    Allow,
    /// Not by these rules; why, for the refusal.
    None(String),
}

const READ: &[&str] = &["get", "list", "watch"];

/// Group, resource with subresource, verbs: what every agent may do to every such object; admission narrows the writes.
const RULES: &[(&str, &str, &[&str])] = &[
    ("", "nodes", &["create", "get", "list", "watch", "update", "patch"]),
    ("", "nodes/status", &["update", "patch"]),
    ("", "services", READ),
    ("", "endpoints", READ),
    ("", "namespaces", READ),
    ("", "pods", &["get", "list", "watch", "create", "delete"]),
    ("", "pods/status", &["get", "update", "patch"]),
    ("", "pods/eviction", &["create"]),
    ("", "events", &["create", "update", "patch"]),
    ("events.k8s.io", "events", &["create", "update", "patch"]),
    ("discovery.k8s.io", "endpointslices", READ),
    ("networking.k8s.io", "networkpolicies", READ),
    ("networking.k8s.io", "servicecidrs", READ),
    ("node.k8s.io", "runtimeclasses", READ),
    ("storage.k8s.io", "csidrivers", READ),
    ("certificates.k8s.io", "certificatesigningrequests", &["create", "get", "list", "watch"]),
    ("coordination.k8s.io", "leases", &["get", "create", "update", "patch", "delete"]),
    ("authentication.k8s.io", "tokenreviews", &["create"]),
    ("authorization.k8s.io", "subjectaccessreviews", &["create"]),
    ("authorization.k8s.io", "localsubjectaccessreviews", &["create"]),
];

pub async fn decide(registry: &Registry, node: &str, a: &Attributes<'_>) -> Outcome<Opinion> {
    if !a.is_resource() {
        return Ok(Opinion::None(String::new()));
    }
    match (a.group, a.plural, a.subresource) {
        ("", "secrets" | "configmaps", "") => return used(registry, node, a).await,
        ("", "serviceaccounts", "token") | ("", "serviceaccounts", "") => return used(registry, node, a).await,
        ("coordination.k8s.io", "leases", "") if a.namespace != "kube-node-lease" => {
            let why = format!("can only access leases in the \"kube-node-lease\" system namespace for node '{node}'");
            return Ok(Opinion::None(why));
        }
        ("coordination.k8s.io", "leases", "") if a.verb != "create" && a.name != node => {
            return Ok(Opinion::None("can only access node lease with the same name as the requesting node".into()));
        }
        _ => {}
    }
    let resource = match a.subresource {
        "" => a.plural.to_owned(),
        subresource => format!("{}/{subresource}", a.plural),
    };
    let rule = RULES.iter().find(|(group, plural, _)| *group == a.group && *plural == resource);
    Ok(match rule {
        Some((_, _, verbs)) if verbs.contains(&a.verb) => Opinion::Allow,
        _ => Opinion::None(String::new()),
    })
}

/// Secrets, configmaps and service accounts: one by name (a watch of one name included), and only if a pod on the node
/// refers to it.
async fn used(registry: &Registry, node: &str, a: &Attributes<'_>) -> Outcome<Opinion> {
    let verbs: &[&str] = match (a.plural, a.subresource) {
        ("serviceaccounts", "token") => &["create"],
        ("serviceaccounts", _) => &["get"],
        _ => READ,
    };
    if !verbs.contains(&a.verb) {
        return Ok(Opinion::None("can only read resources of this type".into()));
    }
    if a.name.is_empty() || a.namespace.is_empty() {
        return Ok(Opinion::None("No Object name found".into()));
    }
    let pods = registry.builtin("pods").cache.snapshot();
    let prefix = registry.builtin("pods").prefix(a.namespace);
    let start: leme_store::Key = prefix.as_str().into();
    let inside = pods.objects.range(start..).take_while(|(key, _)| key.starts_with(&prefix));
    let found = inside
        .map(|(_, item)| item.value())
        .any(|pod| text(&pod, &["spec", "nodeName"]) == node && refers(&pod, a.plural, a.name));
    Ok(match found {
        true => Opinion::Allow,
        false => Opinion::None(format!("no relationship found between node '{node}' and this object")),
    })
}

/// Whether a pod uses this secret, configmap or service account.
pub fn refers(pod: &Value, plural: &str, name: &str) -> bool {
    refers_to(pod, plural, |found| found == name)
}

/// Whether a pod uses any object of the kind that `is` takes by its name.
pub fn refers_to(pod: &Value, plural: &str, is: impl Fn(&str) -> bool) -> bool {
    let spec = &pod["spec"];
    let named = |value: &Value, path: &[&str]| Some(text(value, path)).filter(|name| !name.is_empty()).is_some_and(&is);
    if plural == "serviceaccounts" {
        return named(spec, &["serviceAccountName"]);
    }
    let (volume, key, env, from) = match plural {
        "secrets" => ("secret", "secretName", "secretKeyRef", "secretRef"),
        _ => ("configMap", "name", "configMapKeyRef", "configMapRef"),
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let in_volume = |v: &Value| {
        named(v, &[volume, key])
            || list(&v["projected"]["sources"]).iter().any(|source| named(source, &[volume, "name"]))
    };
    let in_container = |c: &Value| {
        list(&c["env"]).iter().any(|e| named(e, &["valueFrom", env, "name"]))
            || list(&c["envFrom"]).iter().any(|e| named(e, &[from, "name"]))
    };
    let pull = plural == "secrets" && list(&spec["imagePullSecrets"]).iter().any(|s| named(s, &["name"]));
    let containers = ["initContainers", "containers", "ephemeralContainers"];
    pull || list(&spec["volumes"]).iter().any(in_volume)
        || containers.iter().any(|key| list(&spec[*key]).iter().any(in_container))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_refers_to_what_its_volumes_env_and_account_name() {
        let pod = json!({"spec": {
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"secret": {"secretName": "vol"}}, {"projected": {"sources": [{"configMap": {"name": "ca"}}]}}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "cm"}}]}],
        }});
        for (plural, name) in [
            ("secrets", "vol"),
            ("secrets", "env"),
            ("secrets", "pull"),
            ("configmaps", "ca"),
            ("configmaps", "cm"),
            ("serviceaccounts", "sa"),
        ] {
            assert!(refers(&pod, plural, name), "{plural} {name}");
            assert!(!refers(&pod, plural, "other"));
        }
    }
}
