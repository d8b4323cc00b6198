//! The kubelet's HTTPS API, on port 10250: logs, exec, attach, port-forward, pods, stats and metrics.
//!
//! The API server is its usual client and passes kubectl's streams through byte for byte; Prometheus and the metrics
//! server are others. It knows nothing of how pods run: it asks a [`Node`]. Nobody is served before authentication
//! (client certificate or TokenReview) and authorization (SubjectAccessReview).

mod answer;
mod auth;
mod containers;
mod logs;
mod measurements;
mod node;
mod port_forward;
mod query;
mod remote_command;
mod router;
mod server;
mod spdy;
#[cfg(test)]
mod tests;
mod tls;
mod upgrade;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use node::{ContainerStats, Node, NodeError, PodStats, Stats, Streams, Usage};
pub use server::{ServeError, serve};
pub use tls::TlsError;

/// What the server must be told; every file is read anew when it changes.
#[derive(Clone, Debug)]
pub struct Config {
    pub address: SocketAddr,
    /// Certificate chain and key in PEM; without them a certificate is made for this run and signed by nobody.
    pub tls_cert_file: Option<PathBuf>,
    pub tls_private_key_file: Option<PathBuf>,
    /// Authorities of client certificates; without it only tokens are accepted.
    pub client_ca_file: Option<PathBuf>,
}
