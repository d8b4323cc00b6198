//! `/healthz`, `/livez` and `/metrics` of the network, on kube-proxy's health port.
//!
//! Spawned by the network; reads what the others leave in [`Metrics`], and asks the kernel.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::watch};
use tracing::{debug, warn};

use super::{
    Kernel, Status,
    cni_server::CniServer,
    metrics::{Measured, Metrics},
    proxy_health::ProxyHealth,
};

/// Whom it asks.
#[derive(Clone)]
pub struct Served {
    pub status: watch::Receiver<Status>,
    pub health: Arc<ProxyHealth>,
    pub metrics: Arc<Metrics>,
    pub kernel: Kernel,
    pub server: Arc<CniServer>,
}

impl Served {
    async fn metrics(&self) -> String {
        let counted = self.kernel.with(|datapath| Ok((datapath.counters()?, datapath.fill()?))).await;
        let (counters, maps) = counted.unwrap_or_else(|error: leme_datapath::Error| {
            debug!(%error, "cannot read the kernel's counters");
            Default::default()
        });
        self.metrics.render(&Measured { counters, maps, addresses: self.server.usage() })
    }
}

/// Serves for ever; an address that is taken is tried again.
pub async fn serve(address: SocketAddr, served: Served) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => warn!(%address, %error, "cannot serve the network's health; trying again"),
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(converse(TokioIo::new(stream), served.clone()))),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(stream: TokioIo<tokio::net::TcpStream>, served: Served) {
    let service = service_fn(move |request| {
        let served = served.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(&request, &served).await) }
    });
    // A client that hangs up in the middle is its own affair.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(10))
        .serve_connection(stream, service)
        .await;
}

async fn answer(request: &Request<Incoming>, served: &Served) -> Response<String> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (_, "/healthz") => json(served.health.healthz(*served.status.borrow() == Status::Ready)),
        (_, "/livez") => json(served.health.livez()),
        (&Method::GET, "/metrics") => (StatusCode::OK, OPEN_METRICS, served.metrics().await),
        _ => (StatusCode::NOT_FOUND, PLAIN, "404 page not found\n".into()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn json((status, text): (StatusCode, String)) -> (StatusCode, &'static str, String) {
    (status, "application/json", text)
}

const PLAIN: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
