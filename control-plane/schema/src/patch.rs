//! The patches of a PATCH request: JSON patch, merge patch and strategic merge patch, on JSON values.
//!
//! The API applies one to the stored object and gives the result to [`crate::conform`]. Server-side apply is [`crate::apply`].

mod strategic;

use serde_json::Value;

pub use strategic::strategic_merge;

/// The texts are upstream's.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is none: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not apply to this object: 422.
    #[error("{0}")]
    Inapplicable(String),
}

/// Upstream refuses longer ones.
const MOST_OPERATIONS: usize = 10_000;

/// # Errors
/// `ops` is no list of operations, or one does not apply.
pub fn json_patch(doc: &mut Value, ops: &[u8]) -> Result<(), PatchError> {
    let patch: json_patch::Patch =
        serde_json::from_slice(ops).map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    if patch.0.len() > MOST_OPERATIONS {
        let count = patch.0.len();
        let text = format!("The allowed maximum operations in a JSON patch is {MOST_OPERATIONS}, got {count}");
        return Err(PatchError::Malformed(text));
    }
    json_patch::patch(doc, &patch).map_err(|_| {
        PatchError::Inapplicable("the server rejected our request due to an error in our request".to_owned())
    })
}

/// RFC 7386.
///
/// # Errors
/// The patch is no object.
pub fn merge_patch(doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("error decoding patch: Invalid JSON Patch".to_owned()));
    }
    json_patch::merge(doc, patch);
    Ok(())
}

/// Drops nulls and then empty objects and lists, from the inside out: what two answers must agree on.
pub fn prune_empty(value: &mut Value) {
    let hollow = |value: &mut Value| {
        prune_empty(value);
        value.is_null()
            || value.as_object().is_some_and(|map| map.is_empty())
            || value.as_array().is_some_and(Vec::is_empty)
    };
    match value {
        Value::Object(map) => map.retain(|_, value| !hollow(value)),
        Value::Array(items) => items.iter_mut().for_each(prune_empty),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
