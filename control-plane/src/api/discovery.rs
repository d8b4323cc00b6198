//! What is served: discovery in both forms, OpenAPI, and the keys of service account tokens.
//!
//! All of it follows from the resource table; documents are made when first asked for and kept.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock},
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use leme_schema::{
    discovery::{Row, SubRow},
    openapi,
};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    App,
    media::{self, Accept},
    query::Query,
    respond,
    status::{Failure, Outcome},
};
use crate::resources::Resource;

/// The documents that follow from the table.
pub struct Documents {
    rows: Vec<Row<'static>>,
    v2: OnceLock<Document>,
    v2_protobuf: OnceLock<Document>,
    v3: Mutex<HashMap<String, Option<Arc<Document>>>>,
}

struct Document {
    bytes: Bytes,
    hash: String,
}

impl From<openapi::Document> for Document {
    fn from(document: openapi::Document) -> Self {
        Self { bytes: document.bytes.into(), hash: document.hash }
    }
}

impl Documents {
    pub fn new(table: &'static [Resource]) -> Self {
        let rows = table.iter().map(row).collect();
        Self { rows, v2: OnceLock::new(), v2_protobuf: OnceLock::new(), v3: Mutex::default() }
    }

    fn v2(&self) -> &Document {
        self.v2.get_or_init(|| openapi::v2(&self.rows).into())
    }

    fn v2_protobuf(&self) -> &Document {
        self.v2_protobuf.get_or_init(|| openapi::v2_protobuf(&self.rows).into())
    }

    fn v3(&self, group: &str, version: &str) -> Option<Arc<Document>> {
        let path = openapi::document_path(group, version);
        let mut known = self.v3.lock().expect("no panic holds the lock");
        let make = || openapi::v3(&self.rows, group, version).map(|document| Arc::new(document.into()));
        known.entry(path).or_insert_with(make).clone()
    }
}

fn row(resource: &'static Resource) -> Row<'static> {
    let subresource = |s: &'static crate::resources::Subresource| SubRow { name: s.name, kind: s.kind, verbs: s.verbs };
    Row {
        group: resource.group,
        version: resource.version,
        kind: resource.kind,
        plural: resource.plural,
        singular: resource.singular,
        short: resource.short,
        categories: resource.categories,
        namespaced: resource.namespaced,
        verbs: resource.verbs,
        subresources: resource.subresources.iter().map(subresource).collect(),
    }
}

pub fn answer(app: &App, parts: &Parts, query: &Query) -> Outcome<Response<Body>> {
    let rows = &app.documents.rows;
    let address = SocketAddr::new(app.config.advertise, app.config.bind.port()).to_string();
    let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
    let aggregated = || aggregated(parts, rows, path[0] == "api");
    let document = match path[..] {
        [""] => Some(json!({"paths": paths(rows)})),
        ["api" | "apis"] if asks_aggregated(parts) => return Ok(aggregated()),
        ["api"] => Some(leme_schema::discovery::api_versions(&address)),
        ["apis"] => Some(leme_schema::discovery::api_group_list(rows)),
        ["api", version] => leme_schema::discovery::api_resource_list(rows, "", version),
        ["apis", group] => leme_schema::discovery::api_group(rows, group),
        ["apis", group, version] => leme_schema::discovery::api_resource_list(rows, group, version),
        ["openapi", "v2"] => return v2(app, parts),
        ["openapi", "v3"] => Some(openapi::index(rows, |group, version| {
            app.documents.v3(group, version).map(|d| d.hash.clone()).unwrap_or_default()
        })),
        ["openapi", "v3", "api", version] => return v3(app, parts, query, "", version),
        ["openapi", "v3", "apis", group, version] => return v3(app, parts, query, group, version),
        [".well-known", "openid-configuration"] => Some(app.authenticator.tokens.configuration()),
        ["openid", "v1", "jwks"] => {
            let keys = app.authenticator.tokens.jwks().to_string();
            return Ok(respond::with_type(Body::from(keys), StatusCode::OK, "application/jwk-set+json"));
        }
        _ => None,
    };
    let document = document.ok_or_else(Failure::unknown_path)?;
    let accept = media::accept(&parts.headers).unwrap_or(Accept::JSON);
    Ok(respond::value(accept, StatusCode::OK, &document))
}

fn paths(rows: &[Row<'_>]) -> Vec<String> {
    let mut paths: Vec<String> =
        ["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
            .map(Into::into)
            .into();
    for row in rows {
        paths.push(format!("/{}", openapi::document_path(row.group, row.version)));
        if !row.group.is_empty() {
            paths.push(format!("/apis/{}", row.group));
        }
    }
    paths.sort();
    paths.dedup();
    paths
}

const V2_FORMS: &[&str] = &["application/json", openapi::V2_PROTOBUF];
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

fn asks_aggregated(parts: &Parts) -> bool {
    let accept = parts.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|offer| {
        let has = |part: &str| offer.split(';').any(|p| p.trim() == part);
        has("as=APIGroupDiscoveryList") && has("v=v2") && has("g=apidiscovery.k8s.io") && has("application/json")
    })
}

fn aggregated(parts: &Parts, rows: &[Row<'_>], core: bool) -> Response<Body> {
    let document = leme_schema::discovery::aggregated(rows, core);
    let bytes = Bytes::from(document.to_string());
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02X}")).collect();
    tagged(parts, bytes, &hash, AGGREGATED)
}

/// In the first offered form that we have.
fn v2(app: &App, parts: &Parts) -> Outcome<Response<Body>> {
    let accept = parts.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    let form = |offer: &str| match offer.split(';').next()?.trim() {
        "" | "application/json" | "application/*" | "*/*" => Some((app.documents.v2(), "application/json")),
        openapi::V2_PROTOBUF | openapi::V2_PROTOBUF_ASKED => Some((app.documents.v2_protobuf(), openapi::V2_PROTOBUF)),
        _ => None,
    };
    let (document, media) = accept.split(',').find_map(form).ok_or_else(|| Failure::not_acceptable(V2_FORMS))?;
    Ok(tagged(parts, document.bytes.clone(), &document.hash, media))
}

fn v3(app: &App, parts: &Parts, query: &Query, group: &str, version: &str) -> Outcome<Response<Body>> {
    let document = app.documents.v3(group, version).ok_or_else(Failure::unknown_path)?;
    let asked = query.get("hash");
    if !asked.is_empty() && asked != document.hash {
        // The document has changed since the index was read: say where it is now.
        let path = openapi::document_path(group, version);
        let location = format!("/openapi/v3/{path}?hash={}", document.hash);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        if let Ok(location) = HeaderValue::from_str(&location) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        return Ok(response);
    }
    let mut response = tagged(parts, document.bytes.clone(), &document.hash, "application/json");
    if !asked.is_empty() {
        let forever = HeaderValue::from_static("public, immutable");
        response.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    Ok(response)
}

/// With an ETag; 304 for who has it already.
fn tagged(parts: &Parts, bytes: Bytes, hash: &str, content_type: &'static str) -> Response<Body> {
    let tag = format!("\"{hash}\"");
    let known = parts.headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
    let mut response = match known {
        true => respond::with_type(Body::empty(), StatusCode::NOT_MODIFIED, content_type),
        false => respond::with_type(Body::from(bytes), StatusCode::OK, content_type),
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}
