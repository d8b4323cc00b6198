//! Requests that are answered elsewhere: logs, exec, attach and port-forward by the node, proxies by pods and Services.
//!
//! What upgrades (WebSocket, SPDY) is tunnelled byte for byte once the other side has agreed. Nodes are reached over TLS
//! with the API server's own client certificate; the user's credentials never leave this process.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{
    App, Call,
    object::text,
    query::Query,
    status::{Failure, Outcome},
};
use crate::pki::Pki;

const CONNECT: Duration = Duration::from_secs(5);
const KUBELET_PORT: u16 = 10250;
/// As much of a node's refusal as upstream reads.
const REFUSAL: usize = 50_000;
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// How the API server reaches nodes.
pub struct Kubelets {
    tls: TlsConnector,
}

impl Kubelets {
    pub fn new(pki: &Pki) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pki.cluster.certificate.as_bytes())?)?;
        let chain = CertificateDer::from_pem_slice(pki.kubelet_client.certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(pki.kubelet_client.key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![chain], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
    }
}

/// `pods/log`, `pods/exec`, `pods/attach`, `pods/portforward`.
pub async fn pod_stream(app: &App, call: Call) -> Outcome<Response<Body>> {
    let pods = app.registry.builtin("pods");
    let (namespace, name) = (&call.target.namespace, &call.target.name);
    let pod = pods.get(namespace, name).await?.ok_or_else(|| Failure::not_found(pods.resource, name))?.value();
    let path = match call.target.subresource.as_str() {
        "portforward" => {
            let ports = pairs(&call.query, &[("ports", "port")]);
            format!("/portForward/{namespace}/{name}?{ports}")
        }
        "log" => {
            let container = container(&pod, call.query.get("container"))?;
            if assigned(&pod).is_none() {
                return Ok(Response::new(Body::empty()));
            }
            let names =
                ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"];
            check_log_options(&call.query)?;
            let options = pairs(&call.query, &names.map(|n| (n, n)));
            format!("/containerLogs/{namespace}/{name}/{container}?{options}")
        }
        verb => {
            let container = container(&pod, call.query.get("container"))?;
            let flags = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
            let mut options = form_urlencoded::Serializer::new(String::new());
            for (ours, theirs) in flags.into_iter().filter(|(ours, _)| call.query.flag(ours)) {
                let _ = ours;
                options.append_pair(theirs, "1");
            }
            for word in call.query.all("command") {
                options.append_pair("command", word);
            }
            format!("/{verb}/{namespace}/{name}/{container}?{}", options.finish())
        }
    };
    let node = assigned(&pod)
        .ok_or_else(|| Failure::bad_request(format!("pod {name} does not have a host assigned")))?
        .to_owned();
    let log = call.target.subresource == "log";
    let response = to_node(app, &node, path.trim_end_matches('?'), call).await?;
    if log && !response.status().is_success() { Err(refusal(response).await) } else { Ok(response) }
}

/// A node refuses in plain text; clients read a `Status`.
async fn refusal(response: Response<Body>) -> Failure {
    let code = response.status();
    let text = match Limited::new(response.into_body(), REFUSAL).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim_end().to_owned(),
        Err(error) => format!("read the node's answer: {error}"),
    };
    match code {
        StatusCode::BAD_REQUEST => Failure::bad_request(text),
        StatusCode::INTERNAL_SERVER_ERROR => Failure::internal(text),
        StatusCode::NOT_FOUND => Failure::new(404, "NotFound", text, None),
        StatusCode::FORBIDDEN => Failure::new(403, "Forbidden", text, None),
        other => Failure::new(other.as_u16(), "", text, None),
    }
}

fn assigned(pod: &Value) -> Option<&str> {
    Some(text(pod, &["spec", "nodeName"])).filter(|node| !node.is_empty())
}

/// The container that is meant: named, the default one, or the only one.
fn container(pod: &Value, wanted: &str) -> Outcome<String> {
    let name = text(pod, &["metadata", "name"]);
    let names = |key: &str| -> Vec<String> {
        let list = pod["spec"][key].as_array().into_iter().flatten();
        list.map(|c| text(c, &["name"]).to_owned()).collect()
    };
    let (main, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if !wanted.is_empty() {
        let known = [&main, &init, &ephemeral].into_iter().flatten().any(|n| n == wanted);
        let refuse = || Failure::bad_request(format!("container {wanted} is not valid for pod {name}"));
        return known.then(|| wanted.to_owned()).ok_or_else(refuse);
    }
    let default = text(pod, &["metadata", "annotations", DEFAULT_CONTAINER]);
    if main.iter().any(|n| n == default) {
        return Ok(default.to_owned());
    }
    if let ([only], true, true) = (main.as_slice(), init.is_empty(), ephemeral.is_empty()) {
        return Ok(only.clone());
    }
    let mut message = format!("a container name must be specified for pod {name}, choose one of: [{}]", main.join(" "));
    for (label, list) in [("init", init), ("ephemeral", ephemeral)] {
        if !list.is_empty() {
            message.push_str(&format!(" or one of the {label} containers: [{}]", list.join(" ")));
        }
    }
    Err(Failure::bad_request(message))
}

fn check_log_options(query: &Query) -> Outcome<()> {
    for (name, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        if let Some(value) = query.number(name)?.filter(|value| *value < least) {
            let bound = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            let error = crate::resources::FieldError {
                reason: "FieldValueInvalid",
                field: name.into(),
                message: format!("Invalid value: {value}: {bound}"),
            };
            return Err(Failure::invalid("", "PodLogOptions", "", &[error]));
        }
    }
    Ok(())
}

/// The named options under the other side's names, encoded.
fn pairs(query: &Query, names: &[(&str, &str)]) -> String {
    let mut out = form_urlencoded::Serializer::new(String::new());
    for (ours, theirs) in names {
        for value in query.all(ours).iter().filter(|v| !v.is_empty()) {
            out.append_pair(theirs, value);
        }
    }
    out.finish()
}

/// `nodes/proxy`, `pods/proxy`, `services/proxy`: `name`, `name:port` or `scheme:name:port`.
pub async fn proxy(app: &App, call: Call) -> Outcome<Response<Body>> {
    let (scheme, name, port) = split_name(&call.target.name);
    let query = call.parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let path = format!("/{}{query}", call.target.rest);
    if scheme == "https" {
        return Err(Failure::bad_request("proxying over https is not supported"));
    }
    let name = name.to_owned();
    let address = match call.target.plural.as_str() {
        "nodes" => return to_node(app, &name, &path, call).await,
        "pods" => pod_address(app, &call.target.namespace, &name, port).await?,
        _ => service_address(app, &call.target.namespace, &name, port).await?,
    };
    let stream = connect(address).await?;
    forward(stream, &address.to_string(), &path, call).await
}

fn split_name(name: &str) -> (&str, &str, &str) {
    match name.split(':').collect::<Vec<_>>()[..] {
        [scheme, name, port] => (scheme, name, port),
        [name, port] => ("", name, port),
        _ => ("", name, ""),
    }
}

async fn pod_address(app: &App, namespace: &str, name: &str, port: &str) -> Outcome<SocketAddr> {
    let pods = app.registry.builtin("pods");
    let pod = pods.get(namespace, name).await?.ok_or_else(|| Failure::not_found(pods.resource, name))?.value();
    let address: IpAddr =
        text(&pod, &["status", "podIP"]).parse().map_err(|_| Failure::bad_request("address not allowed"))?;
    let ports = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = ports.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let number = match port {
        "" => ports.next().and_then(|p| p["containerPort"].as_u64()).unwrap_or(80),
        port => match port.parse() {
            Ok(number) => number,
            Err(_) => ports.find(|p| p["name"] == port).and_then(|p| p["containerPort"].as_u64()).unwrap_or(80),
        },
    };
    Ok(SocketAddr::new(address, number as u16))
}

/// A ready endpoint of the Service, picked at random.
async fn service_address(app: &App, namespace: &str, name: &str, port: &str) -> Outcome<SocketAddr> {
    let services = app.registry.builtin("services");
    let service = services.get(namespace, name).await?;
    let service = service.ok_or_else(|| Failure::not_found(services.resource, name))?.value();
    let unavailable = || Failure::unavailable(format!("no endpoints available for service \"{name}\""));
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let wanted = ports.iter().find(|p| match port {
        "" => ports.len() == 1,
        port => p["name"] == port || p["port"].as_u64().is_some_and(|n| n.to_string() == port),
    });
    let wanted =
        wanted.ok_or_else(|| Failure::unavailable(format!("no service port {port:?} found for service \"{name}\"")))?;
    let slices = app.registry.snapshot("endpointslices").await?;
    let mut addresses = Vec::new();
    for slice in slices.objects.values().filter(|s| *s.namespace == *namespace) {
        if slice.label("kubernetes.io/service-name") != Some(name) {
            continue;
        }
        let slice = slice.value();
        let named = |p: &&Value| text(p, &["name"]) == text(wanted, &["name"]);
        let number = slice["ports"].as_array().into_iter().flatten().find(named).and_then(|p| p["port"].as_u64());
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let ready = endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
            let address = endpoint["addresses"][0].as_str().and_then(|a| a.parse::<IpAddr>().ok());
            if let (true, Some(address), Some(number)) = (ready, address, number) {
                addresses.push(SocketAddr::new(address, number as u16));
            }
        }
    }
    fastrand::choice(addresses).ok_or_else(unavailable)
}

/// A request to a node's kubelet API.
async fn to_node(app: &App, node: &str, path: &str, call: Call) -> Outcome<Response<Body>> {
    let nodes = app.registry.builtin("nodes");
    let object = nodes.get("", node).await?.ok_or_else(|| Failure::not_found(nodes.resource, node))?.value();
    let address = node_address(&object).ok_or_else(|| Failure::internal(format!("node {node:?} has no address")))?;
    let port = object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().filter(|p| *p > 0);
    let address = SocketAddr::new(address, port.map_or(KUBELET_PORT, |p| p as u16));
    let stream = connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    let stream = app.kubelets.tls.connect(name, stream).await;
    let stream = stream.map_err(|error| Failure::internal(format!("error dialing backend: {error}")))?;
    forward(stream, &address.to_string(), path, call).await
}

/// Upstream's order of preference.
fn node_address(node: &Value) -> Option<IpAddr> {
    let addresses = node["status"]["addresses"].as_array()?;
    let of = |kind: &str| addresses.iter().find(|a| a["type"] == kind).and_then(|a| a["address"].as_str());
    ["InternalIP", "ExternalIP"].into_iter().find_map(|kind| of(kind)?.parse().ok())
}

async fn connect(address: SocketAddr) -> Outcome<TcpStream> {
    let failed = |why: String| Failure::internal(format!("error dialing backend: dial tcp {address}: {why}"));
    match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("i/o timeout".into())),
    }
}

/// Sends the request on, streams the answer back, and joins both ends if it is an upgrade.
async fn forward<S>(stream: S, host: &str, path: &str, mut call: Call) -> Outcome<Response<Body>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| Failure::internal(format!("error dialing backend: {error}"));
    let (mut sender, connection) = http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    let body = call.take_body();
    let mut parts = call.parts;
    let client = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let uri: Uri = path.parse().map_err(|error| Failure::bad_request(format!("{path}: {error}")))?;
    let mut request = Request::new(body.unwrap_or_default());
    *request.method_mut() = parts.method;
    *request.uri_mut() = uri;
    *request.headers_mut() = outgoing(parts.headers, host);
    let mut response = sender.send_request(request).await.map_err(failed)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let backend = hyper::upgrade::on(&mut response);
        let client = client.ok_or_else(|| Failure::bad_request("the connection cannot be upgraded"))?;
        tokio::spawn(async move {
            let (Ok(client), Ok(backend)) = (client.await, backend.await) else { return };
            // Either end may close at any moment; that is how these streams end.
            let _ = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(backend)).await;
        });
    }
    Ok(response.map(Body::new))
}

/// The request's headers without the user's credentials.
fn outgoing(mut headers: HeaderMap, host: &str) -> HeaderMap {
    headers.remove(header::AUTHORIZATION);
    let impersonation: Vec<_> = headers.keys().filter(|k| k.as_str().starts_with("impersonate-")).cloned().collect();
    for name in impersonation {
        headers.remove(name);
    }
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(header::HOST, host);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_nodes_refusal_becomes_a_status_with_its_text() {
        let text = "container \"c\" in pod \"p\" is waiting to start: ContainerCreating";
        let mut answer = Response::new(Body::from(format!("{text}\n")));
        *answer.status_mut() = StatusCode::BAD_REQUEST;
        let status = refusal(answer).await.status();
        assert_eq!((&status["reason"], &status["message"]), (&"BadRequest".into(), &text.into()));
    }
}
