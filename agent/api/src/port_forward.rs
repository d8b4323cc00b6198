//! Port-forward: pairs of SPDY streams, each pair one connection to a port inside the pod's network namespace.
//!
//! The frames come out of kubectl's WebSocket (`SPDY/3.1+portforward.k8s.io`) or from an upgraded connection. The
//! agent dials itself, in a thread that has entered the namespace: no runtime is asked and no helper is started.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::Request;
use http::header::HeaderValue;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;

use crate::answer::Refusal;
use crate::node::Node;
use crate::spdy::{Reader, Session, Stream, Writer};
use crate::{containers, upgrade};

const STREAMS: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const PIECE: usize = 32 << 10;
const DIAL: Duration = Duration::from_secs(10);

/// Whose port: what a connection needs and an error names.
#[derive(Clone)]
struct Target {
    pod: String,
    uid: String,
    namespace: Option<PathBuf>,
}

/// `/portForward/{namespace}/{pod}`, or with the uid at the end.
pub(crate) async fn port_forward(
    State(node): State<Arc<dyn Node>>,
    Path(path): Path<Vec<String>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    mut request: Request<axum::body::Body>,
) -> Result<Response, Refusal> {
    let [namespace, name, uid @ ..] = &path[..] else { return Err(Refusal::not_found("404 page not found")) };
    let pod = containers::pod(&*node, namespace, name, uid.first().map(String::as_str))?;
    let target = Target {
        pod: format!("{name}_{namespace}"),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        namespace: node.network_namespace(&pod).await?,
    };
    if upgrade::wants_spdy(request.headers()) {
        let client = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            if let Ok(client) = client.await {
                serve(Session::new(TokioIo::new(client)), target).await;
            }
        });
        return Ok(upgrade::accept(Some(&HeaderValue::from_static(STREAMS))));
    }
    let upgrade = upgrade.map_err(|rejection| Refusal::new(rejection.status(), rejection.body_text()))?;
    let upgrade = upgrade.protocols([TUNNEL]);
    if upgrade.selected_protocol().is_none() {
        return Err(Refusal::bad_request(format!("this server forwards ports over the WebSocket protocol {TUNNEL}")));
    }
    Ok(upgrade.on_upgrade(move |socket| async move {
        let (near, far) = tokio::io::duplex(2 * PIECE);
        tokio::select! {
            () = serve(Session::new(near), target) => {}
            () = tunnel(socket, far) => {}
        }
    }))
}

/// Bytes in binary messages, however they are cut, are one stream of bytes.
async fn tunnel(socket: WebSocket, stream: DuplexStream) {
    let (mut sink, mut source) = socket.split();
    let (mut read, mut write) = tokio::io::split(stream);
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(data) if write.write_all(&data).await.is_err() => return,
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    let outward = async {
        let mut buffer = BytesMut::with_capacity(2 * PIECE);
        while read.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
            if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                return;
            }
            buffer.reserve(2 * PIECE);
        }
        let _ = sink.send(Message::Close(None)).await;
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}

/// Pairs the streams by request and forwards each pair, until the client goes.
async fn serve(mut session: Session, target: Target) {
    let mut halves: HashMap<String, Stream> = HashMap::new();
    let mut connections = JoinSet::new();
    while let Some(stream) = session.accept().await {
        let (Some(id), Some(kind)) = (stream.headers.get("requestid"), stream.headers.get("streamtype")) else {
            stream.writer.reset().await;
            continue;
        };
        let (id, is_data) = (id.to_owned(), kind == "data");
        match halves.remove(&id) {
            None => drop(halves.insert(id, stream)),
            Some(other) => {
                let (data, error) = if is_data { (stream, other) } else { (other, stream) };
                connections.spawn(forward(data, error, target.clone()));
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(data: Stream, mut error: Stream, target: Target) {
    let Stream { headers, reader, mut writer } = data;
    let port = headers.get("port").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
    let connected = match port {
        Some(port) => dial(target.namespace.clone(), port).await,
        None => Err(std::io::Error::other("the port header is not a port")),
    };
    match connected {
        Ok(connection) => carry(connection, reader, writer).await,
        Err(cause) => {
            let (port, Target { pod, uid, .. }) = (headers.get("port").unwrap_or_default(), &target);
            let message = format!("error forwarding port {port} to pod {pod}, uid {uid}: {cause}");
            let _ = error.writer.send(Bytes::from(message)).await;
            let _ = writer.finish().await;
        }
    }
    // kubectl waits for the end of this stream before it calls the connection done.
    let _ = error.writer.finish().await;
}

/// Both directions to their ends, or until the client gives the stream up.
async fn carry(connection: TcpStream, reader: Reader, writer: Writer) {
    let (read, write) = connection.into_split();
    let reset = writer.reset_by_peer();
    tokio::select! {
        _ = async { tokio::join!(inward(reader, write), outward(read, writer)) } => {}
        () = reset.cancelled() => {}
    }
}

async fn inward(mut reader: Reader, mut write: OwnedWriteHalf) {
    while let Some(data) = reader.recv().await {
        if write.write_all(&data).await.is_err() {
            return;
        }
    }
    let _ = write.shutdown().await;
}

async fn outward(mut read: OwnedReadHalf, mut writer: Writer) {
    let mut buffer = BytesMut::with_capacity(PIECE);
    while read.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
        if writer.send(buffer.split().freeze()).await.is_err() {
            return;
        }
        buffer.reserve(PIECE);
    }
    let _ = writer.finish().await;
}

/// Connects to the port on the namespace's own loopback.
async fn dial(namespace: Option<PathBuf>, port: u16) -> std::io::Result<TcpStream> {
    let (done, dialed) = tokio::sync::oneshot::channel();
    // A thread of its own, which ends here: a pooled one would stay in the pod's namespace.
    std::thread::Builder::new().name("port-forward".into()).spawn(move || {
        let _ = done.send(dial_inside(namespace, port));
    })?;
    let connection = dialed.await.map_err(std::io::Error::other)??;
    connection.set_nonblocking(true)?;
    connection.set_nodelay(true)?;
    TcpStream::from_std(connection)
}

fn dial_inside(namespace: Option<PathBuf>, port: u16) -> std::io::Result<std::net::TcpStream> {
    if let Some(path) = &namespace {
        nix::sched::setns(std::fs::File::open(path)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
    }
    let connect = |address: SocketAddr| std::net::TcpStream::connect_timeout(&address, DIAL);
    connect((Ipv4Addr::LOCALHOST, port).into()).or_else(|v4| {
        connect((Ipv6Addr::LOCALHOST, port).into()).map_err(|v6| {
            let place = namespace.map_or_else(|| "the host's".to_owned(), |path| format!("{path:?}"));
            std::io::Error::other(format!(
                "failed to connect to localhost:{port} inside namespace {place}, IPv4: {v4}, IPv6: {v6}"
            ))
        })
    })
}
