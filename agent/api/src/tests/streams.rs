use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::OnePod;
use super::runtime::{self, EXIT_7, SUCCESS};
use crate::spdy::{Headers, Session, Stream};
use crate::{router, upgrade};

struct Server {
    address: SocketAddr,
    reports: mpsc::UnboundedReceiver<String>,
    _logs: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let logs = tempfile::tempdir().unwrap();
        let (reports, received) = mpsc::unbounded_channel();
        let log = logs.path().join("0.log");
        std::fs::write(&log, "2026-01-01T00:00:01Z stdout F hello\n").unwrap();
        let node = OnePod { runtime: runtime::start(reports).await, log };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router::routes(Arc::new(node));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, reports: received, _logs: logs }
    }

    async fn connect(&self, path: &str, protocol: &'static str) -> Result<WebSocketStream<TcpStream>, String> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(protocol));
        let tcp = TcpStream::connect(self.address).await.unwrap();
        match tokio_tungstenite::client_async(request, tcp).await {
            Ok((socket, response)) => {
                assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
                Ok(socket)
            }
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                Err(format!("{}: {}", response.status().as_u16(), String::from_utf8_lossy(&body)))
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn exec(&self, options: &str) -> WebSocketStream<TcpStream> {
        self.connect(&format!("/exec/default/web/app?{options}"), "v5.channel.k8s.io").await.unwrap()
    }

    async fn get(&self, path: &str) -> String {
        let mut tcp = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// What each channel said, and whether the end was a normal close.
async fn read_channels(
    mut source: impl StreamExt<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
) -> (BTreeMap<u8, Vec<u8>>, bool) {
    let mut channels = BTreeMap::<u8, Vec<u8>>::new();
    let mut normal = false;
    while let Some(Ok(message)) = source.next().await {
        match message {
            Message::Binary(data) => channels.entry(data[0]).or_default().extend_from_slice(&data[1..]),
            Message::Close(frame) => normal = frame.is_some_and(|frame| u16::from(frame.code) == 1000),
            _ => {}
        }
    }
    (channels, normal)
}

fn text(channels: &BTreeMap<u8, Vec<u8>>, channel: u8) -> &str {
    channels.get(&channel).map_or("", |bytes| std::str::from_utf8(bytes).unwrap())
}

#[tokio::test]
async fn megabytes_of_stdin_come_back_whole_once_its_end_is_said() {
    let server = Server::start().await;
    let (mut sink, source) = server.exec("command=cat&input=1&output=1").await.split();
    let sent: Vec<u8> = (0..8u32 << 20).map(|n| (n / 251) as u8).collect();
    let said = sent.clone();
    tokio::spawn(async move {
        for piece in said.chunks(32 << 10) {
            sink.send(Message::Binary([&[0], piece].concat().into())).await.unwrap();
        }
        sink.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap();
        // The sink must live until the answer is read.
        std::future::pending::<()>().await;
    });
    let (channels, normal) = read_channels(source).await;
    assert!(channels[&1] == sent, "{} of {} bytes", channels[&1].len(), sent.len());
    assert_eq!(text(&channels, 3), SUCCESS);
    assert!(normal);
}

#[tokio::test]
async fn an_exit_code_and_both_outputs_reach_the_client() {
    let server = Server::start().await;
    let (channels, normal) = read_channels(server.exec("command=fail&output=1&error=1").await).await;
    assert_eq!((text(&channels, 1), text(&channels, 2), text(&channels, 3)), ("out", "err", EXIT_7));
    assert!(normal);
}

#[tokio::test]
async fn a_terminal_is_resized() {
    let server = Server::start().await;
    let mut socket = server.exec("command=tty&input=1&output=1&error=1&tty=1").await;
    let size = r#"{"Width":80,"Height":24}"#;
    socket.send(Message::Binary([b"\x04", size.as_bytes()].concat().into())).await.unwrap();
    let (channels, _) = read_channels(socket).await;
    assert_eq!((text(&channels, 1), text(&channels, 3)), (size, SUCCESS));
}

#[tokio::test]
async fn the_end_of_a_large_output_is_not_lost_on_a_slow_client() {
    let server = Server::start().await;
    let mut socket = server.exec("command=flood&output=1").await;
    let mut received = 0;
    let mut status = String::new();
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(data) if data[0] == 1 => received += data.len() - 1,
            Message::Binary(data) => status.push_str(std::str::from_utf8(&data[1..]).unwrap()),
            _ => {}
        }
        tokio::task::yield_now().await;
    }
    assert_eq!((received, status.as_str()), (1000 * (32 << 10), SUCCESS));
}

#[tokio::test]
async fn a_runtime_that_dies_without_a_status_is_reported() {
    let server = Server::start().await;
    let (channels, _) = read_channels(server.exec("command=die&output=1").await).await;
    assert!(text(&channels, 3).contains("InternalError"));
}

#[tokio::test]
async fn a_client_that_goes_ends_the_runtimes_stream() {
    let mut server = Server::start().await;
    drop(server.exec("command=wait&input=1&output=1").await);
    assert_eq!(server.reports.recv().await.unwrap(), "stdin ended");
}

#[tokio::test]
async fn what_cannot_run_is_refused_before_the_upgrade() {
    let server = Server::start().await;
    let rows = [
        ("/exec/default/web/app?command=missing&output=1", "500: no such command"),
        ("/exec/default/web/other?command=cat&output=1", "500: container not found (\"other\")"),
        ("/exec/default/gone/app?command=cat&output=1", "404: pod does not exist"),
        ("/exec/default/web/u2/app?command=cat&output=1", "404: pod does not exist"),
        ("/exec/default/web/app?command=cat", "400: you must specify at least 1 of stdin, stdout, stderr"),
    ];
    for (path, expected) in rows {
        assert_eq!(server.connect(path, "v5.channel.k8s.io").await.unwrap_err(), expected);
    }
}

#[tokio::test]
async fn a_client_that_speaks_spdy_is_joined_to_the_runtime() {
    let server = Server::start().await;
    let url = format!("http://{}/exec/default/web/app?command=cat&input=1&output=1", server.address);
    let offered = [HeaderValue::from_static("v4.channel.k8s.io")];
    let (connection, headers) = upgrade::dial(&url, &offered).await.unwrap();
    assert_eq!(headers[upgrade::PROTOCOL_VERSION], "v4.channel.k8s.io");
    let mut session = Session::new(connection);
    let mut error = open(&mut session, "error").await;
    let mut stdin = open(&mut session, "stdin").await;
    let mut stdout = open(&mut session, "stdout").await;
    stdin.writer.send(Bytes::from_static(b"hello")).await.unwrap();
    stdin.writer.finish().await.unwrap();
    assert_eq!(stdout.reader.recv().await.unwrap(), "hello");
    assert_eq!(error.reader.recv().await.unwrap(), SUCCESS);
}

async fn open(session: &mut Session, name: &str) -> Stream {
    session.open(Headers::from([("streamtype", name)])).await.unwrap()
}

async fn open_port(session: &mut Session, id: &str, port: u16) -> (Stream, Stream) {
    let port = port.to_string();
    let headers = |kind| Headers::from([("streamtype", kind), ("port", port.as_str()), ("requestid", id)]);
    let mut error = session.open(headers("error")).await.unwrap();
    error.writer.finish().await.unwrap();
    (session.open(headers("data")).await.unwrap(), error)
}

async fn read_all(stream: &mut Stream) -> String {
    let mut all = Vec::new();
    while let Some(data) = stream.reader.recv().await {
        all.extend_from_slice(&data);
    }
    String::from_utf8(all).unwrap()
}

/// Two connections at once, then one to a port where nobody listens.
async fn forward_ports(mut session: Session) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut said = Vec::new();
                tcp.read_to_end(&mut said).await.unwrap();
                tcp.write_all(&[&b"you said "[..], &said].concat()).await.unwrap();
            });
        }
    });
    let (mut first, mut first_error) = open_port(&mut session, "0", port).await;
    let (mut second, _second_error) = open_port(&mut session, "1", port).await;
    for (stream, text) in [(&mut second, "two"), (&mut first, "one")] {
        stream.writer.send(Bytes::from(text)).await.unwrap();
        stream.writer.finish().await.unwrap();
        assert_eq!(read_all(stream).await, format!("you said {text}"));
    }
    assert_eq!(read_all(&mut first_error).await, "");
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (mut refused, mut error) = open_port(&mut session, "2", unused).await;
    let text = read_all(&mut error).await;
    assert!(text.starts_with(&format!("error forwarding port {unused} to pod web_default, uid u1: ")), "{text}");
    assert!(text.contains("Connection refused"), "{text}");
    assert_eq!(read_all(&mut refused).await, "");
}

#[tokio::test]
async fn ports_are_forwarded_through_an_upgraded_connection() {
    let server = Server::start().await;
    let url = format!("http://{}/portForward/default/web", server.address);
    let (connection, headers) = upgrade::dial(&url, &[]).await.unwrap();
    assert_eq!(headers[upgrade::PROTOCOL_VERSION], "portforward.k8s.io");
    forward_ports(Session::new(connection)).await;
}

#[tokio::test]
async fn ports_are_forwarded_through_a_websocket_however_its_messages_are_cut() {
    let server = Server::start().await;
    let socket = server.connect("/portForward/default/web", "SPDY/3.1+portforward.k8s.io").await.unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let (mut sink, mut source) = socket.split();
    let (mut read, mut write) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut piece = [0; 5];
        while let Ok(count @ 1..) = read.read(&mut piece).await {
            sink.send(Message::Binary(piece[..count].to_vec().into())).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(Message::Binary(data))) = source.next().await {
            write.write_all(&data).await.unwrap();
        }
    });
    forward_ports(Session::new(near)).await;
}

#[tokio::test]
async fn logs_pods_and_numbers_are_served() {
    let server = Server::start().await;
    assert!(server.get("/containerLogs/default/web/app").await.ends_with("\r\n\r\nhello\n"));
    let missing = server.get("/containerLogs/default/web/other").await;
    assert!(missing.starts_with("HTTP/1.0 404") && missing.ends_with("container \"other\" not found in pod \"web\""));
    assert!(server.get("/pods").await.contains(r#""kind":"PodList""#));
    assert!(server.get("/metrics").await.contains("\nkubelet_running_pods 1\n"));
    assert!(server.get("/metrics/resource").await.contains("\nresource_scrape_error 0\n"));
    assert!(server.get("/stats/summary").await.contains(r#""nodeName":"worker""#));
}
