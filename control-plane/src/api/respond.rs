//! Answers: one object, a list, or a status, as JSON or YAML, whole, as metadata or as a table.
//!
//! Objects and lists are sent from the cached bytes; only tables, metadata and YAML are written anew.

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{
    media::{Accept, Format, View},
    object::Shared,
    query::Query,
    status::{Failure, Outcome},
    table,
};
use crate::resources::Resource;

/// Lists up to this size are sent in one piece.
const PIECE: usize = 256 * 1024;

/// What a list says about itself.
#[derive(Clone, Debug, Default)]
pub struct ListMeta {
    pub revision: String,
    pub proceed: String,
    pub remaining: Option<u64>,
}

impl ListMeta {
    pub fn value(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.revision});
        if !self.proceed.is_empty() {
            meta["continue"] = self.proceed.as_str().into();
        }
        if let Some(remaining) = self.remaining.filter(|n| *n > 0) {
            meta["remainingItemCount"] = remaining.into();
        }
        meta
    }
}

pub fn object(
    accept: Accept,
    query: &Query,
    resource: &Resource,
    item: &Shared,
    code: StatusCode,
) -> Outcome<Response<Body>> {
    match accept.view {
        View::Object => Ok(bytes(accept, code, item.bytes.clone())),
        View::Metadata { v1 } => Ok(bytes(accept, code, item.partial(v1).into())),
        View::Table { v1 } => {
            let meta = ListMeta { revision: item.revision.to_string(), ..ListMeta::default() };
            let table =
                table::table(resource, std::slice::from_ref(item), &meta.value(), query.get("includeObject"), v1)?;
            Ok(bytes(accept, code, table.into()))
        }
    }
}

pub fn list(
    accept: Accept,
    query: &Query,
    resource: &Resource,
    items: Vec<Shared>,
    meta: &ListMeta,
) -> Outcome<Response<Body>> {
    match accept.view {
        View::Table { v1 } => {
            let table = table::table(resource, &items, &meta.value(), query.get("includeObject"), v1)?;
            Ok(bytes(accept, StatusCode::OK, table.into()))
        }
        View::Metadata { v1 } => {
            let version = if v1 { "v1" } else { "v1beta1" };
            let head = list_head("PartialObjectMetadataList", &format!("meta.k8s.io/{version}"), meta);
            let parts = items.iter().map(|item| Bytes::from(item.partial(v1)));
            Ok(bytes(accept, StatusCode::OK, join(head, parts, b"")))
        }
        View::Object => {
            let head = list_head(&format!("{}List", resource.kind), &api_version(resource), meta);
            if accept.format == Format::Yaml || items.iter().map(|i| i.bytes.len()).sum::<usize>() < PIECE {
                return Ok(bytes(accept, StatusCode::OK, join(head, items.iter().map(|i| i.tail()), b"{")));
            }
            Ok(streamed(head, items))
        }
    }
}

/// A long list goes out piece by piece: never a second copy of the whole.
fn streamed(head: Vec<u8>, items: Vec<Shared>) -> Response<Body> {
    let state = (head, items.into_iter(), true);
    let pieces = stream::unfold(Some(state), |state| async move {
        let (head, mut items, mut first) = state?;
        let mut piece = BytesMut::from(&head[..]);
        while piece.len() < PIECE {
            let Some(item) = items.next() else {
                piece.put_slice(b"]}\n");
                return Some((Ok::<_, std::convert::Infallible>(piece.freeze()), None));
            };
            piece.put_slice(if std::mem::take(&mut first) { b"{" } else { b",{" });
            piece.put_slice(&item.tail());
        }
        Some((Ok(piece.freeze()), Some((Vec::new(), items, first))))
    });
    with_type(Body::from_stream(pieces), StatusCode::OK, "application/json")
}

fn list_head(kind: &str, version: &str, meta: &ListMeta) -> Vec<u8> {
    format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{},"items":["#, meta.value()).into_bytes()
}

fn join(head: Vec<u8>, parts: impl Iterator<Item = Bytes>, open: &[u8]) -> Bytes {
    let mut out = BytesMut::from(&head[..]);
    for (n, part) in parts.enumerate() {
        if n > 0 {
            out.put_u8(b',');
        }
        out.put_slice(open);
        out.put_slice(&part);
    }
    out.put_slice(b"]}\n");
    out.freeze()
}

pub fn api_version(resource: &Resource) -> String {
    match resource.group {
        "" => resource.version.to_owned(),
        group => format!("{group}/{}", resource.version),
    }
}

/// Any JSON document that is not kept.
pub fn value(accept: Accept, code: StatusCode, value: &Value) -> Response<Body> {
    bytes(accept, code, value.to_string().into())
}

/// JSON bytes in the asked format.
pub fn bytes(accept: Accept, code: StatusCode, json: Bytes) -> Response<Body> {
    match accept.format {
        Format::Json | Format::Protobuf => with_type(Body::from(json), code, "application/json"),
        Format::Yaml => match yaml(&json) {
            Ok(text) => with_type(Body::from(text), code, "application/yaml"),
            Err(failure) => failure.respond(),
        },
    }
}

fn yaml(json: &[u8]) -> Outcome<String> {
    let value: Value = serde_json::from_slice(json).map_err(Failure::internal)?;
    serde_norway::to_string(&value).map_err(Failure::internal)
}

pub fn with_type(body: Body, code: StatusCode, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// `Warning: 299 - "…"`, once per text.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
