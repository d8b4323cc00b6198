//! Which of the fitting nodes is best: 0 to 100 per criterion, weighted as upstream weights them. Spreading a
//! controller's pods over nodes comes first, then room, then balance.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

use super::{
    cluster::{Cluster, owner},
    demand::Demand,
    filter::{matches_term, spread},
    quantity::milli,
};
use crate::node_lifecycle::tolerates;

const SPREAD: f64 = 2.0;
const PREFERENCE: f64 = 2.0;
const TAINTS: f64 = 3.0;
const BEST: f64 = 100.0;

/// The best node; equals are told apart by chance.
pub fn choose<'a>(cluster: &Cluster, fitting: &[&'a Arc<Node>], pod: &Pod, demand: &Demand) -> Option<&'a Arc<Node>> {
    let siblings = inverse(fitting, |node| siblings(cluster, node, pod));
    let domains = inverse(fitting, |node| soft_spread(cluster, node, pod));
    let taints = inverse(fitting, |node| disliked(node, pod));
    let preferences = proportion(fitting, |node| preference(node, pod));
    let scored = fitting.iter().enumerate().map(|(i, node)| {
        let room = room(cluster, node, demand);
        let score =
            SPREAD * siblings[i] + SPREAD * domains[i] + TAINTS * taints[i] + PREFERENCE * preferences[i] + room;
        (score, fastrand::u32(..), *node)
    });
    scored.max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, _, node)| node)
}

/// 100 for the least, 0 for the most.
fn inverse(nodes: &[&Arc<Node>], count: impl Fn(&Node) -> f64) -> Vec<f64> {
    let counts: Vec<_> = nodes.iter().map(|node| count(node)).collect();
    let most = counts.iter().copied().fold(0.0, f64::max);
    counts.into_iter().map(|count| if most > 0.0 { BEST * (most - count) / most } else { BEST }).collect()
}

fn proportion(nodes: &[&Arc<Node>], count: impl Fn(&Node) -> f64) -> Vec<f64> {
    let counts: Vec<_> = nodes.iter().map(|node| count(node)).collect();
    let most = counts.iter().copied().fold(0.0, f64::max);
    counts.into_iter().map(|count| if most > 0.0 { BEST * count / most } else { 0.0 }).collect()
}

fn siblings(cluster: &Cluster, node: &Node, pod: &Pod) -> f64 {
    let Some(owner) = owner(pod) else { return 0.0 };
    let name = node.name_any();
    let here = cluster.placed().filter(|other| other.node == name && other.owner.as_ref() == Some(&owner));
    here.fold(0.0, |count, _| count + 1.0)
}

fn soft_spread(cluster: &Cluster, node: &Node, pod: &Pod) -> f64 {
    let constraints = pod.spec.iter().flat_map(|spec| spec.topology_spread_constraints.iter().flatten());
    let soft = constraints.filter(|constraint| constraint.when_unsatisfiable == "ScheduleAnyway");
    soft.map(|constraint| {
        let counts = spread(cluster, pod, &constraint.topology_key, constraint.label_selector.as_ref());
        let here = node.labels().get(&constraint.topology_key).and_then(|domain| counts.get(domain));
        here.map_or(0.0, |count| f64::from(*count))
    })
    .sum()
}

fn disliked(node: &Node, pod: &Pod) -> f64 {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let soft = taints.filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !tolerations.iter().any(|t| tolerates(t, taint))).fold(0.0, |count, _| count + 1.0)
}

fn preference(node: &Node, pod: &Pod) -> f64 {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let matching = preferred.into_iter().flatten().filter(|term| matches_term(&term.preference, node));
    matching.map(|term| f64::from(term.weight)).sum()
}

/// Least used, and cpu and memory used alike.
#[expect(clippy::cast_precision_loss, reason = "a score needs no more than a few digits")]
fn room(cluster: &Cluster, node: &Node, demand: &Demand) -> f64 {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default();
    let usage = cluster.usage(&node.name_any());
    let share = |name: &str, which: usize| {
        let has = allocatable.get(name).map_or(0, milli).max(1) as f64;
        ((usage.usual[which] + demand.usual[which]) as f64 / has).min(1.0)
    };
    let (cpu, memory) = (share("cpu", 0), share("memory", 1));
    let free = BEST * (1.0 - f64::midpoint(cpu, memory));
    let balance = BEST * (1.0 - (cpu - memory).abs() / 2.0);
    free + balance
}
