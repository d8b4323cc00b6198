use bytes::Bytes;

use super::*;

type Block = (&'static [u8], [(&'static str, &'static str); 2]);

/// Two blocks by zlib itself (level 9, preset dictionary, flushed), and what they say.
pub(super) const ZLIB_BLOCKS: &[Block] = &[
    (
        &[
            0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0xe5, 0x0e, 0x70, 0x3a, 0x2b, 0x29, 0x4a, 0x4d, 0xcc, 0x85, 0x16,
            0x25, 0xac, 0xa9, 0xa0, 0x80, 0x86, 0x14, 0xcb, 0x45, 0xa0, 0x24, 0xcc, 0x64, 0x61, 0x00, 0x00, 0x00, 0x00,
            0xff, 0xff,
        ],
        [("streamtype", "error"), ("port", "80")],
    ),
    (
        &[0xc2, 0xaa, 0x10, 0x54, 0xe6, 0x24, 0x22, 0x15, 0x27, 0x28, 0x65, 0x12, 0x00, 0x00, 0x00, 0xff, 0xff],
        [("streamtype", "data"), ("host", "content-type")],
    ),
];

fn pair() -> (Session, Session) {
    let (client, server) = tokio::io::duplex(1 << 16);
    (Session::new(client), Session::new(server))
}

async fn read_all(reader: &mut Reader) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(data) = reader.recv().await {
        all.extend_from_slice(&data);
    }
    all
}

#[tokio::test]
async fn streams_carry_headers_bytes_and_half_closes() {
    let (mut client, mut server) = pair();
    let echo = tokio::spawn(async move {
        while let Some(mut stream) = server.accept().await {
            let said = read_all(&mut stream.reader).await;
            let name = stream.headers.get("streamtype").unwrap_or_default().to_owned();
            stream.writer.send(Bytes::from([name.as_bytes(), b":", &said].concat())).await.unwrap();
            stream.writer.finish().await.unwrap();
        }
    });
    for name in ["error", "data", "stdin"] {
        let mut stream = client.open(Headers::from([("streamtype", name)])).await.unwrap();
        stream.writer.send(Bytes::from_static(b"hello")).await.unwrap();
        stream.writer.finish().await.unwrap();
        assert_eq!(read_all(&mut stream.reader).await, format!("{name}:hello").into_bytes());
    }
    drop(client);
    echo.await.unwrap();
}

#[tokio::test]
async fn megabytes_arrive_whole_before_the_end_that_follows_them() {
    let (mut client, mut server) = pair();
    let mut stream = client.open(Headers::from([("streamtype", "stdout")])).await.unwrap();
    let sender = tokio::spawn(async move {
        let mut stream = server.accept().await.unwrap();
        for part in 0..500u32 {
            stream.writer.send(Bytes::from(vec![part as u8; 32 << 10])).await.unwrap();
        }
        // A runtime resets its streams when the process is gone: what came before must still be read.
        stream.writer.reset().await;
        server
    });
    let all = read_all(&mut stream.reader).await;
    assert_eq!(all.len(), 500 * (32 << 10));
    assert!(all.chunks(32 << 10).enumerate().all(|(part, chunk)| chunk.iter().all(|byte| *byte == part as u8)));
    drop(sender.await.unwrap());
}

#[tokio::test]
async fn a_reset_is_seen_by_the_writer() {
    let (mut client, mut server) = pair();
    let stream = client.open(Headers::default()).await.unwrap();
    let mut accepted = server.accept().await.unwrap();
    stream.writer.reset().await;
    accepted.writer.reset_by_peer().cancelled().await;
    assert!(accepted.writer.send(Bytes::from_static(b"x")).await.is_err());
}

#[tokio::test]
async fn a_connection_that_goes_ends_every_stream() {
    let (mut client, mut server) = pair();
    let mut stream = client.open(Headers::default()).await.unwrap();
    drop(server.accept().await.unwrap());
    drop(server);
    assert!(stream.reader.recv().await.is_none());
    stream.writer.reset_by_peer().cancelled().await;
}

#[tokio::test]
async fn pings_come_back() {
    let (session, mut peer) = tokio::io::duplex(1024);
    let _session = Session::new(session);
    let ping = Frame::Ping { id: 7 };
    peer.write_all(&ping.encode()).await.unwrap();
    assert_eq!(Frame::read(&mut peer).await.unwrap(), Some(ping));
}
