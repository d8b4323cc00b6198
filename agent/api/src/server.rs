//! Listens, shakes hands, and serves HTTP/1.1 (which can be upgraded) and HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router, middleware};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::auth::{self, Auth, Peer};
use crate::node::Node;
use crate::tls::{Tls, TlsError};
use crate::{Config, router};

/// A client that does not speak TLS is not waited for.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// When the process is out of file descriptors, accepting again at once would only spin.
const BREATH: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("listening on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Serves until `shutdown`; `client` is asked who callers are and what they may do.
pub async fn serve(
    config: Config,
    node: Arc<dyn Node>,
    client: kube::Client,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let listen = |source| ServeError::Listen { address: config.address, source };
    let listener = TcpListener::bind(config.address).await.map_err(listen)?;
    serve_on(listener, config, node, client, shutdown).await
}

pub(crate) async fn serve_on(
    listener: TcpListener,
    config: Config,
    node: Arc<dyn Node>,
    client: kube::Client,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let mut tls = Tls::load(&config)?;
    let auth = Arc::new(Auth::new(client, node.name().to_owned()));
    let router = router::routes(node).layer(middleware::from_fn_with_state(auth, auth::check));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => {
                    tls.refresh(&config);
                    connections.spawn(attend(tcp, tls.clone(), router.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(BREATH).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn attend(tcp: TcpStream, tls: Tls, router: Router) {
    let _ = tcp.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls.server).accept(tcp)).await;
    let Ok(Ok(stream)) = handshake else { return };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec().into();
    let service = TowerToHyperService::new(router.layer(Extension(Peer { certificates, judge: tls.judge })));
    let connection = Builder::new(TokioExecutor::new());
    if let Err(error) = connection.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(error, "a connection ended early");
    }
}
