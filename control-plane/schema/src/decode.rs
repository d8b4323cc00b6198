//! Bodies become objects: one walk over the schema checks types, drops what is unknown, and leaves out what is empty.
//!
//! The walk reads straight from the parser (JSON, YAML, or a value after a patch), so it sees duplicate fields and the
//! order in which they were written. Called by the API for every body; it sets no defaults and validates nothing.

mod go_json;
mod walk;

use serde::de::DeserializeSeed;
use serde_json::Value;

use crate::definition::{Definition, definition_of};
use walk::{State, Walk};

/// An object that fits its schema.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// Unknown and duplicate fields, in upstream's words and in the order of the body: `unknown field "spec.foo"`.
    pub problems: Vec<String>,
}

/// Why a body is no object of its kind. The texts are upstream's; all are answered with 400.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DecodeError {
    #[error(
        "the object provided is unrecognized (must be of type {wanted}): couldn't get version/kind; json parse error: {cause} ({snippet})"
    )]
    Unrecognized { wanted: &'static str, cause: String, snippet: String },
    #[error("the object provided is unrecognized (must be of type {wanted}): {cause} ({snippet})")]
    NotProtobuf { wanted: &'static str, cause: String, snippet: String },
    #[error(
        "no kind \"{kind}\" is registered for version \"{api_version}\" in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\""
    )]
    Unregistered { kind: String, api_version: String },
    #[error("{kind} in version \"{version}\" cannot be handled as a {wanted}: {cause}")]
    Unfit { kind: String, version: String, wanted: &'static str, cause: String },
    #[error("the API version in the data ({found}) does not match the expected API version ({wanted})")]
    Version { found: String, wanted: String },
}

/// # Errors
/// Bad syntax, another kind, a field of the wrong type.
pub fn decode_json(definition: &Definition, body: &[u8]) -> Result<Decoded, DecodeError> {
    let mut parser = serde_json::Deserializer::from_slice(body);
    let mut state = State::default();
    let walked =
        Walk::root(definition, &mut state).deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
    let value = walked.map_err(|error| unrecognized(definition, go_json::syntax(&error, body), body))?;
    finish(definition, value, state)
}

/// # Errors
/// Bad syntax, another kind, a field of the wrong type.
pub fn decode_yaml(definition: &Definition, body: &[u8]) -> Result<Decoded, DecodeError> {
    let mut state = State::default();
    let walked = Walk::root(definition, &mut state).deserialize(serde_norway::Deserializer::from_slice(body));
    let value = walked.map_err(|error| unrecognized(definition, error.to_string(), body))?;
    finish(definition, value, state)
}

/// The same for a value that is already parsed: the result of a patch.
///
/// # Errors
/// Another kind, a field of the wrong type.
pub fn conform(definition: &Definition, value: Value) -> Result<Decoded, DecodeError> {
    let mut state = State::default();
    let walked = Walk::root(definition, &mut state).deserialize(value);
    let value = walked.map_err(|error| unrecognized(definition, error.to_string(), b""))?;
    finish(definition, value, state)
}

/// The same for a server-side apply's body: only what was written, nothing left out or filled in.
///
/// # Errors
/// Bad syntax, another kind, a field of the wrong type.
pub fn decode_applied(definition: &Definition, body: &[u8]) -> Result<Decoded, DecodeError> {
    let mut state = State::as_written();
    let walked = Walk::root(definition, &mut state).deserialize(serde_norway::Deserializer::from_slice(body));
    let value = walked.map_err(|error| unrecognized(definition, error.to_string(), body))?;
    finish(definition, value, state)
}

/// The message for a body whose problems are errors (`fieldValidation=Strict`).
pub fn strict_error(definition: &Definition, problems: &[String]) -> DecodeError {
    unfit(definition, format!("strict decoding error: {}", problems.join(", ")))
}

fn unrecognized(definition: &Definition, cause: String, body: &[u8]) -> DecodeError {
    DecodeError::Unrecognized { wanted: definition.kind(), cause, snippet: go_json::summary(body) }
}

pub(crate) fn not_protobuf(wanted: &'static str, cause: String, body: &[u8]) -> DecodeError {
    DecodeError::NotProtobuf { wanted, cause, snippet: go_json::summary(body) }
}

pub(crate) fn unfit(definition: &Definition, cause: String) -> DecodeError {
    DecodeError::Unfit {
        kind: definition.kind().to_owned(),
        version: definition.version().to_owned(),
        wanted: definition.kind(),
        cause,
    }
}

fn finish(definition: &Definition, value: Value, state: State) -> Result<Decoded, DecodeError> {
    expect_kind(definition, &value)?;
    match state.error {
        None => Ok(Decoded { value, problems: state.problems }),
        Some(cause) => Err(unfit(definition, cause)),
    }
}

/// A body may leave out its kind and version: the path tells them.
pub(crate) fn expect_kind(definition: &Definition, value: &Value) -> Result<(), DecodeError> {
    let versioned = definition.field("apiVersion").is_some() && definition.field("kind").is_some();
    if !versioned || definition.is_meta() {
        return Ok(());
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let wanted_version = definition.api_version();
    let api_version = text("apiVersion").unwrap_or(&wanted_version);
    let kind = text("kind").unwrap_or(definition.kind());
    if kind == definition.kind() && api_version == wanted_version {
        return Ok(());
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let found = definition_of(group, version, kind).filter(|found| found.group() == group);
    let cause = match found {
        Some(found) if kind == definition.kind() && found.group() == definition.group() => {
            return Err(DecodeError::Version { found: api_version.to_owned(), wanted: wanted_version });
        }
        Some(found) => format!(
            "converting ({}) to ({}.{}): unknown conversion",
            found.go_type(),
            definition.package(),
            definition.kind()
        ),
        None => format!(
            "no kind \"{kind}\" is registered for version \"{api_version}\" in scheme \
             \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\""
        ),
    };
    Err(DecodeError::Unfit { kind: kind.to_owned(), version: version.to_owned(), wanted: definition.kind(), cause })
}

#[cfg(test)]
mod tests;
