//! Role-based access: who may do what, from the roles and bindings in the caches.
//!
//! An [`Index`] maps every subject to the rules it is granted; it is rebuilt when one of the four kinds changed, so a
//! question costs a few map look-ups however many bindings exist. Asked by [`super::authorize`]; writes nothing.

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
};

use leme_store::cache::Snapshot;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{User, attributes::Attributes};
use crate::api::{object::Item, registry::Registry};

/// `rbac.authorization.k8s.io/v1 PolicyRule`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

impl Rule {
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|item| item == wanted || item == "*");
        if !has(&self.verbs, a.verb) {
            return false;
        }
        if !a.is_resource() {
            return self.paths.iter().any(|pattern| path_matches(pattern, a.path));
        }
        has(&self.api_groups, a.group)
            && self.resources.iter().any(|pattern| resource_matches(pattern, a.plural, a.subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == a.name))
    }

    /// Whether everything that `other` grants is granted here: upstream breaks a rule down to single grants.
    pub fn covers(&self, other: &Rule) -> bool {
        let all = |mine: &[String], theirs: &[String]| {
            mine.iter().any(|m| m == "*") || theirs.iter().all(|t| mine.contains(t))
        };
        let resources = other.resources.iter().all(|wanted| match wanted.split_once('/') {
            None => self.resources.iter().any(|mine| mine == "*" || mine == wanted),
            Some((plural, subresource)) => self.resources.iter().any(|m| resource_matches(m, plural, subresource)),
        });
        let names = self.resource_names.is_empty()
            || (!other.resource_names.is_empty()
                && other.resource_names.iter().all(|n| self.resource_names.contains(n)));
        let paths = other.paths.iter().all(|path| self.paths.iter().any(|mine| path_matches(mine, path)));
        all(&self.verbs, &other.verbs)
            && (other.resources.is_empty() || (all(&self.api_groups, &other.api_groups) && resources && names))
            && paths
    }
}

fn resource_matches(pattern: &str, plural: &str, subresource: &str) -> bool {
    match pattern.split_once('/') {
        None => pattern == "*" || (subresource.is_empty() && pattern == plural),
        Some((left, right)) => (left == "*" || left == plural) && right == subresource && !subresource.is_empty(),
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

type Rules = Arc<Vec<Rule>>;

/// A role that a subject holds, everywhere or in one namespace.
struct Grant {
    namespace: Option<Box<str>>,
    rules: Rules,
    /// Upstream's words for whoever wants to know why.
    reason: Box<str>,
}

impl Grant {
    fn reaches(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|own| own == namespace)
    }
}

/// Grants by subject (`user:jane`, `group:system:nodes`) and rules by role.
#[derive(Default)]
struct Index {
    /// What it was built from; a map that is the same pointer has not changed.
    sources: Vec<Snapshot<Item>>,
    grants: HashMap<String, Vec<Grant>>,
    roles: HashMap<(String, String), Rules>,
}

const KINDS: [&str; 4] = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];

pub struct Rbac {
    registry: Arc<Registry>,
    index: RwLock<Arc<Index>>,
}

impl Rbac {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, index: RwLock::default() }
    }

    /// By which binding, if any does.
    pub fn allows(&self, a: &Attributes<'_>) -> Option<String> {
        let index = self.index();
        subjects(a.user).find_map(|subject| {
            let mut grants = index.grants.get(&subject).map_or(&[][..], Vec::as_slice).iter();
            let grant = grants.find(|g| g.reaches(a.namespace) && g.rules.iter().any(|rule| rule.allows(a)))?;
            Some(grant.reason.to_string())
        })
    }

    /// Every rule that a user holds in a namespace, cluster-wide ones included.
    pub fn rules(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let index = self.index();
        let mut rules = Vec::new();
        for subject in subjects(user) {
            for grant in index.grants.get(&subject).into_iter().flatten().filter(|g| g.reaches(namespace)) {
                rules.extend(grant.rules.iter().cloned());
            }
        }
        rules
    }

    /// The rules of a role; `None` when it does not exist. `namespace` is "" for cluster roles.
    pub fn role(&self, namespace: &str, name: &str) -> Option<Rules> {
        self.index().roles.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// The index of the present state: rebuilt when one of its kinds has changed.
    fn index(&self) -> Arc<Index> {
        let sources = KINDS.map(|plural| self.registry.builtin(plural).cache.snapshot());
        let known = self.index.read().expect("no panic holds the lock").clone();
        let same = |(a, b): (&Snapshot<Item>, &Snapshot<Item>)| a.objects.ptr_eq(&b.objects);
        if known.sources.len() == sources.len() && known.sources.iter().zip(&sources).all(same) {
            return known;
        }
        let index = Arc::new(Index::build(sources));
        *self.index.write().expect("no panic holds the lock") = index.clone();
        index
    }
}

impl Index {
    fn build(sources: [Snapshot<Item>; 4]) -> Self {
        let mut index = Self::default();
        let [cluster_roles, cluster_bindings, roles, bindings] = &sources;
        for item in cluster_roles.objects.values().chain(roles.objects.values()) {
            let rules = serde_json::from_value(item.value()["rules"].take()).unwrap_or_default();
            index.roles.insert((item.namespace.to_string(), item.name.to_string()), Arc::new(rules));
        }
        for item in cluster_bindings.objects.values().chain(bindings.objects.values()) {
            index.bind(item);
        }
        index.sources = sources.into();
        index
    }

    fn bind(&mut self, item: &Item) {
        let binding = item.value();
        let of = |key: &str| binding["roleRef"][key].as_str().unwrap_or_default();
        let home = if of("kind") == "Role" { item.namespace.to_string() } else { String::new() };
        let Some(rules) = self.roles.get(&(home, of("name").to_owned())).cloned() else { return };
        let namespace = (!item.namespace.is_empty()).then(|| item.namespace.clone());
        let source = match &*item.namespace {
            "" => format!("ClusterRoleBinding {:?}", item.name),
            home => format!("RoleBinding \"{}/{home}\"", item.name),
        };
        for subject in binding["subjects"].as_array().into_iter().flatten() {
            if let Some(key) = subject_key(subject, &item.namespace) {
                let reason = format!(
                    "RBAC: allowed by {source} of {} {:?} to {}",
                    of("kind"),
                    of("name"),
                    describe(subject, &item.namespace)
                );
                let grant = Grant { namespace: namespace.clone(), rules: rules.clone(), reason: reason.into() };
                self.grants.entry(key).or_default().push(grant);
            }
        }
    }
}

/// `Group "system:nodes"`, `ServiceAccount "default/kube-system"`
fn describe(subject: &Value, namespace: &str) -> String {
    let of = |key: &str| subject[key].as_str().unwrap_or_default();
    match (of("kind"), of("namespace")) {
        ("ServiceAccount", "") => format!("ServiceAccount \"{}/{namespace}\"", of("name")),
        ("ServiceAccount", home) => format!("ServiceAccount \"{}/{home}\"", of("name")),
        (kind, _) => format!("{kind} {:?}", of("name")),
    }
}

fn subject_key(subject: &Value, namespace: &str) -> Option<String> {
    let of = |key: &str| subject[key].as_str().unwrap_or_default();
    match of("kind") {
        "User" => Some(format!("user:{}", of("name"))),
        "Group" => Some(format!("group:{}", of("name"))),
        "ServiceAccount" => {
            let home = if of("namespace").is_empty() { namespace } else { of("namespace") };
            Some(format!("user:system:serviceaccount:{home}:{}", of("name")))
        }
        _ => None,
    }
}

fn subjects(user: &User) -> impl Iterator<Item = String> {
    let groups = user.groups.iter().map(|group| format!("group:{group}"));
    std::iter::once(format!("user:{}", user.name)).chain(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Rule {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Rule { verbs: own(verbs), api_groups: own(groups), resources: own(resources), ..Rule::default() }
    }

    #[test]
    fn resources_match_with_subresources_and_wildcards() {
        for (pattern, plural, subresource, want) in [
            ("pods", "pods", "", true),
            ("pods", "pods", "log", false),
            ("pods/log", "pods", "log", true),
            ("*/scale", "deployments", "scale", true),
            ("*", "pods", "log", true),
            ("pods/*", "pods", "log", false),
        ] {
            assert_eq!(resource_matches(pattern, plural, subresource), want, "{pattern} {plural} {subresource}");
        }
    }

    #[test]
    fn a_rule_covers_what_it_grants_and_no_more() {
        let wide = rule(&["*"], &["*"], &["*"]);
        let narrow = rule(&["get", "list"], &[""], &["pods", "pods/log"]);
        assert!(wide.covers(&narrow));
        assert!(!narrow.covers(&wide));
        assert!(!narrow.covers(&rule(&["get"], &["apps"], &["pods"])));
        assert!(narrow.covers(&rule(&["get"], &[""], &["pods/log"])));
    }

    #[test]
    fn paths_match_whole_or_by_prefix() {
        assert!(path_matches("/healthz/*", "/healthz/etcd"));
        assert!(path_matches("*", "/anything"));
        assert!(!path_matches("/healthz", "/healthz/etcd"));
    }
}
