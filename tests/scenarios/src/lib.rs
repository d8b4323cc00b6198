//! Scenarios: API objects in, tables out, one text file each under `cases/`.
//!
//! A file holds YAML documents, then a line `=== tables of NODE` with the tables that node must have, line by line as
//! `leme_datapath::Tables` prints them; several nodes may follow. `=== tables of NODE with VALUES` gives its agent these
//! values of `--nodeport-addresses`. Objects are fed in the order of the file, backwards,
//! and with detours (everything deleted and added again, slices before their Services): the tables must not care.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use leme_datapath::{NodePorts, ObjectKey, Snapshot, plan};
use serde::Deserialize;
use std::path::Path;

#[derive(Clone, Deserialize)]
#[serde(tag = "kind")]
pub enum Object {
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    Node(Box<Node>),
}

impl Object {
    pub fn upsert(&self, snapshot: &mut Snapshot) {
        match self {
            Self::Service(service) => drop(snapshot.upsert_service(service)),
            Self::EndpointSlice(slice) => drop(snapshot.upsert_slice(slice)),
            Self::Node(node) => drop(snapshot.upsert_node(node)),
        }
    }

    pub fn delete(&self, snapshot: &mut Snapshot) {
        match self {
            Self::Service(service) => drop(snapshot.delete_service(&key(&service.metadata))),
            Self::EndpointSlice(slice) => drop(snapshot.delete_slice(&key(&slice.metadata))),
            Self::Node(node) => drop(snapshot.delete_node(node.metadata.name.as_deref().unwrap_or_default())),
        }
    }
}

fn key(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
    ObjectKey::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// One file.
pub struct Scenario {
    pub objects: Vec<Object>,
    /// Node and its tables.
    pub expected: Vec<(String, String)>,
}

impl Scenario {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let mut parts = text.split("=== tables of ");
        let documents = parts.next().unwrap_or_default();
        let documents = serde_norway::Deserializer::from_str(documents);
        let objects =
            documents.map(|document| Object::deserialize(document).context("not an object that is known here"));
        let split = |part: &str| part.split_once('\n').map(|(node, tables)| (node.to_owned(), tables.to_owned()));
        let expected: Vec<_> = parts.filter_map(split).collect();
        if expected.is_empty() {
            bail!("{} expects nothing", path.display());
        }
        Ok(Self { objects: objects.collect::<Result<_>>()?, expected })
    }

    /// Tables of a node after the objects arrived in some order.
    pub fn tables(&self, node: &str, feed: impl FnOnce(&[Object], &mut Snapshot)) -> String {
        let (node, flag) = node.split_once(" with ").unwrap_or((node, ""));
        let flag: Vec<String> = flag.split(',').map(str::to_owned).collect();
        let node_ports = NodePorts::parse(&flag).unwrap_or_else(|fault| panic!("{fault}"));
        let mut snapshot = Snapshot::new(node).with_node_ports(node_ports);
        feed(&self.objects, &mut snapshot);
        plan(&snapshot).to_string()
    }
}

/// How objects arrive.
pub type Feed = fn(&[Object], &mut Snapshot);

/// Ways for the same objects to arrive.
pub const ORDERS: [(&str, Feed); 4] = [
    ("as written", |objects, snapshot| objects.iter().for_each(|object| object.upsert(snapshot))),
    ("backwards", |objects, snapshot| objects.iter().rev().for_each(|object| object.upsert(snapshot))),
    ("deleted and added again", |objects, snapshot| {
        objects.iter().for_each(|object| object.upsert(snapshot));
        objects.iter().for_each(|object| object.delete(snapshot));
        objects.iter().rev().for_each(|object| object.upsert(snapshot));
    }),
    ("each deleted before the next comes", |objects, snapshot| {
        for object in objects {
            object.upsert(snapshot);
            object.delete(snapshot);
            object.upsert(snapshot);
        }
    }),
];
