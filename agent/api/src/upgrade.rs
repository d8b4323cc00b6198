//! HTTP upgrades to SPDY/3.1, from both ends: ours to the runtime's streaming server, and a client's to us.

use axum::body::Body;
use axum::response::Response;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

pub(crate) const SPDY_3_1: &str = "SPDY/3.1";
pub(crate) const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");

#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("the runtime's stream address {0:?} is not http://host:port/path")]
    Address(String),
    #[error("connecting to the runtime's stream: {0}")]
    Connect(#[from] std::io::Error),
    #[error("asking the runtime for the stream: {0}")]
    Ask(#[from] hyper::Error),
    #[error("the runtime refused the stream: {status}: {message}")]
    Refused { status: StatusCode, message: String },
}

pub(crate) type Connection = TokioIo<Upgraded>;

/// Connects to an address that CRI's Exec or Attach gave, offering `protocols`; gives the one the runtime chose.
pub(crate) async fn dial(url: &str, protocols: &[HeaderValue]) -> Result<(Connection, HeaderMap), UpgradeError> {
    let malformed = || UpgradeError::Address(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| malformed())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(malformed)?;
    let path = uri.path_and_query().ok_or_else(malformed)?.as_str();
    let tcp = TcpStream::connect((authority.host(), authority.port_u16().unwrap_or(80))).await?;
    tcp.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    tokio::spawn(connection.with_upgrades());
    let mut response = sender.send_request(request(path, authority.as_str(), protocols)).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(UpgradeError::Refused { status, message: String::from_utf8_lossy(&body).trim().to_owned() });
    }
    let upgraded = hyper::upgrade::on(&mut response).await?;
    Ok((TokioIo::new(upgraded), std::mem::take(response.headers_mut())))
}

fn request(path: &str, host: &str, protocols: &[HeaderValue]) -> Request<Empty<bytes::Bytes>> {
    let mut request = Request::post(path)
        .header(HOST, host)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, SPDY_3_1)
        .header(CONTENT_LENGTH, 0)
        .body(Empty::new())
        .expect("a parsed path and authority are valid");
    for protocol in protocols {
        request.headers_mut().append(PROTOCOL_VERSION, protocol.clone());
    }
    request
}

/// Whether a client wants the connection for SPDY.
pub(crate) fn wants_spdy(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|value| value.eq_ignore_ascii_case(SPDY_3_1))
}

/// Says yes to such a client, with the stream protocol that was chosen.
pub(crate) fn accept(protocol: Option<&HeaderValue>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(SPDY_3_1));
    protocol.map(|protocol| headers.insert(PROTOCOL_VERSION, protocol.clone()));
    response
}
