//! The Kubernetes API over HTTP: every request comes through [`handle`] and leaves as a response of upstream's shape.
//!
//! authenticate → authorize → dispatch by [`path::Target`] → one module per verb. Handlers read and write through
//! [`registry::Registry`]; what a kind adds comes from its row of the resource table.

pub mod apply;
pub mod create;
pub mod delete;
pub mod discovery;
pub mod health;
pub mod list;
pub mod media;
pub mod metrics;
pub mod object;
pub mod path;
pub mod proxy;
pub mod query;
pub mod registry;
pub mod respond;
pub mod select;
pub mod status;
pub mod subresource;
pub mod table;
pub mod update;
pub mod watch;

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use leme_schema::selectors::FieldSelector;
use leme_store::Store;
use tower::{ServiceBuilder, service_fn};

use crate::{
    Config,
    audit::{Audit, Trail},
    auth::{
        User,
        attributes::Attributes,
        authenticate::{Authenticator, InProcess},
        authorize::{Authorizer, refusal},
        impersonate,
        tokens::Tokens,
    },
    joining,
    pki::Pki,
    resources::{self, Ranges, Resource},
};
use media::Accept;
use path::Target;
use query::Query;
use registry::{Kind, Registry};
use status::{Failure, Outcome};

/// Upstream's API server compacts every five minutes.
pub const COMPACTION: Duration = Duration::from_secs(300);
/// Upstream's limit for bodies.
const BODY: usize = 3 * 1024 * 1024;

/// The running API server.
pub struct App {
    pub config: Config,
    pub registry: Arc<Registry>,
    pub authenticator: Authenticator,
    pub authorizer: Authorizer,
    /// `None`: nothing is recorded.
    pub audit: Option<Arc<Audit>>,
    pub metrics: metrics::Metrics,
    pub documents: discovery::Documents,
    pub kubelets: proxy::Kubelets,
    /// PEM; who signs client certificates.
    pub client_ca: String,
    ready: AtomicBool,
}

/// One authenticated request on its way to a handler.
pub struct Call {
    pub user: Arc<User>,
    pub target: Target,
    pub query: Query,
    pub accept: Accept,
    pub parts: Parts,
    /// Behind a lock that is never contended: bodies are not `Sync`, and calls are shared by reference.
    body: Mutex<Option<Body>>,
}

impl Call {
    /// The whole body, at most as much as upstream takes.
    pub async fn body(&mut self) -> Outcome<Bytes> {
        let Some(body) = self.take_body() else { return Ok(Bytes::new()) };
        match Limited::new(body, BODY).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Failure::too_large()),
            Err(error) => Err(Failure::bad_request(format!("read the request's body: {error}"))),
        }
    }

    /// The unread body.
    pub fn take_body(&mut self) -> Option<Body> {
        self.body.get_mut().expect("no panic holds the lock").take()
    }

    pub fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    pub fn user_agent(&self) -> &str {
        self.headers().get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

impl App {
    /// Fills the caches; the first request can be answered when this returns.
    pub async fn start(config: Config, pki: &Pki, store: Arc<dyn Store>) -> anyhow::Result<Arc<Self>> {
        let table = resources::table();
        let registry = Arc::new(Registry::start(store, table, ranges(&config)));
        let issuer = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
        let tokens = Arc::new(Tokens::new(&issuer, &pki.service_account_key)?);
        let authenticator = Authenticator::new(&pki.cluster.certificate, registry.clone(), tokens)?;
        let authorizer = Authorizer::new(registry.clone());
        registry.ready().await?;
        let metrics = metrics::Metrics::default();
        let audit = config.audit.as_ref().map(|options| Audit::open(options, metrics.audit.clone())).transpose()?;
        Ok(Arc::new(Self {
            authenticator,
            authorizer,
            audit,
            metrics,
            documents: discovery::Documents::new(table),
            kubelets: proxy::Kubelets::new(pki)?,
            config,
            registry,
            client_ca: pki.cluster.certificate.clone(),
            ready: AtomicBool::new(false),
        }))
    }

    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// The API as a service, for the wire and for clients in this process.
    pub fn router(self: &Arc<Self>) -> Router {
        let app = self.clone();
        Router::new().fallback_service(service_fn(move |request: Request<Body>| {
            let app = app.clone();
            async move { Ok::<_, Infallible>(handle(app, request).await) }
        }))
    }

    /// A client in this process that acts as `user`.
    pub fn client(self: &Arc<Self>, user: &str) -> kube::Client {
        let identity = InProcess(Arc::new(User::authenticated(user, [])));
        let agent = HeaderValue::from_static(agent(user));
        let attach = move |mut request: Request<kube::client::Body>| {
            request.extensions_mut().insert(identity.clone());
            request.headers_mut().entry(header::USER_AGENT).or_insert_with(|| agent.clone());
            request
        };
        let service = ServiceBuilder::new().map_request(attach).service(self.router());
        kube::Client::new(service, "default")
    }
}

/// The upstream program that does what a client in this process does: it owns the fields that the client writes.
fn agent(user: &str) -> &'static str {
    if user == "system:kube-scheduler" { "kube-scheduler" } else { "kube-controller-manager" }
}

/// Answers one request.
pub async fn handle(app: Arc<App>, request: Request<Body>) -> Response<Body> {
    let started = Instant::now();
    let query = Query::parse(request.uri().query());
    let mut target = path::parse(request.method(), request.uri().path(), query.flag("watch"));
    if let Some(target) = target.as_mut() {
        name_from_selector(target, &query);
    }
    let label = metrics::label(request.method(), target.as_ref());
    let mut trail = app.audit.clone().map(|audit| Trail::begin(audit, &request, target.as_ref()));
    let lasts = target.as_ref().is_some_and(|target| target.verb == "watch" || streams(target));
    let outcome = answer(&app, request, query, target, trail.as_mut()).await;
    let response = match trail {
        Some(trail) => trail.end(lasts, outcome).await,
        None => outcome.unwrap_or_else(|failure| failure.respond()),
    };
    app.metrics.observe(label, response.status(), started.elapsed());
    response
}

async fn answer(
    app: &Arc<App>,
    request: Request<Body>,
    query: Query,
    target: Option<Target>,
    mut trail: Option<&mut Trail>,
) -> Outcome<Response<Body>> {
    let (parts, body) = request.into_parts();
    let user = identify(app, &parts, target.as_ref(), trail.as_deref_mut()).await?;
    let Some(target) = target else {
        return documents(app, &user, parts, query, trail).await;
    };
    let accept = if query.flag("watch") || target.verb == "watch" || streams(&target) {
        media::accept(&parts.headers).unwrap_or(Accept::JSON)
    } else {
        media::accept(&parts.headers)?
    };
    authorize(app, &Attributes::resource(&user, &target), trail.as_deref_mut()).await?;
    let mut call = Call { user, target, query, accept, parts, body: Mutex::new(Some(body)) };
    if let Some(trail) = trail.filter(|trail| trail.wants_body() && !streams(&call.target)) {
        let body = call.body().await?;
        trail.receive(call.headers(), &body);
        call.body = Mutex::new(Some(body.into()));
    }
    dispatch(app, call).await
}

/// Who asks, and as whom.
async fn identify(
    app: &Arc<App>,
    parts: &Parts,
    target: Option<&Target>,
    mut trail: Option<&mut Trail>,
) -> Outcome<Arc<User>> {
    let user = match app.authenticator.authenticate(parts).await? {
        Some(user) => user,
        None if health::is_public(parts.uri.path()) || target.is_some_and(is_cluster_info) => {
            Arc::new(User::anonymous())
        }
        None => return Err(Failure::unauthorized()),
    };
    if let Some(trail) = trail.as_deref_mut() {
        trail.identify(&user).await;
    }
    let acting = impersonate::apply(app, user.clone(), &parts.headers).await?;
    if let Some(trail) = trail.filter(|_| acting != user) {
        trail.impersonate(&acting);
    }
    Ok(acting)
}

/// # Errors
/// 403, if the answer is no.
async fn authorize(app: &App, question: &Attributes<'_>, trail: Option<&mut Trail>) -> Outcome<()> {
    let decision = app.authorizer.decide(question).await?;
    if let Some(trail) = trail {
        trail.decide(&decision);
    }
    if decision.allowed { Ok(()) } else { Err(refusal(question, &decision.reason)) }
}

/// A list or a watch of one name is authorized as a request for that name.
fn name_from_selector(target: &mut Target, query: &Query) {
    let collection = matches!(target.verb, "list" | "watch" | "deletecollection") && target.name.is_empty();
    if collection
        && let Ok(selector) = FieldSelector::parse(query.get("fieldSelector"))
        && let Some(name) = selector.required("metadata.name")
    {
        target.name = name.to_owned();
    }
}

/// The one object that may be read without credentials; whether it may, a role says.
fn is_cluster_info(target: &Target) -> bool {
    let (namespace, name) = joining::CLUSTER_INFO;
    let named = target.namespace == namespace && target.name == name && target.subresource.is_empty();
    named && target.plural == "configmaps" && target.group.is_empty() && target.verb == "get"
}

/// Subresources that answer with something that is no object.
fn streams(target: &Target) -> bool {
    matches!(target.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
}

/// Everything that is no resource: health, version, discovery, OpenAPI, keys, metrics.
async fn documents(
    app: &Arc<App>,
    user: &User,
    parts: Parts,
    query: Query,
    trail: Option<&mut Trail>,
) -> Outcome<Response<Body>> {
    if !health::is_public(parts.uri.path()) {
        authorize(app, &Attributes::path(user, &parts.method, parts.uri.path()), trail).await?;
    }
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(Failure::method_not_allowed());
    }
    if let Some(response) = health::answer(app, parts.uri.path(), &query).await {
        return Ok(response);
    }
    discovery::answer(app, &parts, &query)
}

async fn dispatch(app: &Arc<App>, call: Call) -> Outcome<Response<Body>> {
    let resource = resources::by_plural(&call.target.group, &call.target.version, &call.target.plural)
        .ok_or_else(Failure::unknown_path)?;
    if !call.target.subresource.is_empty() {
        return subresource::answer(app, call, resource).await;
    }
    // A namespace's own name is also its scope in authorization; its objects live in no namespace.
    if !resource.namespaced && !call.target.namespace.is_empty() && resource.plural != "namespaces" {
        return Err(Failure::unknown_path());
    }
    if !resource.verbs.contains(&call.target.verb) {
        return Err(Failure::method_not_allowed());
    }
    if resource.storage.is_empty() {
        return crate::auth::reviews::answer(app, call, resource).await;
    }
    let kind =
        app.registry.kind(resource.group, resource.version, resource.plural).ok_or_else(Failure::unknown_path)?;
    let kind: Arc<Kind> = kind.clone();
    match call.target.verb {
        "get" => list::get(app, &call, &kind).await,
        "list" => list::list(app, &call, &kind).await,
        "watch" => watch::watch(app, &call, &kind).await,
        "create" => create::create(app, call, &kind).await,
        "update" => update::update(app, call, &kind, "").await,
        "patch" => update::patch(app, call, &kind, "").await,
        "delete" => delete::delete(app, call, &kind).await,
        "deletecollection" => delete::delete_collection(app, call, &kind).await,
        _ => Err(Failure::method_not_allowed()),
    }
}

/// The namespace in which the target's object is stored: none for cluster-scoped kinds.
pub fn namespace<'a>(resource: &Resource, target: &'a Target) -> &'a str {
    if resource.namespaced { &target.namespace } else { "" }
}

/// What Services draw their addresses and ports from.
fn ranges(config: &Config) -> Ranges {
    let service = match config.service_cidr {
        ipnetwork::IpNetwork::V4(network) => (network.network(), network.prefix()),
        ipnetwork::IpNetwork::V6(_) => Ranges::default().service,
    };
    Ranges { service, node_ports: config.node_ports.0..=config.node_ports.1 }
}

#[cfg(test)]
mod tests;
