//! The walk: a serde visitor that carries the schema's shape and builds the value that upstream would have kept.
//!
//! A wrong type is remembered, not raised, so that the rest of the body is still checked for syntax and for its kind.

use std::fmt;

use base64::Engine;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::definition::{Definition, Empty, Field, Shape};
use crate::quantity;

/// Upstream stops counting there.
const MOST_PROBLEMS: usize = 100;

#[derive(Default)]
pub(super) struct State {
    pub problems: Vec<String>,
    /// The first wrong type.
    pub error: Option<String>,
    /// Empties stay, absent fields stay absent.
    as_written: bool,
    /// `spec.containers[0]`, for problems.
    path: String,
    /// `spec.containers`, for wrong types.
    go_path: Vec<&'static str>,
    /// The struct that holds the field at hand.
    holder: Option<&'static str>,
}

pub(super) struct Walk<'a> {
    target: Target<'a>,
    state: &'a mut State,
}

#[derive(Clone, Copy)]
enum Target<'a> {
    Root(&'a Definition),
    Field(&'a Field),
    Inner(&'a Shape),
}

impl<'a> Walk<'a> {
    pub fn root(definition: &'a Definition, state: &'a mut State) -> Self {
        Self { target: Target::Root(definition), state }
    }

    fn shape(&self) -> Option<&'a Shape> {
        match self.target {
            Target::Root(_) => None,
            Target::Field(field) => Some(&field.shape),
            Target::Inner(shape) => Some(shape),
        }
    }

    fn object(&self) -> Option<&'a Definition> {
        match self.target {
            Target::Root(definition) => Some(definition),
            _ => self.shape().and_then(Shape::object),
        }
    }

    /// Notes that `found` (Go's word for the JSON value) does not fit, and stands in with nothing.
    fn misfit(&mut self, found: &str) -> Value {
        let wanted = match self.target {
            Target::Root(definition) => definition.go_type().to_owned(),
            Target::Field(field) => field.go_type(),
            Target::Inner(shape) => shape.go_type(),
        };
        let error = match (self.shape(), self.state.holder) {
            (Some(Shape::Quantity), _) => quantity::SYNTAX.to_owned(),
            (Some(Shape::IntOrString), _) => format!("json: cannot unmarshal {found} into Go value of type int32"),
            (Some(Shape::Time | Shape::MicroTime), _) => {
                format!("json: cannot unmarshal {found} into Go value of type string")
            }
            (_, Some(holder)) => format!(
                "json: cannot unmarshal {found} into Go struct field {holder}.{} of type {wanted}",
                self.state.go_path.join(".")
            ),
            (_, None) => format!("json: cannot unmarshal {found} into Go value of type {wanted}"),
        };
        self.state.fail(error)
    }

    fn integer(&mut self, number: i128) -> Value {
        match self.shape() {
            Some(Shape::Int32) if i32::try_from(number).is_ok() => int(number),
            Some(Shape::Int64) if i64::try_from(number).is_ok() => int(number),
            Some(Shape::Int32 | Shape::Int64) => self.misfit(&format!("number {number}")),
            Some(Shape::IntOrString) if i32::try_from(number).is_ok() => int(number),
            Some(Shape::IntOrString) => self.misfit(&format!("number {number}")),
            Some(Shape::Float | Shape::Any) => int(number),
            Some(Shape::Quantity) => self.text(&number.to_string()),
            _ => self.misfit("number"),
        }
    }

    fn text(&mut self, text: &str) -> Value {
        match self.shape() {
            Some(Shape::String(_) | Shape::IntOrString | Shape::Any) => Value::from(text),
            Some(Shape::Quantity) => self.state.keep(quantity::canonical(text).map_err(str::to_owned)),
            Some(Shape::Time) => self.state.keep(time(text, false)),
            Some(Shape::MicroTime) => self.state.keep(time(text, true)),
            Some(Shape::Bytes) => self.state.keep(bytes(text)),
            _ => self.misfit("string"),
        }
    }
}

impl State {
    pub fn as_written() -> Self {
        Self { as_written: true, ..Self::default() }
    }

    fn fail(&mut self, error: String) -> Value {
        self.error.get_or_insert(error);
        Value::Null
    }

    fn keep(&mut self, text: Result<String, String>) -> Value {
        match text {
            Ok(text) => Value::from(text),
            Err(error) => self.fail(error),
        }
    }

    fn problem(&mut self, what: &str, key: &str) {
        let dot = if self.path.is_empty() { "" } else { "." };
        let text = format!("{what} field \"{}{dot}{key}\"", self.path);
        if self.problems.len() < MOST_PROBLEMS && !self.problems.contains(&text) {
            self.problems.push(text);
        }
    }

    /// Runs `inside` with the path one step longer.
    fn within<T>(&mut self, step: fmt::Arguments<'_>, inside: impl FnOnce(&mut Self) -> T) -> T {
        use fmt::Write;
        let length = self.path.len();
        let _ = self.path.write_fmt(step);
        let result = inside(self);
        self.path.truncate(length);
        result
    }

    fn within_key<T>(&mut self, key: &str, inside: impl FnOnce(&mut Self) -> T) -> T {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.within(format_args!("{dot}{key}"), inside)
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(mut self, value: bool) -> Result<Value, E> {
        Ok(match self.shape() {
            Some(Shape::Bool | Shape::Any) => Value::from(value),
            _ => self.misfit("bool"),
        })
    }

    fn visit_i64<E>(mut self, value: i64) -> Result<Value, E> {
        Ok(self.integer(value.into()))
    }

    fn visit_u64<E>(mut self, value: u64) -> Result<Value, E> {
        Ok(self.integer(value.into()))
    }

    fn visit_f64<E>(mut self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).map_or(Value::Null, Value::Number);
        Ok(match self.shape() {
            Some(Shape::Float | Shape::Any) => number,
            Some(Shape::Quantity) => self.text(&number.to_string()),
            Some(Shape::Int32 | Shape::Int64 | Shape::IntOrString) => self.misfit(&format!("number {number}")),
            _ => self.misfit("number"),
        })
    }

    fn visit_str<E>(mut self, value: &str) -> Result<Value, E> {
        Ok(self.text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let shape = match self.shape() {
            Some(Shape::List(item)) => item,
            Some(any @ Shape::Any) => any,
            _ => {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(self.misfit("array"));
            }
        };
        let mut list = Vec::new();
        loop {
            let index = list.len();
            let walk = |state: &mut State| items.next_element_seed(Walk { target: Target::Inner(shape), state });
            match self.state.within(format_args!("[{index}]"), walk)? {
                Some(item) => list.push(if item.is_null() { zero(shape) } else { item }),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, entries: A) -> Result<Value, A::Error> {
        if let Some(definition) = self.object() {
            return self.visit_object(definition, entries);
        }
        match self.shape() {
            Some(Shape::Map(shape)) => self.visit_entries(shape, entries),
            Some(any @ Shape::Any) => self.visit_entries(any, entries),
            _ => {
                let mut entries = entries;
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(self.misfit("object"))
            }
        }
    }
}

impl Walk<'_> {
    fn visit_entries<'de, A: MapAccess<'de>>(self, shape: &Shape, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) && *shape != Shape::Any {
                self.state.problem("duplicate", &key);
            }
            let walk = |state: &mut State| entries.next_value_seed(Walk { target: Target::Inner(shape), state });
            let value = self.state.within_key(&key, walk)?;
            map.insert(key, if value.is_null() { zero(shape) } else { value });
        }
        Ok(Value::Object(map))
    }

    fn visit_object<'de, A: MapAccess<'de>>(self, definition: &Definition, mut entries: A) -> Result<Value, A::Error> {
        let state = self.state;
        let mut object = Map::new();
        let mut seen: Vec<&str> = Vec::new();
        while let Some(key) = entries.next_key::<String>()? {
            let Some(field) = definition.field(&key) else {
                entries.next_value::<IgnoredAny>()?;
                state.problem("unknown", &key);
                continue;
            };
            if seen.contains(&field.name) {
                state.problem("duplicate", &key);
            }
            seen.push(field.name);
            let outer = state.holder.replace(definition.kind());
            state.go_path.push(field.name);
            let walk = |state: &mut State| entries.next_value_seed(Walk { target: Target::Field(field), state });
            let value = state.within_key(&key, walk)?;
            state.go_path.pop();
            state.holder = outer;
            if !value.is_null() {
                object.insert(key, value);
            }
        }
        if !state.as_written {
            settle(definition, &mut object);
        }
        Ok(Value::Object(object))
    }
}

/// Leaves out and fills in what Go's encoder would: empties of omitempty fields go, zero values of the others come.
fn settle(definition: &Definition, object: &mut Map<String, Value>) {
    for field in definition.fields() {
        match object.get(field.name) {
            // Sent empty, it asks that ownership be forgotten: `apply` has to see it.
            Some(_) if field.name == "managedFields" => {}
            Some(value) if !field.pointer && field.empty != Empty::Shown && is_empty(value, &field.shape) => {
                object.remove(field.name);
            }
            None => {
                if let Some(value) = absent(field) {
                    object.insert(field.name.to_owned(), value);
                }
            }
            Some(_) => {}
        }
    }
}

fn is_empty(value: &Value, shape: &Shape) -> bool {
    match (value, shape) {
        (_, Shape::IntOrString | Shape::Quantity | Shape::Any) => false,
        (Value::String(text), _) => text.is_empty(),
        (Value::Bool(given), _) => !given,
        (Value::Number(number), _) => number.as_f64() == Some(0.0),
        (Value::Array(items), _) => items.is_empty(),
        (Value::Object(map), Shape::Map(_)) => map.is_empty(),
        _ => false,
    }
}

/// What an absent field is shown as, if it is shown.
fn absent(field: &Field) -> Option<Value> {
    match (field.empty, &field.shape) {
        (Empty::OmittedZero, _) => None,
        (Empty::Shown, _) if field.pointer => Some(Value::Null),
        (Empty::Shown, Shape::List(_) | Shape::Map(_) | Shape::Bytes) => Some(Value::Null),
        (Empty::Shown, shape) => Some(zero(shape)),
        (Empty::Omitted, _) if field.pointer => None,
        (Empty::Omitted, shape) => match shape {
            Shape::Object(_) | Shape::Time | Shape::MicroTime | Shape::IntOrString | Shape::Quantity | Shape::Any => {
                Some(zero(shape))
            }
            _ => None,
        },
    }
}

/// Go's zero value of a type, as JSON.
fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::String(_) => Value::from(""),
        Shape::Quantity => Value::from("0"),
        Shape::Int32 | Shape::Int64 | Shape::Float | Shape::IntOrString => Value::from(0),
        Shape::Bool => Value::from(false),
        Shape::Object(id) => {
            let mut object = Map::new();
            settle(id.definition(), &mut object);
            Value::Object(object)
        }
        Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Any | Shape::List(_) | Shape::Map(_) => Value::Null,
    }
}

fn int(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(u64::try_from(number).unwrap_or(u64::MAX)), Value::from)
}

/// RFC 3339 in, UTC out, cut to seconds or microseconds.
fn time(text: &str, micro: bool) -> Result<String, String> {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let bare = || format!("parsing time \"{text}\" as \"{layout}\": cannot parse \"{text}\" as \"2006\"");
    if text.as_bytes().get(10).is_none_or(|byte| *byte != b'T') {
        return Err(bare());
    }
    let instant: jiff::Timestamp = text.parse().map_err(|_| bare())?;
    Ok(instant.strftime(if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" }).to_string())
}

/// Base64 as Go checks it; the text stays as it is when it is canonical.
fn bytes(text: &str) -> Result<String, String> {
    let compact: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    let engine = base64::engine::general_purpose::STANDARD;
    match engine.decode(&compact) {
        Ok(raw) => Ok(engine.encode(raw)),
        Err(base64::DecodeError::InvalidByte(at, _)) => Err(format!("illegal base64 data at input byte {at}")),
        Err(_) => Err(format!("illegal base64 data at input byte {}", compact.len() / 4 * 4)),
    }
}
