//! Upstream's protobuf bodies as JSON values: clients generated from Go types (kubectl's own commands among them) send
//! nothing else for built-in kinds.
//!
//! An envelope (`k8s\0`, then `runtime.Unknown`) names the kind and holds the message. Shapes come from the schema, field
//! numbers from `protobuf.txt`. The result goes through the same `conform` as every other body; answers are JSON always.

use std::{collections::HashMap, sync::LazyLock};

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use leme_schema::{Definition, Shape};
use serde_json::{Map, Value, json};

const MAGIC: &[u8] = b"k8s\0";
/// Messages that nest deeper are an attack.
const DEPTH: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the body does not start with the protobuf envelope's magic number")]
    Magic,
    #[error("the protobuf message ends too early")]
    Truncated,
    #[error("the protobuf message nests too deeply")]
    Deep,
    #[error("{0} cannot be sent as protobuf")]
    Unsupported(String),
    #[error("a protobuf string is not UTF-8")]
    Text,
}

/// What stands behind a field number.
enum Slot {
    Field(&'static str),
    /// A message whose fields belong to the parent.
    Inline(&'static str),
}

impl Slot {
    #[cfg(test)]
    fn inlined(&self) -> Option<&'static str> {
        if let Self::Inline(name) = self { Some(name) } else { None }
    }
}

type Numbers = HashMap<u64, Slot>;

static NUMBERS: LazyLock<HashMap<&'static str, Numbers>> = LazyLock::new(|| {
    let lines = include_str!("protobuf.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).map(|(name, fields)| (name, numbers(fields))).collect()
});

fn numbers(fields: &'static str) -> Numbers {
    let mut last = 0;
    let slot = |word: &'static str| {
        let (name, number) = word.split_once('=').unwrap_or((word, ""));
        last = number.parse().unwrap_or(last + 1);
        (last, name.strip_prefix('+').map_or(Slot::Field(name), Slot::Inline))
    };
    fields.split(' ').map(slot).collect()
}

/// Reads an enveloped object of the wanted type.
pub fn decode(wanted: &'static Definition, body: &[u8]) -> Result<Value, Error> {
    let mut envelope = Reader(body.strip_prefix(MAGIC).ok_or(Error::Magic)?);
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((number, value)) = envelope.next()? {
        match (number, value) {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, value)) = meta.next()? {
                    match (number, value) {
                        (1, Wire::Bytes(text)) => version = string(text)?,
                        (2, Wire::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    // Another kind's message would be read with the wrong numbers: its name alone is enough for the refusal.
    let mut object = if kind.is_empty() || kind == wanted.kind() { message(wanted, raw)? } else { Map::new() };
    for (key, text) in [("apiVersion", version), ("kind", kind)] {
        if !text.is_empty() {
            object.insert(key.into(), text.into());
        }
    }
    Ok(object.into())
}

fn message(definition: &'static Definition, bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    let mut object = Map::new();
    fill(definition, definition.short(), bytes, &mut object, DEPTH)?;
    Ok(object)
}

/// Adds the fields of the message `name` to an object of type `definition`.
fn fill(
    definition: &'static Definition,
    name: &str,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Error> {
    let depth = depth.checked_sub(1).ok_or(Error::Deep)?;
    let numbers = NUMBERS.get(name).ok_or_else(|| Error::Unsupported(name.to_owned()))?;
    let mut reader = Reader(bytes);
    while let Some((number, value)) = reader.next()? {
        match (numbers.get(&number), value) {
            (Some(Slot::Inline(inner)), Wire::Bytes(bytes)) => fill(definition, inner, bytes, object, depth)?,
            (Some(Slot::Field(field)), value) => {
                if let Some(field) = definition.field(field) {
                    put(object, field.name, &field.shape, value, depth)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn put(object: &mut Map<String, Value>, name: &str, shape: &Shape, value: Wire<'_>, depth: usize) -> Result<(), Error> {
    match shape {
        Shape::List(item) => {
            let list = object.entry(name).or_insert_with(|| json!([]));
            let Value::Array(items) = list else { return Ok(()) };
            match (&**item, value) {
                // Numbers may come packed.
                (Shape::Int32 | Shape::Int64, Wire::Bytes(packed)) => {
                    let mut packed = Reader(packed);
                    while !packed.0.is_empty() {
                        items.push((packed.varint()? as i64).into());
                    }
                }
                (item, value) => items.push(convert(item, value, depth)?),
            }
        }
        Shape::Map(item) => {
            let Wire::Bytes(entry) = value else { return Ok(()) };
            let (key, value) = entry_of(item, entry, depth)?;
            if let Value::Object(map) = object.entry(name).or_insert_with(|| json!({})) {
                map.insert(key, value);
            }
        }
        shape => {
            let value = convert(shape, value, depth)?;
            object.insert(name.to_owned(), value);
        }
    }
    Ok(())
}

fn entry_of(shape: &Shape, entry: &[u8], depth: usize) -> Result<(String, Value), Error> {
    let mut reader = Reader(entry);
    let mut key = String::new();
    let mut value = convert(shape, Wire::Bytes(&[]), depth)?;
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(text)) => key = string(text)?,
            (2, wire) => value = convert(shape, wire, depth)?,
            _ => {}
        }
    }
    Ok((key, value))
}

fn convert(shape: &Shape, value: Wire<'_>, depth: usize) -> Result<Value, Error> {
    Ok(match (shape, value) {
        (Shape::Bool, Wire::Number(number)) => (number != 0).into(),
        (Shape::Int32 | Shape::Int64, Wire::Number(number)) => (number as i64).into(),
        (Shape::Float, Wire::Number(bits)) => json!(f64::from_bits(bits)),
        (Shape::String(_), Wire::Bytes(text)) => string(text)?.into(),
        (Shape::Bytes, Wire::Bytes(bytes)) => BASE64_STANDARD.encode(bytes).into(),
        (Shape::Time | Shape::MicroTime, Wire::Bytes(bytes)) => time(shape, bytes)?,
        (Shape::Quantity, Wire::Bytes(bytes)) => first_text(bytes)?.into(),
        (Shape::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Shape::Any, Wire::Bytes(bytes)) => raw_json(bytes)?,
        (Shape::Object(id), Wire::Bytes(bytes)) => {
            let definition = id.definition();
            let mut object = Map::new();
            fill(definition, definition.short(), bytes, &mut object, depth)?;
            object.into()
        }
        // A list as a map's value is a message of its own, with its items under the first number.
        (Shape::List(item), Wire::Bytes(bytes)) => {
            let mut items = Vec::new();
            let mut reader = Reader(bytes);
            while let Some((number, wire)) = reader.next()? {
                if number == 1 {
                    items.push(convert(item, wire, depth)?);
                }
            }
            items.into()
        }
        _ => Value::Null,
    })
}

/// Seconds and nanoseconds; an empty message is no time at all.
fn time(shape: &Shape, bytes: &[u8]) -> Result<Value, Error> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Number(n)) => seconds = n as i64,
            (2, Wire::Number(n)) => nanos = n as i32,
            _ => {}
        }
    }
    let Some(time) = (!bytes.is_empty()).then(|| Timestamp::new(seconds, nanos).ok()).flatten() else {
        return Ok(Value::Null);
    };
    let format = if *shape == Shape::MicroTime { "%Y-%m-%dT%H:%M:%S%.6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(time.strftime(format).to_string().into())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Error> {
    let (mut text, mut number, mut is_text) = (String::new(), 0, false);
    let mut reader = Reader(bytes);
    while let Some((field, wire)) = reader.next()? {
        match (field, wire) {
            (1, Wire::Number(kind)) => is_text = kind == 1,
            (2, Wire::Number(n)) => number = n as i64,
            (3, Wire::Bytes(bytes)) => text = string(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

fn first_text(bytes: &[u8]) -> Result<String, Error> {
    match Reader(bytes).next()? {
        Some((1, Wire::Bytes(text))) => string(text),
        _ => Ok(String::new()),
    }
}

/// Field sets and extensions carry JSON.
fn raw_json(bytes: &[u8]) -> Result<Value, Error> {
    match Reader(bytes).next()? {
        Some((1, Wire::Bytes(raw))) => Ok(serde_json::from_slice(raw).unwrap_or(Value::Null)),
        _ => Ok(Value::Null),
    }
}

fn string(bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Text)
}

enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Reads fields off a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Error::Truncated)?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error::Truncated)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Number(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| Error::Truncated)?).into()),
            _ => return Err(Error::Truncated),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Error::Truncated)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use leme_schema::definition;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    }

    fn envelope(kind: &str, message: &[u8]) -> Vec<u8> {
        let meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, message)].concat()
    }

    #[test]
    fn a_message_becomes_the_object_that_json_would_have_been() {
        let metadata = [field(1, b"a"), field(11, &[field(1, b"k"), field(2, b"v")].concat())].concat();
        let body = envelope(
            "ConfigMap",
            &[field(1, &metadata), field(2, &[field(1, b"x"), field(2, b"y")].concat())].concat(),
        );
        let value = decode(definition("core.v1.ConfigMap").unwrap(), &body).unwrap();
        let want = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"k": "v"}}, "data": {"x": "y"},
        });
        assert_eq!(value, want);
    }

    #[test]
    fn inlined_messages_ports_and_times_are_read() {
        let port =
            [field(1, b"http"), vec![3 << 3, 80], field(4, &[vec![1 << 3, 1], field(3, b"web")].concat())].concat();
        let metadata = field(8, &[1 << 3, 60]);
        let body = envelope("Service", &[field(1, &metadata), field(2, &field(1, &port))].concat());
        let value = decode(definition("core.v1.Service").unwrap(), &body).unwrap();
        assert_eq!(value["spec"]["ports"], json!([{"name": "http", "port": 80, "targetPort": "web"}]));
        assert_eq!(value["metadata"]["creationTimestamp"], "1970-01-01T00:01:00Z");
        let secret = field(6, &field(1, b"s"));
        let volume = [field(1, b"v"), field(2, &secret)].concat();
        let body = envelope("Pod", &field(2, &field(1, &volume)));
        let value = decode(definition("core.v1.Pod").unwrap(), &body).unwrap();
        assert_eq!(value["spec"]["volumes"], json!([{"name": "v", "secret": {"secretName": "s"}}]));
    }

    #[test]
    fn broken_messages_are_errors_and_never_panics() {
        let pod = definition("core.v1.Pod").unwrap();
        for body in [
            &b""[..],
            b"k8s\0\x12",
            b"k8s\0\x12\x7f\x01",
            b"{}",
            b"k8s\0\x12\x0b\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert!(decode(pod, body).is_err() || body == b"k8s\0", "{body:?}");
        }
    }

    #[test]
    fn every_type_in_the_table_is_in_the_schema() {
        let inlined: Vec<&str> = NUMBERS.values().flat_map(HashMap::values).filter_map(Slot::inlined).collect();
        for name in NUMBERS.keys().filter(|name| !inlined.contains(name)) {
            assert!(definition(name).is_some(), "{name}");
        }
    }

    #[test]
    fn every_served_kind_can_be_read() {
        for resource in crate::resources::table() {
            assert!(NUMBERS.contains_key(definition(resource.schema).unwrap().short()), "{}", resource.schema);
        }
    }
}
