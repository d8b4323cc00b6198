//! A streaming server as a CRI runtime's: SPDY with `v4.channel.k8s.io`, one path per thing a process may do.

use std::collections::HashMap;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use http::HeaderValue;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use crate::spdy::{Session, Stream};
use crate::upgrade;

pub(super) const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;
pub(super) const EXIT_7: &str = r#"{"metadata":{},"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;

/// What the processes report to the test.
pub(super) type Reports = mpsc::UnboundedSender<String>;

/// Gives the server's address.
pub(super) async fn start(reports: Reports) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/{process}", post(stream)).with_state(reports);
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

async fn stream(State(reports): State<Reports>, Path(process): Path<String>, mut request: Request) -> Response {
    assert!(upgrade::wants_spdy(request.headers()));
    assert_eq!(request.headers()[upgrade::PROTOCOL_VERSION], "v4.channel.k8s.io");
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let session = Session::new(TokioIo::new(client.await.unwrap()));
        run(&process, session, reports).await;
    });
    upgrade::accept(Some(&HeaderValue::from_static("v4.channel.k8s.io")))
}

async fn run(process: &str, mut session: Session, reports: Reports) {
    let names: &[&str] = match process {
        "cat" => &["error", "stdin", "stdout"],
        "fail" => &["error", "stdout", "stderr"],
        "tty" => &["error", "stdin", "stdout", "resize"],
        "die" | "flood" => &["error", "stdout"],
        "wait" => &["error", "stdin", "stdout"],
        other => panic!("no process {other}"),
    };
    let mut streams = HashMap::new();
    while streams.len() < names.len() {
        let stream = session.accept().await.expect("every stream is opened");
        streams.insert(stream.headers.get("streamtype").unwrap().to_owned(), stream);
    }
    assert!(names.iter().all(|name| streams.contains_key(*name)));
    match process {
        "cat" => cat(&mut streams).await,
        "fail" => {
            say(&mut streams, "stdout", "out").await;
            say(&mut streams, "stderr", "err").await;
            say(&mut streams, "error", EXIT_7).await;
        }
        "tty" => {
            let size = streams.get_mut("resize").unwrap().reader.recv().await.unwrap();
            say(&mut streams, "stdout", std::str::from_utf8(&size).unwrap()).await;
            say(&mut streams, "error", SUCCESS).await;
        }
        "flood" => {
            for part in 0..1000u32 {
                let data = Bytes::from(vec![part as u8; 32 << 10]);
                streams.get_mut("stdout").unwrap().writer.send(data).await.unwrap();
            }
            say(&mut streams, "error", SUCCESS).await;
        }
        "wait" => {
            while streams.get_mut("stdin").unwrap().reader.recv().await.is_some() {}
            reports.send("stdin ended".into()).unwrap();
        }
        _ => return,
    }
    // As spdystream's Close does: everything still open is reset, then the connection goes.
    for (_, stream) in streams {
        stream.writer.reset().await;
    }
    while session.accept().await.is_some() {}
}

async fn cat(streams: &mut HashMap<String, Stream>) {
    let mut stdin = streams.remove("stdin").unwrap();
    while let Some(data) = stdin.reader.recv().await {
        streams.get_mut("stdout").unwrap().writer.send(data).await.unwrap();
    }
    say(streams, "error", SUCCESS).await;
}

async fn say(streams: &mut HashMap<String, Stream>, name: &str, text: &str) {
    streams.get_mut(name).unwrap().writer.send(Bytes::from(text.to_owned())).await.unwrap();
}
