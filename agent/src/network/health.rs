//! `/healthz`, `/livez` and `/metrics` of the network, on kube-proxy's health port.
//!
//! Spawned by the network; reads what the reconciler and the collector leave in [`Metrics`].

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{Method, Request, Response, StatusCode};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use leme_datapath::{Collected, Report};
use tokio::{net::TcpListener, sync::watch};
use tracing::warn;

use super::{Status, cni_server::CniServer};

/// Counters and gauges; one writer each.
#[derive(Debug, Default)]
pub struct Metrics {
    syncs: AtomicU64,
    sync_failures: AtomicU64,
    sync_nanoseconds: AtomicU64,
    last_sync: AtomicU64,
    operations: AtomicU64,
    services: AtomicU64,
    connections_live: AtomicU64,
    connections_removed: AtomicU64,
    connections_capacity: AtomicU64,
}

impl Metrics {
    pub fn synced(&self, report: Report, took: Duration) {
        self.syncs.fetch_add(1, Relaxed);
        self.sync_nanoseconds.fetch_add(took.as_nanos() as u64, Relaxed);
        self.operations.fetch_add(report.operations as u64, Relaxed);
        self.last_sync.store(now().as_secs(), Relaxed);
    }

    pub fn failed(&self) {
        self.sync_failures.fetch_add(1, Relaxed);
    }

    pub fn known(&self, services: usize) {
        self.services.store(services as u64, Relaxed);
    }

    pub fn connections(&self, collected: Collected) {
        self.connections_live.store(collected.live as u64, Relaxed);
        self.connections_capacity.store(collected.capacity as u64, Relaxed);
        self.connections_removed.fetch_add(collected.removed as u64, Relaxed);
    }

    fn render(&self, addresses: (usize, usize)) -> String {
        let seconds = self.sync_nanoseconds.load(Relaxed) as f64 / 1e9;
        let rows: [(&str, &str, f64); 11] = [
            ("kubeproxy_sync_proxy_rules_duration_seconds_sum", "counter", seconds),
            ("kubeproxy_sync_proxy_rules_duration_seconds_count", "counter", self.syncs.load(Relaxed) as f64),
            ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge", self.last_sync.load(Relaxed) as f64),
            ("leme_reconcile_failures_total", "counter", self.sync_failures.load(Relaxed) as f64),
            ("leme_map_operations_total", "counter", self.operations.load(Relaxed) as f64),
            ("leme_services", "gauge", self.services.load(Relaxed) as f64),
            ("leme_connections", "gauge", self.connections_live.load(Relaxed) as f64),
            ("leme_connections_capacity", "gauge", self.connections_capacity.load(Relaxed) as f64),
            ("leme_connections_collected_total", "counter", self.connections_removed.load(Relaxed) as f64),
            ("leme_pod_addresses_used", "gauge", addresses.0 as f64),
            ("leme_pod_addresses", "gauge", addresses.1 as f64),
        ];
        rows.iter().fold(String::new(), |mut text, (name, kind, value)| {
            let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
            text
        })
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[derive(Clone)]
struct Served {
    status: watch::Receiver<Status>,
    metrics: Arc<Metrics>,
    server: Arc<CniServer>,
}

/// Serves for ever; an address that is taken is tried again.
pub async fn serve(
    address: SocketAddr,
    status: watch::Receiver<Status>,
    metrics: Arc<Metrics>,
    server: Arc<CniServer>,
) {
    let served = Served { status, metrics, server };
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
        let response = answer(&request, &served);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    // A client that hangs up in the middle is its own affair.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(10))
        .serve_connection(stream, service)
        .await;
}

fn answer(request: &Request<Incoming>, served: &Served) -> Response<String> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => healthz(&served.status.borrow()),
        (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, "ok\n".into()),
        (&Method::GET, "/metrics") => (StatusCode::OK, served.metrics.render(served.server.usage())),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".into()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response
}

fn healthz(status: &Status) -> (StatusCode, String) {
    match status {
        Status::Ready => (StatusCode::OK, "ok\n".into()),
        Status::NotReady(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
