//! `/healthz` on loopback, where init systems look whether the agent lives, and `/findings`, where `leme status` learns
//! what is wrong with the node's network.

use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::network::NetworkHandle;

/// Until `shutdown`. Without a network of ours there are no findings.
pub async fn serve(
    address: SocketAddr,
    network: Option<NetworkHandle>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address} for /healthz"))?;
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
        };
        let network = network.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let network = network.clone();
                async move { Ok::<_, std::convert::Infallible>(answer(&request, network.as_ref()).await) }
            });
            // A client that goes away in the middle is its own matter.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: &Request<Incoming>, network: Option<&NetworkHandle>) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.uri().path(), network) {
        ("/healthz" | "/livez" | "/readyz", _) => (StatusCode::OK, PLAIN, "ok".to_owned()),
        ("/findings", Some(network)) => {
            let health = serde_json::to_string(&network.health().await).expect("plain data");
            (StatusCode::OK, "application/json", health)
        }
        _ => (StatusCode::NOT_FOUND, PLAIN, "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Bytes::from(text).into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";
