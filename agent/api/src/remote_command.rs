//! Exec and attach: a client's channels on one side, the runtime's SPDY streams on the other.
//!
//! kubectl's WebSocket (`v5.channel.k8s.io`) is translated, because runtimes refuse v5 and the older channels cannot
//! say that stdin has ended. A client that speaks SPDY already is joined to the runtime byte for byte. The runtime is
//! asked before the client's upgrade is answered, so that its refusals are plain HTTP.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::Request;
use http::header::HeaderValue;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::answer::Refusal;
use crate::node::{Node, NodeError, Streams};
use crate::query::Query;
use crate::spdy::{Headers, Reader, Session, Writer};
use crate::{containers, upgrade};

/// The first byte of every WebSocket message says whose bytes follow.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Only in v5: the channel named by the next byte has ended.
const CLOSE: u8 = 255;

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
/// A client that has gone without a word is found out by a ping that cannot be written.
const PING: Duration = Duration::from_secs(15);
const CLOSE_WAIT: Duration = Duration::from_secs(5);

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// `/exec/{namespace}/{pod}/{container}`, or with the uid before the container.
pub(crate) async fn exec(
    State(node): State<Arc<dyn Node>>,
    Path(path): Path<Vec<String>>,
    upgrade: Upgrade,
    request: Request<axum::body::Body>,
) -> Result<Response, Refusal> {
    let query = Query::parse(request.uri().query());
    let (pod, container, streams) = target(&*node, &path, &query)?;
    let id = containers::running(&pod, &container)?;
    let url = node.exec(&id, query.all("command"), streams).await;
    join(url, streams, upgrade, request).await
}

pub(crate) async fn attach(
    State(node): State<Arc<dyn Node>>,
    Path(path): Path<Vec<String>>,
    upgrade: Upgrade,
    request: Request<axum::body::Body>,
) -> Result<Response, Refusal> {
    let query = Query::parse(request.uri().query());
    let (pod, container, streams) = target(&*node, &path, &query)?;
    let id = containers::running(&pod, &container)?;
    let url = node.attach(&id, streams).await;
    join(url, streams, upgrade, request).await
}

fn target(node: &dyn Node, path: &[String], query: &Query) -> Result<(Arc<Pod>, String, Streams), Refusal> {
    let (namespace, name, uid, container) = match path {
        [namespace, name, container] => (namespace, name, None, container),
        [namespace, name, uid, container] => (namespace, name, Some(uid.as_str()), container),
        _ => return Err(Refusal::not_found("404 page not found")),
    };
    let tty = query.flag("tty");
    // A terminal has one output.
    let stderr = query.flag("error") && !tty;
    let streams = Streams { stdin: query.flag("input"), stdout: query.flag("output"), stderr, tty };
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok((containers::pod(node, namespace, name, uid)?, container.clone(), streams))
}

async fn join(
    url: Result<String, NodeError>,
    streams: Streams,
    upgrade: Upgrade,
    request: Request<axum::body::Body>,
) -> Result<Response, Refusal> {
    let url = url?;
    if upgrade::wants_spdy(request.headers()) {
        return splice(&url, request).await;
    }
    let upgrade = upgrade.map_err(|rejection| Refusal::new(rejection.status(), rejection.body_text()))?;
    let upgrade = upgrade.protocols([V5, V4]);
    if upgrade.selected_protocol().is_none() {
        return Err(Refusal::bad_request(format!("this server speaks the WebSocket protocols {V5} and {V4}")));
    }
    let (connection, _) = upgrade::dial(&url, &[HeaderValue::from_static(V4)]).await?;
    let session = Session::new(connection);
    Ok(upgrade.on_upgrade(move |socket| async move {
        if let Err(error) = translate(socket, session, streams).await {
            tracing::debug!(%error, "a stream to a container broke");
        }
    }))
}

/// Both speak SPDY, and the version of the stream protocol is theirs to agree on.
async fn splice(url: &str, mut request: Request<axum::body::Body>) -> Result<Response, Refusal> {
    let offered: Vec<_> = request.headers().get_all(upgrade::PROTOCOL_VERSION).iter().cloned().collect();
    let (mut runtime, headers) = upgrade::dial(url, &offered).await?;
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(client) = client.await {
            // Either end may just go: there is nobody left to tell.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut runtime).await;
        }
    });
    Ok(upgrade::accept(headers.get(upgrade::PROTOCOL_VERSION)))
}

/// Ends when the runtime has said everything, or when the client has gone.
async fn translate(socket: WebSocket, mut session: Session, streams: Streams) -> Result<(), crate::spdy::SpdyError> {
    let (sink, source) = socket.split();
    let (messages, outbox) = mpsc::channel(16);
    let mut outputs = JoinSet::new();
    let error = session.open(Headers::from([("streamtype", "error")])).await?;
    outputs.spawn(pass_status(error.reader, messages.clone()));
    let mut input = Input::default();
    if streams.stdin {
        input.stdin = Some(session.open(Headers::from([("streamtype", "stdin")])).await?.writer);
    }
    for (name, channel, wanted) in [("stdout", STDOUT, streams.stdout), ("stderr", STDERR, streams.stderr)] {
        if wanted {
            let stream = session.open(Headers::from([("streamtype", name)])).await?;
            outputs.spawn(pass_output(channel, stream.reader, messages.clone()));
        }
    }
    if streams.tty {
        input.resize = Some(session.open(Headers::from([("streamtype", "resize")])).await?.writer);
    }
    drop(messages);
    let mut writing = tokio::spawn(write_messages(sink, outbox));
    let mut reading = tokio::spawn(input.follow(source));
    tokio::select! {
        _ = &mut writing => {}
        _ = &mut reading => writing.abort(),
    }
    // The client answers the close, or has a moment to.
    let _ = tokio::time::timeout(CLOSE_WAIT, &mut reading).await;
    reading.abort();
    Ok(())
}

async fn pass_output(channel: u8, mut reader: Reader, messages: mpsc::Sender<Message>) {
    while let Some(data) = reader.recv().await {
        if messages.send(on_channel(channel, &data)).await.is_err() {
            return;
        }
    }
}

/// The runtime's verdict, a Status in JSON; a connection that breaks before it gets one of ours.
async fn pass_status(mut reader: Reader, messages: mpsc::Sender<Message>) {
    let mut status = Vec::new();
    while let Some(data) = reader.recv().await {
        status.extend_from_slice(&data);
    }
    if status.is_empty() {
        status = br#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"InternalError","code":500,"message":"the container runtime closed the stream without a status"}"#.to_vec();
    }
    let _ = messages.send(on_channel(ERROR, &status)).await;
}

fn on_channel(channel: u8, data: &[u8]) -> Message {
    let mut message = Vec::with_capacity(1 + data.len());
    message.push(channel);
    message.extend_from_slice(data);
    Message::Binary(message.into())
}

async fn write_messages(mut sink: SplitSink<WebSocket, Message>, mut outbox: mpsc::Receiver<Message>) {
    let mut ping = tokio::time::interval(PING);
    ping.tick().await;
    loop {
        let message = tokio::select! {
            message = outbox.recv() => message,
            _ = ping.tick() => Some(Message::Ping(Bytes::new())),
        };
        let last = message.is_none();
        let normal = || Message::Close(Some(CloseFrame { code: 1000, reason: "".into() }));
        if sink.send(message.unwrap_or_else(normal)).await.is_err() || last {
            return;
        }
    }
}

#[derive(Default)]
struct Input {
    stdin: Option<Writer>,
    resize: Option<Writer>,
}

impl Input {
    async fn follow(mut self, mut source: SplitStream<WebSocket>) {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(data) => self.take(data).await,
                Message::Text(text) => self.take(text.into()).await,
                Message::Close(_) => return,
                Message::Ping(_) | Message::Pong(_) => {}
            }
        }
    }

    async fn take(&mut self, mut message: Bytes) {
        if message.is_empty() {
            return;
        }
        let data = message.split_off(1);
        // A stream the runtime has closed takes nothing more; the process may go on without it.
        let _ = match (message[0], &mut self.stdin, &mut self.resize) {
            (STDIN, Some(stdin), _) if !data.is_empty() => stdin.send(data).await,
            (RESIZE, _, Some(resize)) => resize.send(data).await,
            (CLOSE, Some(stdin), _) if data.first() == Some(&STDIN) => {
                let finished = stdin.finish().await;
                self.stdin = None;
                finished
            }
            _ => Ok(()),
        };
    }
}
