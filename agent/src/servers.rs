//! The API servers that this node may ask: the one of its kubeconfig, and those that the `kubernetes` Service names.
//!
//! All parts of the agent share one client. It asks one server until that does not answer, then the next, and stays
//! there; a request that cannot have arrived is asked again, everything else its caller repeats, as watches do. Each
//! server is verified by its own address. What was learnt is on disk, for a start while the kubeconfig's server is away.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use futures::StreamExt;
use http::{Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    client::{Body, ConfigExt, retry::RetryPolicy},
    runtime::{WatchStreamExt, watcher},
};
use tokio_util::sync::CancellationToken;
use tower::{BoxError, ServiceBuilder, retry::RetryLayer, service_fn};

/// A server that does not take a connection within this time is not there.
const CONNECT: Duration = Duration::from_secs(3);
/// An open connection is asked for life this often, and given so long to answer.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(5);
/// The list of the local API's own Service.
const SLICES: &str = "kubernetes.io/service-name=kubernetes";

/// The list and which of them is asked; clones share it.
#[derive(Clone)]
pub struct Servers {
    state: Arc<Mutex<State>>,
    file: PathBuf,
}

struct State {
    /// As `https://192.0.2.1:6443`; the kubeconfig's is the first, whatever else is known.
    known: Vec<String>,
    current: usize,
}

impl Servers {
    /// The kubeconfig's server and what an earlier run has learnt.
    pub fn load(given: &Uri, file: PathBuf) -> Self {
        let given = given.to_string().trim_end_matches('/').to_owned();
        let learnt = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Vec<String>>(&text).ok());
        let learnt = learnt.into_iter().flatten().filter(|server| server.parse::<Uri>().is_ok());
        let state = State { known: with_given(given, learnt), current: 0 };
        Self { state: Arc::new(Mutex::new(state)), file }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> String {
        let state = self.state();
        state.known[state.current].clone()
    }

    fn count(&self) -> usize {
        self.state().known.len()
    }

    /// On to the next, unless somebody else has gone on already.
    fn leave(&self, server: &str, why: &dyn std::fmt::Display) {
        let mut state = self.state();
        if state.known.len() > 1 && state.known[state.current] == server {
            state.current = (state.current + 1) % state.known.len();
            tracing::warn!(server, next = state.known[state.current], "going to another API server: {why}");
        }
    }

    /// Others are known from now on; the one in use stays in use.
    fn learn(&self, learnt: Vec<String>) {
        let known = {
            let mut state = self.state();
            let known = with_given(state.known[0].clone(), learnt.into_iter());
            if known == state.known {
                return;
            }
            let using = state.known[state.current].clone();
            let at = known.iter().position(|server| *server == using);
            *state = State { current: at.unwrap_or_default(), known };
            state.known.clone()
        };
        if let Err(error) = save(&self.file, &known) {
            tracing::warn!("the list of API servers is not kept for the next start: {error:#}");
        }
    }

    /// Learns from the cluster until `shutdown`.
    pub async fn follow(self, client: Client, shutdown: CancellationToken) {
        let slices: Api<EndpointSlice> = Api::namespaced(client, "default");
        let config = watcher::Config::default().labels(SLICES);
        let mut seen = std::collections::BTreeMap::new();
        let mut events = pin!(watcher(slices, config).default_backoff());
        while let Some(Some(event)) = shutdown.run_until_cancelled(events.next()).await {
            match event {
                Ok(watcher::Event::Init) => seen.clear(),
                Ok(watcher::Event::InitApply(slice)) => drop(seen.insert(slice.metadata.name.clone(), slice)),
                Ok(watcher::Event::Apply(slice)) => {
                    seen.insert(slice.metadata.name.clone(), slice);
                    self.learn(seen.values().flat_map(addresses).collect());
                }
                Ok(watcher::Event::InitDone) => self.learn(seen.values().flat_map(addresses).collect()),
                Ok(watcher::Event::Delete(slice)) => drop(seen.remove(&slice.metadata.name)),
                Err(error) => tracing::debug!("the API's own Service cannot be watched: {error}"),
            }
        }
    }
}

/// Nobody is ever left without a server to ask: the kubeconfig's stays.
fn with_given(given: String, learnt: impl Iterator<Item = String>) -> Vec<String> {
    let mut known = vec![given];
    for server in learnt {
        if !known.contains(&server) {
            known.push(server);
        }
    }
    known
}

fn addresses(slice: &EndpointSlice) -> Vec<String> {
    let ports = slice.ports.iter().flatten();
    let Some(port) = ports.filter(|port| port.name.as_deref() == Some("https")).find_map(|port| port.port) else {
        return Vec::new();
    };
    let server = |address: &String| match slice.address_type.as_str() {
        "IPv6" => format!("https://[{address}]:{port}"),
        _ => format!("https://{address}:{port}"),
    };
    slice.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.iter().map(server)).collect()
}

/// Whole or not at all, and for root's eyes only.
fn save(path: &Path, known: &[String]) -> anyhow::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let temporary = path.with_extension("new");
    let write = || {
        let _ = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec(known)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// A client that asks whichever of `servers` answers.
pub fn client(config: &kube::Config, servers: Servers) -> anyhow::Result<Client> {
    let http = http_client(config)?;
    let ask = service_fn(move |request: Request<Body>| ask(servers.clone(), http.clone(), request));
    // As kube's own client: what is not possible now is asked again, here of another server.
    let retry = config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry()));
    let service = ServiceBuilder::new()
        .option_layer(retry)
        .option_layer(config.auth_layer().context("reading the kubeconfig's credentials")?)
        .layer(config.extra_headers_layer().context("reading the kubeconfig's headers")?)
        .service(ask);
    Ok(Client::new(service, config.default_namespace.clone()))
}

type Http = legacy::Client<HttpsConnector<HttpConnector>, Body>;

fn http_client(config: &kube::Config) -> anyhow::Result<Http> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    // For servers without HTTP/2, whose connections have no pings.
    tcp.set_keepalive(Some(PING));
    tcp.set_keepalive_interval(Some(PONG));
    tcp.set_keepalive_retries(Some(2));
    tcp.set_nodelay(true);
    let tls = config.rustls_client_config().context("reading the kubeconfig's certificates")?;
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let https = match &config.tls_server_name {
        Some(name) => {
            let name = name.clone().try_into().context("understanding the kubeconfig's tls-server-name")?;
            https.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name))
        }
        None => https,
    };
    Ok(legacy::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PONG)
        .http2_keep_alive_while_idle(true)
        .build(https.enable_all_versions().wrap_connector(tcp)))
}

/// Asks the current server; the others, too, if there was no connection to it.
async fn ask(servers: Servers, http: Http, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
    let mut request = Some(request);
    for left in (0..servers.count()).rev() {
        let server = servers.current();
        let Some((now, later)) = request.take().and_then(|request| split(request, &server)) else { break };
        match http.request(now?).await {
            Ok(response) => {
                if response.status() == StatusCode::SERVICE_UNAVAILABLE {
                    servers.leave(&server, &"it is not ready or has lost its store");
                }
                return Ok(response);
            }
            Err(error) => {
                let unsent = error.is_connect();
                servers.leave(&server, &with_cause(&error));
                request = later.filter(|_| unsent && left > 0);
                if request.is_none() {
                    return Err(error.into());
                }
            }
        }
    }
    Err("the request cannot be asked again".into())
}

type Directed = (Result<Request<Body>, BoxError>, Option<Request<Body>>);

/// The request to this server, and once more for another.
fn split(request: Request<Body>, server: &str) -> Option<Directed> {
    let (parts, body) = request.into_parts();
    let later = body.try_clone().map(|body| Request::from_parts(parts.clone(), body));
    let mut now = Request::from_parts(parts, body);
    let path = now.uri().path_and_query().map_or("/", |path| path.as_str());
    let directed = format!("{server}{path}").parse::<Uri>();
    Some((
        directed.map_err(BoxError::from).map(|uri| {
            *now.uri_mut() = uri;
            *now.version_mut() = http::Version::HTTP_11;
            now
        }),
        later,
    ))
}

/// "client error (Connect)" alone says nothing.
fn with_cause(error: &dyn std::error::Error) -> String {
    let deepest = std::iter::successors(error.source(), |error| error.source()).last();
    deepest.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

#[cfg(test)]
mod tests;
