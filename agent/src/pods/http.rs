//! GET as probes and hooks do it: no pool, no verification of certificates, no redirects, a bounded body.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Uri};
use hyper::body::Body;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Enough to show a person what was wrong.
const BODY: usize = 10 << 10;

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("dial tcp {address}: connect: {}", plain(.source))]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("remote error: tls: {0}")]
    Tls(#[source] std::io::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("{0}")]
    Exchange(#[from] hyper::Error),
}

/// The bare words of the kernel, as Go prints them.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string().to_lowercase();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// The address asked, for messages.
pub fn url(action: &HTTPGetAction, address: SocketAddr) -> String {
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = action.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{address}{slash}{path}")
}

/// Status and the beginning of the body.
pub async fn get(action: &HTTPGetAction, address: SocketAddr, agent: &str) -> Result<(u16, String), HttpError> {
    let stream = TcpStream::connect(address).await.map_err(|source| HttpError::Connect { address, source })?;
    match action.scheme.as_deref() {
        Some("HTTPS") => {
            let connector = tokio_rustls::TlsConnector::from(Arc::new(unverified()));
            let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
            exchange(connector.connect(name, stream).await.map_err(HttpError::Tls)?, action, address, agent).await
        }
        _ => exchange(stream, action, address, agent).await,
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    action: &HTTPGetAction,
    address: SocketAddr,
    agent: &str,
) -> Result<(u16, String), HttpError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let answer = async {
        let reply = sender.send_request(request(action, address, agent)?).await?;
        let status = reply.status().as_u16();
        Ok((status, body(reply.into_body()).await))
    }
    .await;
    connection.abort();
    answer
}

fn request(action: &HTTPGetAction, address: SocketAddr, agent: &str) -> Result<Request<String>, http::Error> {
    let uri: Uri = url(action, address).parse().map_err(http::Error::from)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let given = action.http_headers.as_deref().unwrap_or_default();
    let has = |name: &str| given.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    let mut builder = Request::get(path);
    if !has("host") {
        builder = builder.header(
            "Host",
            action.host.as_deref().filter(|host| !host.is_empty()).map_or(address.to_string(), str::to_owned),
        );
    }
    if !has("user-agent") {
        builder = builder.header("User-Agent", agent);
    }
    if !has("accept") {
        builder = builder.header("Accept", "*/*");
    }
    builder = builder.header("Connection", "close");
    given.iter().fold(builder, |builder, header| builder.header(&header.name, &header.value)).body(String::new())
}

async fn body(incoming: hyper::body::Incoming) -> String {
    let mut incoming = std::pin::pin!(incoming);
    let frames = futures::stream::poll_fn(|context| incoming.as_mut().poll_frame(context));
    let mut data = Vec::new();
    let mut frames = std::pin::pin!(frames);
    while let Some(Ok(frame)) = frames.next().await {
        let chunk: Bytes = frame.into_data().unwrap_or_default();
        data.extend_from_slice(&chunk[..chunk.len().min(BODY - data.len())]);
        if data.len() >= BODY {
            break;
        }
    }
    String::from_utf8_lossy(&data).into_owned()
}

/// Probes ask whether somebody answers, not who: upstream skips verification here too.
fn unverified() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring offers the default versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth()
}

#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
