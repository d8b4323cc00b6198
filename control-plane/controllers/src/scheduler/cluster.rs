//! The scheduler's view: what each node has left, with the pods it has placed but the watch has not shown yet.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

use super::demand::{Demand, Resources, add, demand, subtract};
use crate::{informer::controller_of, objects::Labels, pods};

/// A pod on a node, as other pods' rules see it.
#[derive(Clone, Debug)]
pub struct Placed {
    pub node: String,
    pub namespace: String,
    pub labels: Labels,
    pub owner: Option<String>,
    pub pod: Arc<Pod>,
    demand: Demand,
}

#[derive(Clone, Debug, Default)]
pub struct Usage {
    pub requests: Resources,
    pub usual: [i64; 2],
    pub pods: i64,
    pub ports: Vec<(String, String, i32)>,
}

#[derive(Default)]
pub struct Cluster {
    pub nodes: BTreeMap<String, Arc<Node>>,
    placed: HashMap<String, Placed>,
    usage: HashMap<String, Usage>,
}

impl Cluster {
    pub fn set_node(&mut self, name: String, node: Option<Arc<Node>>) {
        match node {
            Some(node) => self.nodes.insert(name, node),
            None => self.nodes.remove(&name),
        };
    }

    /// What the watch says of a pod. One that has no node yet leaves an assumption alone.
    pub fn observe(&mut self, before: Option<&Arc<Pod>>, after: Option<&Arc<Pod>>) {
        let Some(pod) = after.or(before) else { return };
        let uid = pod.uid().unwrap_or_default();
        match after.filter(|pod| !pods::is_terminal(pod)) {
            Some(pod) => {
                if let Some(node) = pods::node(pod) {
                    self.place(pod, node);
                }
            }
            None => self.forget(&uid),
        }
    }

    /// Counts a pod on a node: seen there, or about to be bound there.
    pub fn place(&mut self, pod: &Arc<Pod>, node: &str) {
        let uid = pod.uid().unwrap_or_default();
        self.forget(&uid);
        let placed = Placed {
            node: node.to_owned(),
            namespace: pod.namespace().unwrap_or_default(),
            labels: pod.labels().clone(),
            owner: owner(pod),
            pod: pod.clone(),
            demand: demand(pod),
        };
        let usage = self.usage.entry(node.to_owned()).or_default();
        add(&mut usage.requests, &placed.demand.requests);
        usage.usual[0] += placed.demand.usual[0];
        usage.usual[1] += placed.demand.usual[1];
        usage.pods += 1;
        usage.ports.extend(placed.demand.ports.iter().cloned());
        self.placed.insert(uid, placed);
    }

    pub fn forget(&mut self, uid: &str) {
        let Some(placed) = self.placed.remove(uid) else { return };
        let Some(usage) = self.usage.get_mut(&placed.node) else { return };
        subtract(&mut usage.requests, &placed.demand.requests);
        usage.usual[0] -= placed.demand.usual[0];
        usage.usual[1] -= placed.demand.usual[1];
        usage.pods -= 1;
        for port in &placed.demand.ports {
            if let Some(at) = usage.ports.iter().position(|used| used == port) {
                usage.ports.swap_remove(at);
            }
        }
    }

    pub fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    pub fn usage(&self, node: &str) -> Usage {
        self.usage.get(node).cloned().unwrap_or_default()
    }

    pub fn placed(&self) -> impl Iterator<Item = &Placed> {
        self.placed.values()
    }
}

/// What makes two pods siblings that should not share a node: the same controller.
pub fn owner(pod: &Pod) -> Option<String> {
    controller_of(pod).map(|owner| owner.uid.clone())
}
