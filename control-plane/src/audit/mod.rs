//! Who did what, when, and what came of it: `audit.k8s.io/v1` events in a file, as the policy wants them.
//!
//! `api::handle` keeps a [`Trail`] beside each request. Without a policy there is none, and nothing is spent.

mod log;
mod policy;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use anyhow::Result;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Collected};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde_json::{Map, Value, json};

pub use log::Limits;
use log::Log;
use policy::{Level, Policy, Stage, Wish};

use crate::{
    api::{
        media::{Format, body_format},
        object::text,
        path::Target,
        status::Failure,
    },
    auth::{User, attributes::Attributes, authenticate::user_info, authorize::Decision},
    resources::Resource,
    server::Peer,
};

/// What `--audit-…` says.
#[derive(Clone, Debug)]
pub struct Options {
    pub policy: PathBuf,
    /// `-`: standard output.
    pub log: PathBuf,
    pub limits: Limits,
}

/// What the metrics show of it.
#[derive(Clone, Default)]
pub struct Counters {
    pub events: Counter,
    pub lost: Counter,
}

pub struct Audit {
    policy: Policy,
    log: Log,
    counters: Counters,
}

impl Audit {
    pub fn open(options: &Options, counters: Counters) -> Result<Arc<Self>> {
        let policy = Policy::read(&options.policy)?;
        let log = Log::open(&options.log, options.limits.clone(), counters.lost.clone())?;
        Ok(Arc::new(Self { policy, log, counters }))
    }

    /// Returns when everything so far is in the file.
    pub async fn flush(&self) {
        self.log.flush().await;
    }
}

/// What is known of one request so far.
pub struct Trail {
    audit: Arc<Audit>,
    method: Method,
    path: String,
    target: Option<Target>,
    /// `None` until it is known who asks.
    wish: Option<Wish>,
    event: Map<String, Value>,
}

impl Trail {
    pub fn begin(audit: Arc<Audit>, request: &Request<Body>, target: Option<&Target>) -> Self {
        let mut event = Map::new();
        let mut set = |key: &str, value: Value| event.insert(key.to_owned(), value);
        set("kind", "Event".into());
        set("apiVersion", "audit.k8s.io/v1".into());
        set("auditID", id(request.headers()).into());
        set("requestURI", uri(request.uri()).into());
        set("requestReceivedTimestamp", now());
        let sources = sources(request);
        if !sources.is_empty() {
            set("sourceIPs", sources.into());
        }
        if let Some(agent) = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok()) {
            set("userAgent", agent.into());
        }
        if let Some(reference) = target.map(reference) {
            set("objectRef", reference);
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        Self { audit, method, path, target: target.cloned(), wish: None, event }
    }

    /// Who asks: now the policy can say how much it wants.
    pub async fn identify(&mut self, user: &User) {
        self.judge(user);
        self.tell(Stage::RequestReceived).await;
    }

    fn judge(&mut self, user: &User) {
        let request = match &self.target {
            Some(target) => Attributes::resource(user, target),
            None => Attributes::path(user, &self.method, &self.path),
        };
        self.event.insert("verb".into(), request.verb.into());
        self.event.insert("user".into(), user_info(user));
        self.wish = Some(self.audit.policy.wish(&request));
    }

    pub fn impersonate(&mut self, user: &User) {
        self.event.insert("impersonatedUser".into(), user_info(user));
    }

    pub fn decide(&mut self, decision: &Decision) {
        let word = if decision.allowed { "allow" } else { "forbid" };
        let annotations =
            json!({"authorization.k8s.io/decision": word, "authorization.k8s.io/reason": decision.reason});
        self.event.insert("annotations".into(), annotations);
    }

    /// Whether the body is of interest: for the name of what is created, too.
    pub fn wants_body(&self) -> bool {
        self.level() >= Level::Metadata && !matches!(self.method, Method::GET | Method::HEAD)
    }

    pub fn receive(&mut self, headers: &HeaderMap, body: &Bytes) {
        let Some(object) = object(headers, self.target.as_ref(), body) else { return };
        if self.target.as_ref().is_some_and(|target| target.verb == "create") {
            self.complete_reference(&object);
        }
        if self.level() >= Level::Request {
            let object = self.trimmed(object);
            self.event.insert("requestObject".into(), object);
        }
    }

    /// A new object's name stands in its body only.
    fn complete_reference(&mut self, object: &Value) {
        let Some(reference) = self.event.get_mut("objectRef") else { return };
        for key in ["namespace", "name", "uid", "resourceVersion"] {
            let value = text(object, &["metadata", key]);
            if !value.is_empty() && text(reference, &[key]).is_empty() {
                reference[key] = value.into();
            }
        }
    }

    /// Records the answer, at once or, if it lasts, when it ends.
    pub async fn end(mut self, lasts: bool, outcome: Result<Response<Body>, Failure>) -> Response<Body> {
        if self.wish.is_none() {
            // Nobody that is known: upstream tells so at this stage.
            self.judge(&User::default());
            let failure = outcome.as_ref().err();
            let status = failure.map_or_else(|| json!({"metadata": {}}), |failure| status(failure.status()));
            self.event.insert("responseStatus".into(), status);
            self.tell(Stage::ResponseStarted).await;
            return outcome.unwrap_or_else(|failure| failure.respond());
        }
        if self.level() == Level::None {
            return outcome.unwrap_or_else(|failure| failure.respond());
        }
        match outcome {
            Err(failure) => {
                self.event.insert("responseStatus".into(), status(failure.status()));
                if self.level() == Level::RequestResponse {
                    self.event.insert("responseObject".into(), failure.status());
                }
                self.tell(Stage::ResponseComplete).await;
                failure.respond()
            }
            Ok(response) => {
                let code = response.status().as_u16();
                self.event.insert("responseStatus".into(), json!({"metadata": {}, "code": code}));
                if lasts || response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    self.tell(Stage::ResponseStarted).await;
                    let open = Open(self);
                    let follow = move |frame| {
                        let _held = &open;
                        frame
                    };
                    return response.map(|body| Body::new(body.map_frame(follow)));
                }
                let response = self.show(response).await;
                self.tell(Stage::ResponseComplete).await;
                response
            }
        }
    }

    async fn show(&mut self, response: Response<Body>) -> Response<Body> {
        if self.level() < Level::RequestResponse {
            return response;
        }
        let (parts, body) = response.into_parts();
        let Ok(bytes) = body.collect().await.map(Collected::to_bytes) else {
            return Response::from_parts(parts, Body::empty());
        };
        if let Ok(object) = serde_json::from_slice(&bytes) {
            let object = self.trimmed(object);
            self.event.insert("responseObject".into(), object);
        }
        Response::from_parts(parts, Body::from(bytes))
    }

    fn trimmed(&self, mut object: Value) -> Value {
        if self.wish.as_ref().is_some_and(|wish| wish.omit_managed_fields) {
            let forget = |object: &mut Value| {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("managedFields");
                }
            };
            object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(forget);
            forget(&mut object);
        }
        object
    }

    fn level(&self) -> Level {
        self.wish.as_ref().map_or(Level::None, |wish| wish.level)
    }

    async fn tell(&mut self, stage: Stage) {
        if let Some(line) = self.line(stage) {
            self.audit.log.write(line).await;
        }
    }

    fn line(&mut self, stage: Stage) -> Option<Vec<u8>> {
        let wish = self.wish.as_ref()?;
        if wish.level == Level::None || wish.omit_stages.contains(&stage) {
            return None;
        }
        self.event.insert("level".into(), json!(wish.level));
        self.event.insert("stage".into(), json!(stage));
        self.event.insert("stageTimestamp".into(), now());
        self.audit.counters.events.inc();
        let mut line = serde_json::to_vec(&self.event).expect("values serialize into memory");
        line.push(b'\n');
        Some(line)
    }
}

/// Completes the record of an answer that lasts, whoever ends it.
struct Open(Trail);

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(line) = self.0.line(Stage::ResponseComplete) {
            self.0.audit.log.write_now(line);
        }
    }
}

/// The client's, if it is sound, or a new one.
fn id(headers: &HeaderMap) -> String {
    let given =
        headers.get("audit-id").and_then(|value| value.to_str().ok()).filter(|id| !id.is_empty() && id.len() <= 64);
    given.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

fn uri(uri: &Uri) -> String {
    uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string)
}

/// As proxies tell it, then as the socket does; a client in this process has none.
fn sources(request: &Request<Body>) -> Vec<String> {
    let mut sources: Vec<String> = Vec::new();
    for name in ["x-forwarded-for", "x-real-ip"] {
        let values = request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok());
        let addresses = values.flat_map(|value| value.split(',')).map(str::trim);
        sources.extend(addresses.filter(|text| text.parse::<std::net::IpAddr>().is_ok()).map(str::to_owned));
    }
    sources.extend(request.extensions().get::<Peer>().map(|peer| peer.address.ip().to_canonical().to_string()));
    sources.dedup();
    sources
}

fn reference(target: &Target) -> Value {
    let mut reference = Map::new();
    for (key, value) in [
        ("resource", &target.plural),
        ("namespace", &target.namespace),
        ("name", &target.name),
        ("apiGroup", &target.group),
        ("apiVersion", &target.version),
        ("subresource", &target.subresource),
    ] {
        if !value.is_empty() {
            reference.insert(key.into(), value.as_str().into());
        }
    }
    reference.into()
}

/// A `Status` as an event carries it: without kind and version.
fn status(mut status: Value) -> Value {
    if let Some(fields) = status.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    status
}

fn now() -> Value {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string().into()
}

/// What the client sent, as JSON. Protobuf is read where the path tells what it is.
fn object(headers: &HeaderMap, target: Option<&Target>, body: &Bytes) -> Option<Value> {
    if let Ok(value) = serde_json::from_slice(body) {
        return Some(value);
    }
    match body_format(headers) {
        Ok(Format::Protobuf) => {
            let schema = schema(target?)?;
            Some(leme_schema::decode_protobuf(leme_schema::definition(schema)?, body).ok()?.value)
        }
        Ok(Format::Json) => None,
        // Patches of server-side apply are YAML, too.
        Ok(Format::Yaml) | Err(_) => serde_norway::from_slice(body).ok(),
    }
}

fn schema(target: &Target) -> Option<&'static str> {
    let resource: &Resource = crate::resources::by_plural(&target.group, &target.version, &target.plural)?;
    match target.verb {
        "delete" | "deletecollection" => Some(crate::api::delete::DELETE_OPTIONS),
        "create" | "update" if target.subresource.is_empty() => Some(resource.schema),
        _ => None,
    }
}
