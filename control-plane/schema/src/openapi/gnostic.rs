//! The version 2 document in protobuf: `openapi.v2.Document` of gnostic, the only form in which kubectl asks for it.
//!
//! A message is a table from JSON key to field number and form. The tables hold what our documents say; the numbers are
//! those of gnostic's `OpenAPIv2.proto`. What a table does not name is a vendor extension if it starts with `x-`.

use serde_json::Value;

/// What it is called in answers.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What clients ask for: the older name, which is no valid media type.
pub const ASKED_AS: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The writer of one message.
type Write = fn(&Value) -> Vec<u8>;

enum Form {
    Text,
    Texts,
    Flag,
    Message(Write),
    Messages(Write),
}

/// JSON key, field number, form.
type Fields = &'static [(&'static str, u32, Form)];

const DOCUMENT: Fields = &[
    ("swagger", 1, Form::Text),
    ("info", 2, Form::Message(|info| record(info, INFO, 7))),
    ("paths", 8, Form::Message(|paths| named(paths, 2, path_item))),
    ("definitions", 9, Form::Message(properties)),
];
const INFO: Fields = &[("title", 1, Form::Text), ("version", 2, Form::Text), ("description", 3, Form::Text)];
const PATH_ITEM: Fields = &[
    ("get", 2, Form::Message(operation)),
    ("put", 3, Form::Message(operation)),
    ("post", 4, Form::Message(operation)),
    ("delete", 5, Form::Message(operation)),
    ("patch", 8, Form::Message(operation)),
    ("parameters", 9, Form::Messages(parameter)),
];
const OPERATION: Fields = &[
    ("tags", 1, Form::Texts),
    ("description", 3, Form::Text),
    ("operationId", 5, Form::Text),
    ("produces", 6, Form::Texts),
    ("consumes", 7, Form::Texts),
    ("parameters", 8, Form::Messages(parameter)),
    // A response stands in a choice of a response and a reference.
    ("responses", 9, Form::Message(|all| named(all, 1, |one| wrapped(1, &record(one, RESPONSE, 5))))),
];
const RESPONSE: Fields = &[("description", 1, Form::Text), ("schema", 2, Form::Message(one_schema))];
const BODY_PARAMETER: Fields = &[
    ("description", 1, Form::Text),
    ("name", 2, Form::Text),
    ("in", 3, Form::Text),
    ("required", 4, Form::Flag),
    ("schema", 5, Form::Message(schema)),
];
const QUERY_PARAMETER: Fields = &[
    ("required", 1, Form::Flag),
    ("in", 2, Form::Text),
    ("description", 3, Form::Text),
    ("name", 4, Form::Text),
    ("type", 6, Form::Text),
    ("uniqueItems", 20, Form::Flag),
];
const PATH_PARAMETER: Fields = &[
    ("required", 1, Form::Flag),
    ("in", 2, Form::Text),
    ("description", 3, Form::Text),
    ("name", 4, Form::Text),
    ("type", 5, Form::Text),
    ("uniqueItems", 19, Form::Flag),
];
const SCHEMA: Fields = &[
    ("$ref", 1, Form::Text),
    ("format", 2, Form::Text),
    ("title", 3, Form::Text),
    ("description", 4, Form::Text),
    ("default", 5, Form::Message(any)),
    ("required", 19, Form::Texts),
    ("enum", 20, Form::Messages(any)),
    ("additionalProperties", 21, Form::Message(one_schema)),
    ("type", 22, Form::Message(|name| wrapped(1, text(name).as_bytes()))),
    ("items", 23, Form::Message(one_schema)),
    ("allOf", 24, Form::Messages(schema)),
    ("properties", 25, Form::Message(properties)),
];

pub(super) fn document(value: &Value) -> Vec<u8> {
    record(value, DOCUMENT, 16)
}

fn path_item(value: &Value) -> Vec<u8> {
    record(value, PATH_ITEM, 10)
}

fn operation(value: &Value) -> Vec<u8> {
    record(value, OPERATION, 13)
}

fn schema(value: &Value) -> Vec<u8> {
    record(value, SCHEMA, 31)
}

/// A schema where gnostic has a choice or a list whose first field is one.
fn one_schema(value: &Value) -> Vec<u8> {
    wrapped(1, &schema(value))
}

fn properties(value: &Value) -> Vec<u8> {
    named(value, 1, schema)
}

/// Three choices one in the other: parameter or reference, body or not, where it stands.
fn parameter(value: &Value) -> Vec<u8> {
    let parameter = match text(&value["in"]) {
        "body" => wrapped(1, &record(value, BODY_PARAMETER, 6)),
        "path" => wrapped(2, &wrapped(4, &record(value, PATH_PARAMETER, 22))),
        _ => wrapped(2, &wrapped(3, &record(value, QUERY_PARAMETER, 23))),
    };
    wrapped(1, &parameter)
}

/// Any value travels as YAML; JSON is YAML.
fn any(value: &Value) -> Vec<u8> {
    wrapped(2, value.to_string().as_bytes())
}

/// An object as a message: its keys by their numbers, the `x-` ones under the number of vendor extensions.
fn record(value: &Value, fields: Fields, extensions: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        match fields.iter().find(|(name, ..)| name == key) {
            Some((_, number, form)) => put_field(&mut out, *number, form, value),
            None if key.starts_with("x-") => put(&mut out, extensions, &pair(key, &any(value))),
            None => debug_assert!(false, "{key} has no number in gnostic's message"),
        }
    }
    out
}

/// An object as pairs of names and messages, each under `number`.
fn named(value: &Value, number: u32, write: Write) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        put(&mut out, number, &pair(name, &write(value)));
    }
    out
}

fn pair(name: &str, message: &[u8]) -> Vec<u8> {
    let mut out = wrapped(1, name.as_bytes());
    put(&mut out, 2, message);
    out
}

fn put_field(out: &mut Vec<u8>, number: u32, form: &Form, value: &Value) {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    match form {
        Form::Text => put(out, number, text(value).as_bytes()),
        Form::Texts => items.iter().for_each(|item| put(out, number, text(item).as_bytes())),
        Form::Flag if value == &Value::Bool(true) => {
            put_varint(out, u64::from(number) << 3);
            out.push(1);
        }
        Form::Flag => {}
        Form::Message(write) => put(out, number, &write(value)),
        Form::Messages(write) => items.iter().for_each(|item| put(out, number, &write(item))),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn wrapped(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 4);
    put(&mut out, number, bytes);
    out
}

/// A field with a length: text or a message.
fn put(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number as u8) | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}
