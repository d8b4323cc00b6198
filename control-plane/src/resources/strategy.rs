//! What a kind adds to the machinery that all kinds share. `api` calls a strategy; a strategy never sees HTTP.
//!
//! Objects are JSON values that have already been decoded against their schema (unknown fields dropped, types right,
//! schema defaults set). A strategy is a handful of pure functions; only [`Strategy::allocate`] touches the store.

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;

use super::{NameRule, Resource, StorageView};
use crate::auth::User;

/// One line of a `Status`'s causes: `spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// `FieldValueInvalid`, `FieldValueRequired`, `FieldValueNotSupported`, `FieldValueForbidden`, `FieldValueDuplicate`, `FieldValueTooLong`…
    pub reason: &'static str,
    /// `spec.containers[0].image`
    pub field: String,
    /// Upstream's words, without the field.
    pub message: String,
}

/// Who asks and when: what a strategy may need beyond the object.
pub struct Context<'a> {
    pub resource: &'a Resource,
    pub user: &'a User,
    pub now: Timestamp,
    /// The subresource being written: `status`, `scale`, `binding`…
    pub subresource: Option<&'a str>,
}

/// Writes that must be committed in the same transaction as the object (an IPAddress beside its Service).
#[derive(Default)]
pub struct Companions {
    /// Objects to create: (resource plural.group, namespace or "", name, object); creation fails if one exists. The
    /// resource may be one of [`super::INTERNAL`]: find its storage through [`super::by_qualified`].
    pub create: Vec<(String, String, String, Value)>,
    pub delete: Vec<(String, String, String)>,
}

#[async_trait]
pub trait Strategy: Send + Sync + 'static {
    /// What `metadata.name` must look like.
    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    /// The served object in the shape that is stored: two versions of one kind may share storage (events).
    fn stored(&self, object: Value) -> Value {
        object
    }

    /// The inverse of [`Strategy::stored`]; `None` when the stored bytes are served as they are.
    fn served(&self, _stored: &Value) -> Option<Value> {
        None
    }

    /// Before validation of a create: drops status, sets generation, defaults that need code.
    fn prepare_create(&self, _context: &Context<'_>, _object: &mut Value) {}

    /// Before validation of an update (also of a patch): restores what the writer may not change, bumps generation.
    fn prepare_update(&self, _context: &Context<'_>, _object: &mut Value, _old: &Value) {}

    fn validate_create(&self, _context: &Context<'_>, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    fn validate_update(&self, _context: &Context<'_>, _object: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Texts for `Warning: 299` headers.
    fn warnings(&self, _context: &Context<'_>, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Takes what the object needs from shared ranges (cluster IPs, NodePorts), by compare-and-swap. `old` is `None` on
    /// create, `new` is `None` on delete. On a dry run nothing is committed. A retry after a conflict calls it again.
    async fn allocate(
        &self,
        _context: &Context<'_>,
        _view: &dyn StorageView,
        _new: Option<&mut Value>,
        _old: Option<&Value>,
    ) -> Result<Companions, Vec<FieldError>> {
        Ok(Companions::default())
    }

    /// Seconds that a delete leaves the object with a deletion timestamp; 0 removes it at once. `asked` is the request's.
    fn grace_period(&self, _object: &Value, _asked: Option<i64>) -> i64 {
        0
    }

    /// The cells of a table row, in the order of the resource's columns.
    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value>;

    /// The value of a selectable field other than `metadata.name` and `metadata.namespace`, or `None` if the field is not selectable.
    fn field(&self, _object: &Value, _path: &str) -> Option<String> {
        None
    }
}
