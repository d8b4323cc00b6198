//! Scenarios: API objects in, tables out, one text file each under `cases/`.
//!
//! A file is a list of steps: YAML documents, then for each node that matters a line `=== tables of NODE` with the tables
//! that node must then have, line by line as `leme_datapath::Tables` prints them. `=== tables of NODE with VALUES` gives
//! its agent these values of `--nodeport-addresses`. The first step adds its objects; a line before the others says what
//! they do:
//!
//! - `=== upsert`: the objects appear or change;
//! - `=== delete`: they go (their names are enough);
//! - `=== restart`: a new agent takes over and has seen these objects of lists that are not complete yet;
//! - `=== list`: these objects are all there are; without any, those seen since the restart are.
//!
//! Each node runs on simulated maps, with all objects of a step at once and with one after the other: after every map
//! operation every packet must see the state before or the state after. The first step's objects also come in other
//! orders: the tables must not care.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use leme_datapath::{Change, NodePorts, ObjectKey, Snapshot, plan, simulation};
use serde::Deserialize;
use std::{collections::BTreeSet, path::Path};

#[derive(Clone, Deserialize)]
#[serde(tag = "kind")]
pub enum Object {
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    Node(Box<Node>),
    #[serde(rename = "ServiceCIDR")]
    ServiceCidr(Box<ServiceCIDR>),
}

impl Object {
    pub fn upsert(&self, snapshot: &mut Snapshot) -> Vec<Change> {
        match self {
            Self::Service(service) => snapshot.upsert_service(service).into_iter().collect(),
            Self::EndpointSlice(slice) => snapshot.upsert_slice(slice),
            Self::Node(node) => snapshot.upsert_node(node),
            Self::ServiceCidr(cidr) => snapshot.upsert_service_cidr(cidr).into_iter().collect(),
        }
    }

    pub fn delete(&self, snapshot: &mut Snapshot) -> Vec<Change> {
        let change = match self {
            Self::Service(service) => snapshot.delete_service(&key(&service.metadata)),
            Self::EndpointSlice(slice) => snapshot.delete_slice(&key(&slice.metadata)),
            Self::Node(node) => snapshot.delete_node(node.metadata.name.as_deref().unwrap_or_default()),
            Self::ServiceCidr(cidr) => snapshot.delete_service_cidr(cidr.metadata.name.as_deref().unwrap_or_default()),
        };
        change.into_iter().collect()
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Service(a), Self::Service(b)) => key(&a.metadata) == key(&b.metadata),
            (Self::EndpointSlice(a), Self::EndpointSlice(b)) => key(&a.metadata) == key(&b.metadata),
            (Self::Node(a), Self::Node(b)) => a.metadata.name == b.metadata.name,
            (Self::ServiceCidr(a), Self::ServiceCidr(b)) => a.metadata.name == b.metadata.name,
            _ => false,
        }
    }
}

fn key(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
    ObjectKey::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Upsert,
    Delete,
    Restart,
    List,
}

pub struct Step {
    pub action: Action,
    pub objects: Vec<Object>,
    /// Node and its tables.
    pub expected: Vec<(String, String)>,
}

/// One file.
pub struct Scenario {
    pub steps: Vec<Step>,
}

impl Scenario {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let mut steps = Vec::new();
        for section in format!("=== upsert\n{text}").trim_start_matches('\n').split("\n=== ") {
            let (head, body) = section.trim_start_matches("=== ").split_once('\n').unwrap_or((section, ""));
            match (head.strip_prefix("tables of "), steps.last_mut()) {
                (Some(node), Some(Step { expected, .. })) => expected.push((node.to_owned(), body.to_owned())),
                (None, _) => steps.push(Step::read(head, body)?),
                (Some(_), None) => bail!("tables before any object"),
            }
        }
        if steps.iter().all(|step| step.expected.is_empty()) {
            bail!("{} expects nothing", path.display());
        }
        Ok(Self { steps })
    }

    /// Every node that some step expects something of, with its agent's flags.
    pub fn nodes(&self) -> BTreeSet<&str> {
        self.steps.iter().flat_map(|step| step.expected.iter().map(|(node, _)| node.as_str())).collect()
    }

    /// Tables of a node after the first step's objects arrived in some order.
    pub fn tables(&self, node: &str, feed: impl FnOnce(&[Object], &mut Snapshot)) -> String {
        let mut snapshot = blank(node);
        feed(&self.steps[0].objects, &mut snapshot);
        plan(&snapshot).to_string()
    }

    /// Runs all steps on a node, with `at_once` each step's objects in one reconciliation. `look` gets each step's number
    /// and the tables after it.
    ///
    /// # Panics
    /// If a packet would have seen anything between the states, or something leaks.
    pub fn run(&self, node: &str, at_once: bool, mut look: impl FnMut(usize, String)) {
        let mut world = World { node: simulation::Node::new(blank(node)), name: node, seen: Vec::new(), at_once };
        for (i, step) in self.steps.iter().enumerate() {
            world.take(step);
            assert_eq!(world.node.leaks(), 0, "step {i} leaves something behind");
            look(i, world.node.tables());
        }
        let everything = std::mem::take(&mut world.seen);
        world.change(&everything, Object::delete);
        world.node.reconcile_all();
        assert_eq!((world.node.leaks(), world.node.tables().contains("service ")), (0, false), "when all is deleted");
    }
}

impl Step {
    fn read(head: &str, body: &str) -> Result<Self> {
        let action = match head.trim() {
            "upsert" => Action::Upsert,
            "delete" => Action::Delete,
            "restart" => Action::Restart,
            "list" => Action::List,
            other => bail!("{other:?} is nothing a step can do"),
        };
        let documents = serde_norway::Deserializer::from_str(body);
        let objects = documents.filter_map(|document| match Option::<Object>::deserialize(document) {
            Ok(object) => object.map(Ok),
            Err(error) => Some(Err(error)),
        });
        let objects = objects.collect::<Result<_, _>>().context("not an object that is known here")?;
        Ok(Self { action, objects, expected: Vec::new() })
    }
}

/// An agent that knows nothing yet; `node` may say with which flags.
fn blank(node: &str) -> Snapshot {
    let (node, flag) = node.split_once(" with ").unwrap_or((node, ""));
    let flag: Vec<String> = flag.split(',').map(str::to_owned).collect();
    let node_ports = NodePorts::parse(&flag).unwrap_or_else(|fault| panic!("{fault}"));
    Snapshot::new(node).with_node_ports(node_ports)
}

struct World<'a> {
    node: simulation::Node,
    name: &'a str,
    /// What the agent knows.
    seen: Vec<Object>,
    at_once: bool,
}

impl World<'_> {
    fn take(&mut self, step: &Step) {
        match step.action {
            Action::Upsert => {
                self.see(&step.objects);
                self.change(&step.objects, Object::upsert);
            }
            Action::Delete => {
                self.seen.retain(|known| !step.objects.iter().any(|object| object.is_same(known)));
                self.change(&step.objects, Object::delete);
            }
            Action::Restart => {
                self.node.restart(blank(self.name));
                self.seen.clone_from(&step.objects);
                step.objects.iter().for_each(|object| drop(object.upsert(&mut self.node.snapshot)));
            }
            Action::List => {
                if !step.objects.is_empty() {
                    self.relist(&step.objects);
                }
                self.node.reconcile_all();
            }
        }
    }

    fn see(&mut self, objects: &[Object]) {
        self.seen.retain(|known| !objects.iter().any(|object| object.is_same(known)));
        self.seen.extend_from_slice(objects);
    }

    fn relist(&mut self, objects: &[Object]) {
        let gone = |known: &&Object| !objects.iter().any(|object| object.is_same(known));
        self.seen.iter().filter(gone).for_each(|object| drop(object.delete(&mut self.node.snapshot)));
        objects.iter().for_each(|object| drop(object.upsert(&mut self.node.snapshot)));
        self.seen = objects.to_vec();
    }

    fn change(&mut self, objects: &[Object], change: fn(&Object, &mut Snapshot) -> Vec<Change>) {
        let batches = if self.at_once { vec![objects] } else { objects.chunks(1).collect() };
        for batch in batches {
            let changes = batch.iter().flat_map(|object| change(object, &mut self.node.snapshot)).collect();
            self.node.reconcile(&changes);
        }
    }
}

/// How objects arrive.
pub type Feed = fn(&[Object], &mut Snapshot);

/// Ways for the same objects to arrive.
pub const ORDERS: [(&str, Feed); 4] = [
    ("as written", |objects, snapshot| objects.iter().for_each(|object| drop(object.upsert(snapshot)))),
    ("backwards", |objects, snapshot| objects.iter().rev().for_each(|object| drop(object.upsert(snapshot)))),
    ("deleted and added again", |objects, snapshot| {
        objects.iter().for_each(|object| drop(object.upsert(snapshot)));
        objects.iter().for_each(|object| drop(object.delete(snapshot)));
        objects.iter().rev().for_each(|object| drop(object.upsert(snapshot)));
    }),
    ("each deleted before the next comes", |objects, snapshot| {
        for object in objects {
            object.upsert(snapshot);
            object.delete(snapshot);
            object.upsert(snapshot);
        }
    }),
];
