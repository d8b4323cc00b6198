//! `/health`, `/ready` and `/metrics`, and the counters behind them.
//!
//! Spawned by `run` on a loopback address. A few lines of HTTP/1.0 are all that probes and Prometheus need; a framework
//! would be the larger part of this process.

use std::{
    fmt::Write as _,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hickory_proto::op::ResponseCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tracing::warn;

const REQUEST_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Metrics {
    synced: AtomicBool,
    /// By response code, the last for all that are rarer.
    answers: [AtomicU64; 7],
    forwarded: AtomicU64,
    hits: AtomicU64,
}

impl Metrics {
    /// True the first time.
    pub fn mark_synced(&self) -> bool {
        !self.synced.swap(true, Relaxed)
    }

    pub fn is_synced(&self) -> bool {
        self.synced.load(Relaxed)
    }

    pub fn answered(&self, code: ResponseCode) {
        self.answers[usize::from(u16::from(code)).min(6)].fetch_add(1, Relaxed);
    }

    pub fn forwarded(&self) {
        self.forwarded.fetch_add(1, Relaxed);
    }

    pub fn hit(&self) {
        self.hits.fetch_add(1, Relaxed);
    }

    /// CoreDNS's names, so that dashboards go on working.
    fn render(&self) -> String {
        let mut text = String::from("# TYPE coredns_dns_responses_total counter\n");
        let codes = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "other"];
        for (code, count) in codes.iter().zip(&self.answers) {
            let _ = writeln!(text, "coredns_dns_responses_total{{rcode=\"{code}\"}} {}", count.load(Relaxed));
        }
        for (name, count) in
            [("coredns_proxy_requests_total", &self.forwarded), ("coredns_cache_hits_total", &self.hits)]
        {
            let _ = writeln!(text, "# TYPE {name} counter\n{name} {}", count.load(Relaxed));
        }
        text
    }
}

pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => warn!(%address, %error, "cannot serve health; trying again"),
        }
        sleep(Duration::from_secs(5)).await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let metrics = Arc::clone(&metrics);
                tokio::spawn(async move { timeout(REQUEST_WITHIN, converse(stream, &metrics)).await });
            }
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(mut stream: TcpStream, metrics: &Metrics) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 8192 {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let line = String::from_utf8_lossy(&request);
    let (status, body) = answer(line.split_whitespace().nth(1).unwrap_or_default(), metrics);
    let head = format!("HTTP/1.0 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    stream.shutdown().await
}

fn answer(path: &str, metrics: &Metrics) -> (&'static str, String) {
    match path {
        "/health" => ("200 OK", "OK".into()),
        "/ready" if metrics.is_synced() => ("200 OK", "OK".into()),
        "/ready" => ("503 Service Unavailable", "kubernetes".into()),
        "/metrics" => ("200 OK", metrics.render()),
        _ => ("404 Not Found", "404 page not found".into()),
    }
}
