//! Which nodes can take a pod, and upstream's words for why the others cannot.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::{
    api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, Taint},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::ResourceExt;

use super::{
    cluster::{Cluster, Placed, Usage},
    demand::Demand,
    quantity::milli,
};
use crate::{
    node_lifecycle::tolerates,
    objects::{Labels, selects},
};

/// Why a node does not fit: everything it lacks, as upstream words it.
pub type Reasons = Vec<String>;

pub fn reasons(cluster: &Cluster, node: &Node, pod: &Pod, demand: &Demand) -> Reasons {
    let usage = cluster.usage(&node.name_any());
    if let Some(reason) = refuses(node, pod) {
        return vec![reason];
    }
    if ports_taken(&usage, demand) {
        return vec!["node(s) didn't have free ports for the requested pod ports".into()];
    }
    let lacking = lacking(node, &usage, demand);
    if !lacking.is_empty() {
        return lacking;
    }
    affinity_reason(cluster, node, pod).into_iter().collect()
}

fn refuses(node: &Node, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let tolerated = |taint: &Taint| tolerations.iter().any(|toleration| tolerates(toleration, taint));
    let cordon =
        Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) && !tolerated(&cordon) {
        return Some("node(s) were unschedulable".into());
    }
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    if let Some(taint) = taints.find(|taint| taint.effect != "PreferNoSchedule" && !tolerated(taint)) {
        let value = taint.value.as_deref().unwrap_or_default();
        return Some(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key));
    }
    (!matches_node(pod, node)).then(|| "node(s) didn't match Pod's node affinity/selector".into())
}

fn matches_node(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return true };
    let labels = node.labels();
    if spec.node_selector.iter().flatten().any(|(key, value)| labels.get(key) != Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches_term(term, node)))
}

pub fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let name = BTreeMap::from([("metadata.name".to_owned(), node.name_any())]);
    expressions.iter().all(|requirement| meets(requirement, node.labels()))
        && fields.iter().all(|requirement| meets(requirement, &name))
}

fn meets(requirement: &NodeSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.contains(value));
    let compared = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(have, want)| have > want),
        "Lt" => compared().is_some_and(|(have, want)| have < want),
        _ => false,
    }
}

fn ports_taken(usage: &Usage, demand: &Demand) -> bool {
    demand.ports.iter().any(|(protocol, address, port)| {
        usage.ports.iter().any(|(used_protocol, used_address, used)| {
            used == port
                && used_protocol == protocol
                && (used_address == address || used_address.is_empty() || address.is_empty())
        })
    })
}

fn lacking(node: &Node, usage: &Usage, demand: &Demand) -> Reasons {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default();
    let has = |name: &str| allocatable.get(name).map_or(0, milli);
    let mut reasons = Vec::new();
    if (usage.pods + 1).saturating_mul(1000) > has("pods") {
        reasons.push("Too many pods".to_owned());
    }
    for (name, amount) in demand.requests.iter().filter(|(_, amount)| **amount > 0) {
        let used = usage.requests.get(name).copied().unwrap_or(0);
        if used.saturating_add(*amount) > has(name) {
            reasons.push(format!("Insufficient {name}"));
        }
    }
    reasons
}

/// Rules between pods: required affinity and anti-affinity (also of the pods that are there) and hard topology spread.
fn affinity_reason(cluster: &Cluster, node: &Node, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let affinity = spec.affinity.clone().unwrap_or_default();
    let wanted = affinity.pod_affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution);
    let avoided = affinity.pod_anti_affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution);
    let namespace = pod.namespace().unwrap_or_default();
    if wanted.iter().flatten().any(|term| !is_near(cluster, node, pod, term, &namespace)) {
        return Some("node(s) didn't match pod affinity rules".into());
    }
    if avoided.iter().flatten().any(|term| neighbours(cluster, node, term, &namespace).next().is_some()) {
        return Some("node(s) didn't match pod anti-affinity rules".into());
    }
    if cluster.placed().any(|other| repels(cluster, other, node, pod)) {
        return Some("node(s) didn't satisfy existing pods anti-affinity rules".into());
    }
    let constraints =
        spec.topology_spread_constraints.iter().flatten().filter(|c| c.when_unsatisfiable == "DoNotSchedule");
    for constraint in constraints {
        let Some(domain) = node.labels().get(&constraint.topology_key) else {
            return Some("node(s) didn't match pod topology spread constraints (missing required label)".into());
        };
        let counts = spread(cluster, pod, &constraint.topology_key, constraint.label_selector.as_ref());
        let here = counts.get(domain).copied().unwrap_or(0);
        let least = counts.values().copied().min().unwrap_or(0);
        if here + 1 - least > constraint.max_skew {
            return Some("node(s) didn't match pod topology spread constraints".into());
        }
    }
    None
}

/// Near enough to a matching pod; the first of a group that only asks for its own kind may go anywhere.
fn is_near(cluster: &Cluster, node: &Node, pod: &Pod, term: &PodAffinityTerm, namespace: &str) -> bool {
    if neighbours(cluster, node, term, namespace).next().is_some() {
        return true;
    }
    let anywhere = cluster.placed().any(|other| is_meant(term, other, namespace));
    let own = term.label_selector.as_ref().is_some_and(|selector| selects(selector, pod.labels()));
    !anywhere && own && node.labels().contains_key(&term.topology_key)
}

fn neighbours<'a>(
    cluster: &'a Cluster,
    node: &'a Node,
    term: &'a PodAffinityTerm,
    namespace: &'a str,
) -> impl Iterator<Item = &'a Placed> {
    let domain = node.labels().get(&term.topology_key);
    cluster.placed().filter(move |other| {
        domain.is_some()
            && is_meant(term, other, namespace)
            && label_of(cluster, &other.node, &term.topology_key) == domain
    })
}

fn is_meant(term: &PodAffinityTerm, other: &Placed, namespace: &str) -> bool {
    let named = term.namespaces.as_deref().unwrap_or_default();
    let everywhere = term.namespace_selector.as_ref().is_some_and(|selector| *selector == LabelSelector::default());
    let in_namespace =
        if named.is_empty() { everywhere || other.namespace == namespace } else { named.contains(&other.namespace) };
    in_namespace && term.label_selector.as_ref().is_some_and(|selector| selects(selector, &other.labels))
}

/// A pod that is there does not want this one in its domain.
fn repels(cluster: &Cluster, other: &Placed, node: &Node, pod: &Pod) -> bool {
    let affinity = other.pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let anti = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let terms = anti.and_then(|anti| anti.required_during_scheduling_ignored_during_execution.as_ref());
    let Some(terms) = terms else { return false };
    let namespace = pod.namespace().unwrap_or_default();
    terms.iter().any(|term| {
        let same_namespace =
            term.namespaces.as_ref().map_or(other.namespace == namespace, |names| names.contains(&namespace));
        let domain = node.labels().get(&term.topology_key);
        same_namespace
            && domain.is_some()
            && domain == label_of(cluster, &other.node, &term.topology_key)
            && term.label_selector.as_ref().is_some_and(|selector| selects(selector, pod.labels()))
    })
}

fn label_of<'a>(cluster: &'a Cluster, node: &str, key: &str) -> Option<&'a String> {
    cluster.nodes.get(node)?.labels().get(key)
}

/// Matching pods per domain, over the domains of the nodes that the pod could use at all.
pub fn spread(cluster: &Cluster, pod: &Pod, key: &str, selector: Option<&LabelSelector>) -> HashMap<String, i32> {
    let eligible = cluster.nodes.values().filter(|node| matches_node(pod, node));
    let mut counts: HashMap<String, i32> =
        eligible.filter_map(|node| node.labels().get(key)).map(|domain| (domain.clone(), 0)).collect();
    let namespace = pod.namespace().unwrap_or_default();
    for other in cluster.placed().filter(|other| other.namespace == namespace) {
        if !selector.is_some_and(|selector| selects(selector, &other.labels)) {
            continue;
        }
        if let Some(count) = label_of(cluster, &other.node, key).and_then(|domain| counts.get_mut(domain)) {
            *count += 1;
        }
    }
    counts
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
pub fn summary(nodes: usize, reasons: &[Reasons]) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons.iter().flatten() {
        *counts.entry(reason).or_default() += 1;
    }
    let mut parts: Vec<_> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}
