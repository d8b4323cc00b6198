//! One schema for everything the API server does with a body: decode, default, patch, apply, describe.
//!
//! Objects travel as `serde_json::Value`. The control plane's `api` calls this crate for every request; strategies use
//! [`names`] and [`selectors`]. It is pure: no IO, no clock, no async, and it knows nothing of HTTP or of the store.

pub mod apply;
pub mod decode;
pub mod defaults;
pub mod definition;
pub mod discovery;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod selectors;

pub use decode::{DecodeError, Decoded, conform, decode_applied, decode_json, decode_yaml};
pub use defaults::set_defaults;
pub use definition::{Definition, Field, ListType, Merge, Shape, definition, definition_of};
pub use protobuf::decode_protobuf;
