//! The resource table: one row says everything about a kind, and routes, discovery, OpenAPI and tables follow from it.
//! Adding a kind is one row here and one strategy file beside it.

mod age;
mod apps;
mod bootstrap;
mod certificates;
mod configmap;
mod discovery;
mod event;
mod field;
mod lease;
mod metadata;
mod namespace;
mod networking;
pub mod node;
mod pod;
mod rbac;
mod secret;
mod service;
mod serviceaccount;
pub mod strategy;
mod table;

use std::{collections::HashMap, net::Ipv4Addr, ops::RangeInclusive, sync::LazyLock};

use async_trait::async_trait;
use serde_json::Value;

pub use age::{age, human_duration};
pub use apps::{apply_scale, scale_of};
pub use bootstrap::bootstrap_rbac;
pub use certificates::organizations;
pub use metadata::{NameRule, validate_create, validate_update};
pub use pod::{BindError, bind};
pub use service::repair;
pub use strategy::{Companions, Context, FieldError, Strategy};
pub use table::{INTERNAL, TABLE};

/// One column of `kubectl get`.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    pub kind: &'static str,
    pub format: &'static str,
    pub priority: i32,
    pub description: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub struct Subresource {
    pub name: &'static str,
    /// `autoscaling/v1 Scale`, `v1 Binding`: group ("" for core), version, kind.
    pub kind: (&'static str, &'static str, &'static str),
    pub verbs: &'static [&'static str],
}

/// One row of the table.
pub struct Resource {
    /// "" for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    pub columns: &'static [Column],
    /// The schema's name: `io.k8s.api.core.v1.Pod`.
    pub schema: &'static str,
    /// Under `/registry/`: upstream's special cases included (`services/specs`, `minions`).
    pub storage: &'static str,
    /// Field selectors beyond `metadata.name` and `metadata.namespace`.
    pub fields: &'static [&'static str],
    /// Seconds after which an object goes by itself (events), 0 for never.
    pub lifetime: u32,
    pub strategy: &'static dyn Strategy,
}

/// Reads of current state that strategies may make.
#[async_trait]
pub trait StorageView: Send + Sync {
    /// One object, `None` when it is absent. `namespace` is "" for cluster-scoped kinds.
    async fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value>;
    /// All objects of a kind.
    async fn list(&self, plural: &str) -> Vec<Value>;
    /// What Services draw from.
    fn ranges(&self) -> Ranges {
        Ranges::default()
    }
}

/// The shared ranges of a cluster, from the server's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranges {
    /// Network address and prefix length of the Service CIDR.
    pub service: (Ipv4Addr, u8),
    pub node_ports: RangeInclusive<u16>,
}

impl Default for Ranges {
    fn default() -> Self {
        Self { service: (Ipv4Addr::new(10, 96, 0, 0), 16), node_ports: 30000..=32767 }
    }
}

impl Resource {
    /// `deployments.apps`, or `pods` in the core group: how companions and views name a kind.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Reviews and the like: answered, never stored.
    pub fn is_virtual(&self) -> bool {
        self.storage.is_empty()
    }
}

type Path = (&'static str, &'static str, &'static str);
static BY_PLURAL: LazyLock<HashMap<Path, &'static Resource>> =
    LazyLock::new(|| TABLE.iter().map(|r| ((r.group, r.version, r.plural), r)).collect());
static BY_KIND: LazyLock<HashMap<Path, &'static Resource>> =
    LazyLock::new(|| TABLE.iter().map(|r| ((r.group, r.version, r.kind), r)).collect());
static BY_QUALIFIED: LazyLock<HashMap<String, &'static Resource>> =
    LazyLock::new(|| TABLE.iter().chain(INTERNAL).map(|r| (r.qualified(), r)).collect());

/// Every served kind.
pub fn table() -> &'static [Resource] {
    TABLE
}

pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    BY_PLURAL.get(&(group, version, plural)).copied()
}

pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    BY_KIND.get(&(group, version, kind)).copied()
}

/// `ipaddresses.networking.k8s.io`, `pods`, and the internal kinds that are stored but never served.
pub fn by_qualified(name: &str) -> Option<&'static Resource> {
    BY_QUALIFIED.get(name).copied()
}

#[cfg(test)]
mod tests;
