//! Bodies in upstream's protobuf become the values that JSON would have brought.
//!
//! kubectl's own commands and clients generated from Go send built-in kinds so: the magic number, an envelope that names
//! the kind, and in it the message. Field numbers stand beside the shapes in `fields.txt`, so one walk reads every kind;
//! what it reads goes through `conform` like a patched object. Unknown numbers are skipped, as protobuf wants it. Called
//! by the API for bodies; it never writes protobuf.

mod wire;

use base64::Engine;
use serde_json::{Map, Value, json};

use crate::decode::{DecodeError, Decoded, conform, expect_kind, not_protobuf, unfit};
use crate::definition::{Definition, Field, Shape, definition, definition_of};
use wire::{Malformed, Message, Wire};

const MAGIC: &[u8] = b"k8s\0";
/// Deeper messages are refused; no kind comes near it.
const MOST_DEPTH: usize = 64;
/// `IntOrString.type` of a string.
const IS_STRING: u64 = 1;

/// An object of any kind, and the kind that its body claims.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    pub api_version: String,
    pub kind: String,
    pub value: Value,
}

/// `runtime.Unknown`: a message and what it says of itself.
#[derive(Default)]
struct Unknown<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
}

/// Reads a body that shall hold an object of that type.
///
/// # Errors
/// No protobuf, a broken message, another kind, a value that does not fit.
pub fn decode_protobuf(definition: &Definition, body: &[u8]) -> Result<Decoded, DecodeError> {
    let unknown = open(definition.kind(), body)?;
    let mut object = Map::new();
    unknown.name(&mut object);
    let head = Value::Object(object);
    expect_kind(definition, &head)?;
    let mut value = read_object(definition, unknown.raw, 0).map_err(|error| unfit(definition, error.to_string()))?;
    for (key, said) in head.as_object().into_iter().flatten() {
        value[key] = said.clone();
    }
    conform(definition, value)
}

/// Reads a body of whatever kind its envelope names; lists of kinds as well.
///
/// # Errors
/// No protobuf, a kind that is not known, a broken message, a value that does not fit.
pub fn decode(body: &[u8]) -> Result<Envelope, DecodeError> {
    let unknown = open("Unknown", body)?;
    let value = match unknown.definition() {
        Some(definition) => decode_protobuf(definition, body)?.value,
        None => unknown.read_list()?,
    };
    Ok(Envelope { api_version: unknown.api_version, kind: unknown.kind, value })
}

fn open<'a>(wanted: &'static str, body: &'a [u8]) -> Result<Unknown<'a>, DecodeError> {
    Unknown::read(body).map_err(|error| not_protobuf(wanted, error.to_string(), body))
}

impl<'a> Unknown<'a> {
    fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let message = match body.strip_prefix(MAGIC) {
            None if body.is_empty() => return Err(Malformed::EmptyData),
            None => return Err(Malformed::Magic),
            Some([]) => return Err(Malformed::EmptyBody),
            Some(message) => message,
        };
        let mut unknown = Self::default();
        for field in Message(message) {
            match field? {
                (1, Wire::Bytes(meta)) => unknown.read_type(meta)?,
                (2, Wire::Bytes(raw)) => unknown.raw = raw,
                _ => {}
            }
        }
        Ok(unknown)
    }

    fn read_type(&mut self, meta: &[u8]) -> Result<(), Malformed> {
        for field in Message(meta) {
            match field? {
                (1, Wire::Bytes(said)) => self.api_version = text(said),
                (2, Wire::Bytes(said)) => self.kind = text(said),
                _ => {}
            }
        }
        Ok(())
    }

    fn group_version(&self) -> (&str, &str) {
        self.api_version.split_once('/').unwrap_or(("", &self.api_version))
    }

    /// Bodies of `meta.k8s.io` come under any API version.
    fn definition(&self) -> Option<&'static Definition> {
        let (group, version) = self.group_version();
        definition_of(group, version, &self.kind).or_else(|| definition(&format!("meta.v1.{}", self.kind)))
    }

    fn name(&self, object: &mut Map<String, Value>) {
        for (key, said) in [("apiVersion", &self.api_version), ("kind", &self.kind)] {
            if !said.is_empty() {
                object.insert(key.to_owned(), said.as_str().into());
            }
        }
    }

    /// Lists are no types of the schema: all of them have metadata under 1 and items under 2.
    fn read_list(&self) -> Result<Value, DecodeError> {
        let (group, version) = self.group_version();
        let item = self.kind.strip_suffix("List").and_then(|kind| definition_of(group, version, kind));
        let meta = definition("meta.v1.ListMeta");
        let (Some(item), Some(meta)) = (item, meta) else {
            return Err(DecodeError::Unregistered { kind: self.kind.clone(), api_version: self.api_version.clone() });
        };
        let broken = |error: Malformed| unfit(item, error.to_string());
        let (mut metadata, mut items) = (json!({}), Vec::new());
        for field in Message(self.raw) {
            match field.map_err(broken)? {
                (1, Wire::Bytes(bytes)) => {
                    metadata = conform(meta, read_object(meta, bytes, 0).map_err(broken)?)?.value
                }
                (2, Wire::Bytes(bytes)) => {
                    items.push(conform(item, read_object(item, bytes, 0).map_err(broken)?)?.value)
                }
                _ => {}
            }
        }
        Ok(json!({"apiVersion": self.api_version, "kind": self.kind, "metadata": metadata, "items": items}))
    }
}

fn read_object(definition: &Definition, message: &[u8], depth: usize) -> Result<Value, Malformed> {
    let mut object = Map::new();
    read_fields(definition, &[], message, &mut object, depth)?;
    Ok(Value::Object(object))
}

/// Reads a message into an object. `prefix` are the numbers of the messages around it that JSON flattens.
fn read_fields(
    definition: &Definition,
    prefix: &[u32],
    message: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Malformed> {
    if depth > MOST_DEPTH {
        return Err(Malformed::Deep);
    }
    for field in Message(message) {
        let (number, wire) = field?;
        let path = [prefix, &[number]].concat();
        match (definition.fields().iter().find(|field| field.number.starts_with(&path)), wire) {
            (Some(field), wire) if field.number.len() == path.len() => put(field, wire, object, depth)?,
            (Some(_), Wire::Bytes(inner)) => read_fields(definition, &path, inner, object, depth + 1)?,
            (Some(field), wire) => return Err(wire.misfit(field.name)),
            (None, _) => {}
        }
    }
    Ok(())
}

/// A field may come again: lists and maps grow, messages merge, the last of anything else counts.
fn put(field: &Field, wire: Wire<'_>, object: &mut Map<String, Value>, depth: usize) -> Result<(), Malformed> {
    let value = object.entry(field.name).or_insert(Value::Null);
    match (&field.shape, wire) {
        (Shape::Map(shape), Wire::Bytes(entry)) => {
            let (key, item) = read_entry(shape, entry, field.name, depth)?;
            value[key] = item;
        }
        (Shape::List(shape), wire) if field.is_repeated() => {
            let items = wire.unpacked(shape)?.into_iter().map(|item| read(shape, item, field.name, depth));
            let items = items.collect::<Result<Vec<_>, _>>()?;
            match value {
                Value::Array(list) => list.extend(items),
                _ => *value = items.into(),
            }
        }
        (Shape::Object(id), Wire::Bytes(message)) if value.is_object() => {
            let inner = value.as_object_mut().expect("just asked");
            read_fields(id.definition(), &[], message, inner, depth + 1)?;
        }
        (shape, wire) => *value = read(shape, wire, field.name, depth)?,
    }
    Ok(())
}

fn read_entry(shape: &Shape, entry: &[u8], name: &'static str, depth: usize) -> Result<(String, Value), Malformed> {
    let (mut key, mut value) = (String::new(), None);
    for field in Message(entry) {
        match field? {
            (1, Wire::Bytes(said)) => key = text(said),
            (2, wire) => value = Some(read(shape, wire, name, depth)?),
            _ => {}
        }
    }
    // A missing value is an empty one.
    value.map_or_else(|| read(shape, Wire::Bytes(&[]), name, depth), Ok).map(|value| (key, value))
}

fn read(shape: &Shape, wire: Wire<'_>, name: &'static str, depth: usize) -> Result<Value, Malformed> {
    Ok(match (shape, wire) {
        (Shape::Bool, Wire::Varint(number)) => (number != 0).into(),
        // Go keeps the low half of what is too long for it.
        (Shape::Int32, Wire::Varint(number)) => (number as i32).into(),
        (Shape::Int64, Wire::Varint(number)) => number.cast_signed().into(),
        (Shape::Float, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
        (Shape::String(_), Wire::Bytes(bytes)) => text(bytes).into(),
        (Shape::Bytes, Wire::Bytes(bytes)) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        (Shape::Quantity, Wire::Bytes(message)) => text(only_bytes(message)?).into(),
        (Shape::Time, Wire::Bytes(message)) => read_time(message, "%Y-%m-%dT%H:%M:%SZ")?,
        (Shape::MicroTime, Wire::Bytes(message)) => read_time(message, "%Y-%m-%dT%H:%M:%S.%6fZ")?,
        (Shape::IntOrString, Wire::Bytes(message)) => read_int_or_string(message)?,
        (Shape::Any, Wire::Bytes(message)) => read_any(name, message, depth)?,
        (Shape::Object(id), Wire::Bytes(message)) => read_object(id.definition(), message, depth + 1)?,
        // A Go list type with a name of its own (`ExtraValue`) is a message of items.
        (Shape::List(shape), Wire::Bytes(message)) => read_items(shape, message, name, depth)?,
        (_, wire) => return Err(wire.misfit(name)),
    })
}

fn read_items(shape: &Shape, message: &[u8], name: &'static str, depth: usize) -> Result<Value, Malformed> {
    let mut items = Vec::new();
    for field in Message(message) {
        if let (1, wire) = field? {
            items.push(read(shape, wire, name, depth)?);
        }
    }
    Ok(items.into())
}

/// Seconds and nanoseconds. No bytes at all are Go's zero time, which JSON shows as null.
fn read_time(message: &[u8], format: &str) -> Result<Value, Malformed> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in Message(message) {
        match field? {
            (1, Wire::Varint(number)) => seconds = number.cast_signed(),
            (2, Wire::Varint(number)) => nanos = number as i32,
            _ => {}
        }
    }
    if message.is_empty() {
        return Ok(Value::Null);
    }
    let instant = jiff::Timestamp::new(seconds, nanos).map_err(|_| Malformed::Time)?;
    Ok(instant.strftime(format).to_string().into())
}

fn read_int_or_string(message: &[u8]) -> Result<Value, Malformed> {
    let (mut is_string, mut int, mut string) = (false, 0, String::new());
    for field in Message(message) {
        match field? {
            (1, Wire::Varint(number)) => is_string = number == IS_STRING,
            (2, Wire::Varint(number)) => int = number as i32,
            (3, Wire::Bytes(bytes)) => string = text(bytes),
            _ => {}
        }
    }
    Ok(if is_string { string.into() } else { int.into() })
}

/// What has no schema here carries JSON. Not so the alternatives in `apiextensions.v1.JSONSchemaProps`, known by their
/// fields, and `CustomResourceSubresources.status`, which is there or not.
fn read_any(name: &str, message: &[u8], depth: usize) -> Result<Value, Malformed> {
    match name {
        "items" => {
            read_either(message, depth, |number| if number == 1 { Alternative::Schema } else { Alternative::Schemas })
        }
        "additionalProperties" | "additionalItems" => {
            read_either(message, depth, |number| if number == 1 { Alternative::Allows } else { Alternative::Schema })
        }
        "dependencies" => {
            read_either(message, depth, |number| if number == 1 { Alternative::Schema } else { Alternative::Names })
        }
        "status" => Ok(json!({})),
        _ => read_raw(only_bytes(message)?),
    }
}

enum Alternative {
    Schema,
    Schemas,
    Allows,
    Names,
}

fn read_either(message: &[u8], depth: usize, alternative: impl Fn(u32) -> Alternative) -> Result<Value, Malformed> {
    let schema = definition("apiextensions.v1.JSONSchemaProps").ok_or(Malformed::Tag)?;
    let mut value = Value::Null;
    for field in Message(message) {
        let (number, wire) = field?;
        let list = value.as_array().cloned().unwrap_or_default();
        match (alternative(number), wire) {
            (Alternative::Schema, Wire::Bytes(bytes)) => value = read_object(schema, bytes, depth + 1)?,
            (Alternative::Schemas, Wire::Bytes(bytes)) => {
                value = [list, vec![read_object(schema, bytes, depth + 1)?]].concat().into();
            }
            (Alternative::Names, Wire::Bytes(bytes)) => value = [list, vec![text(bytes).into()]].concat().into(),
            (Alternative::Allows, Wire::Varint(number)) => value = (number != 0).into(),
            _ => {}
        }
    }
    Ok(value)
}

fn read_raw(raw: &[u8]) -> Result<Value, Malformed> {
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(raw).map_err(|error| Malformed::Extension(error.to_string()))
}

/// The bytes of a message of one field: a quantity's text, an extension's JSON.
fn only_bytes(message: &[u8]) -> Result<&[u8], Malformed> {
    let mut only: &[u8] = &[];
    for field in Message(message) {
        if let (1, Wire::Bytes(bytes)) = field? {
            only = bytes;
        }
    }
    Ok(only)
}

/// Go does not look whether a string is UTF-8 until it writes JSON, and then replaces what is not.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
