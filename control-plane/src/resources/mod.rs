//! The resource table: one row says everything about a kind, and routes, discovery, OpenAPI and tables follow from it.
//! Adding a kind is one row here and one strategy file beside it.

pub mod strategy;

use async_trait::async_trait;
use serde_json::Value;

pub use strategy::{Companions, Context, FieldError, Strategy};

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
}
