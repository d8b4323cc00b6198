//! SPDY/3.1 sessions as Kubernetes and CRI runtimes speak them: streams named by headers, opened by the client only.
//!
//! A client session goes to the runtime's streaming server (exec, attach), a server session takes kubectl's
//! port-forward, from an upgraded connection or out of a WebSocket. Windows are neither kept nor announced, as in the
//! implementation all peers share: TCP holds back who is too fast. Priorities, settings and push are not spoken.

mod dictionary;
mod frame;
mod headers;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use frame::Frame;
pub use headers::Headers;
use headers::{Deflater, Inflater};

/// Frames that may wait for the wire, and for a stream's reader: with pieces of 32 KiB, 1 and 8 MiB.
const OUTGOING: usize = 32;
const BUFFERED: usize = 256;
const CANCEL: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    #[error("not a frame of SPDY/3")]
    Frame,
    #[error("not a block of SPDY/3 headers")]
    Headers,
    #[error("the connection is closed")]
    Closed,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What the writer sends; headers are packed there, in the order of the wire.
enum Outgoing {
    Open(u32, Headers),
    Reply(u32),
    Frame(Frame),
}

/// The session's side of a stream.
struct Entry {
    data: Option<mpsc::Sender<Bytes>>,
    reset: CancellationToken,
}

type Entries = Arc<Mutex<HashMap<u32, Entry>>>;

/// Dropping it closes the connection and ends its streams.
pub struct Session {
    outgoing: mpsc::Sender<Outgoing>,
    entries: Entries,
    incoming: mpsc::Receiver<Stream>,
    next: u32,
    _tasks: JoinSet<()>,
}

pub struct Stream {
    pub headers: Headers,
    pub reader: Reader,
    pub writer: Writer,
}

pub struct Reader {
    data: mpsc::Receiver<Bytes>,
}

/// Without [`Writer::finish`] the other side learns of the end only with the session's.
pub struct Writer {
    id: u32,
    outgoing: mpsc::Sender<Outgoing>,
    entries: Entries,
    reset: CancellationToken,
}

impl Session {
    /// The side that opens streams, or only accepts them: which one depends on who calls [`Session::open`].
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (read, write) = tokio::io::split(io);
        let (outgoing, frames) = mpsc::channel(OUTGOING);
        let (opened, incoming) = mpsc::channel(BUFFERED);
        let entries = Entries::default();
        let mut tasks = JoinSet::new();
        let demultiplexer = Demultiplexer { entries: entries.clone(), outgoing: outgoing.clone(), opened };
        tasks.spawn(demultiplexer.run(read));
        tasks.spawn(write_frames(write, frames));
        Self { outgoing, entries, incoming, next: 1, _tasks: tasks }
    }

    /// Opens a stream; a peer that does not want it resets it.
    pub async fn open(&mut self, headers: Headers) -> Result<Stream, SpdyError> {
        let id = self.next;
        self.next += 2;
        let stream = enter(&self.entries, &self.outgoing, id, headers.clone(), false);
        self.outgoing.send(Outgoing::Open(id, headers)).await.map_err(|_| SpdyError::Closed)?;
        Ok(stream)
    }

    /// The next stream of the peer, answered already; none when the connection ends.
    pub async fn accept(&mut self) -> Option<Stream> {
        let stream = self.incoming.recv().await?;
        self.outgoing.send(Outgoing::Reply(stream.writer.id)).await.ok()?;
        Some(stream)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        end_all(&self.entries);
    }
}

fn end_all(entries: &Entries) {
    for (_, entry) in entries.lock().expect("no holder panics").drain() {
        entry.reset.cancel();
    }
}

fn enter(entries: &Entries, outgoing: &mpsc::Sender<Outgoing>, id: u32, headers: Headers, fin: bool) -> Stream {
    let (data, reader) = mpsc::channel(BUFFERED);
    let reset = CancellationToken::new();
    let entry = Entry { data: (!fin).then_some(data), reset: reset.clone() };
    entries.lock().expect("no holder panics").insert(id, entry);
    let writer = Writer { id, outgoing: outgoing.clone(), entries: entries.clone(), reset };
    Stream { headers, reader: Reader { data: reader }, writer }
}

impl Reader {
    /// None at the end of the stream, whether finished, reset or cut.
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.data.recv().await
    }
}

impl Writer {
    pub async fn send(&mut self, data: Bytes) -> Result<(), SpdyError> {
        self.frame(data, false).await
    }

    /// Half-closes: the peer's reader comes to its end.
    pub async fn finish(&mut self) -> Result<(), SpdyError> {
        self.frame(Bytes::new(), true).await
    }

    /// Ends both directions at once.
    pub async fn reset(self) {
        let frame = Frame::Reset { stream: self.id, status: CANCEL };
        let _ = self.outgoing.send(Outgoing::Frame(frame)).await;
    }

    /// Resolves when the peer gives the stream up.
    pub fn reset_by_peer(&self) -> CancellationToken {
        self.reset.clone()
    }

    async fn frame(&mut self, data: Bytes, fin: bool) -> Result<(), SpdyError> {
        if self.reset.is_cancelled() {
            return Err(SpdyError::Closed);
        }
        let frame = Frame::Data { stream: self.id, fin, data };
        self.outgoing.send(Outgoing::Frame(frame)).await.map_err(|_| SpdyError::Closed)
    }
}

impl Drop for Writer {
    /// Who finished reading is forgotten here; who still reads is forgotten with the session.
    fn drop(&mut self) {
        let mut entries = self.entries.lock().expect("no holder panics");
        if entries.get(&self.id).is_some_and(|entry| entry.data.as_ref().is_none_or(mpsc::Sender::is_closed)) {
            entries.remove(&self.id);
        }
    }
}

/// Brings frames to their streams.
struct Demultiplexer {
    entries: Entries,
    outgoing: mpsc::Sender<Outgoing>,
    opened: mpsc::Sender<Stream>,
}

impl Demultiplexer {
    async fn run(self, read: ReadHalf<impl AsyncRead>) {
        if let Err(error) = self.follow(read).await {
            tracing::debug!(%error, "a SPDY connection broke");
        }
        end_all(&self.entries);
    }

    async fn follow(&self, read: ReadHalf<impl AsyncRead>) -> Result<(), SpdyError> {
        let mut read = BufReader::with_capacity(64 << 10, read);
        let mut inflater = Inflater::new();
        while let Some(frame) = Frame::read(&mut read).await? {
            match frame {
                Frame::Open { stream, fin, block } => self.open(stream, fin, inflater.unpack(&block)?).await?,
                Frame::Reply { stream, fin, block } | Frame::Headers { stream, fin, block } => {
                    inflater.unpack(&block)?;
                    self.data(stream, Bytes::new(), fin).await;
                }
                Frame::Data { stream, fin, data } => self.data(stream, data, fin).await,
                Frame::Reset { stream, .. } => self.reset(stream),
                // Dropped rather than waited for: a reader that waits for a writer may wait for itself.
                Frame::Ping { .. } => drop(self.outgoing.try_send(Outgoing::Frame(frame))),
                Frame::GoAway | Frame::Other => {}
            }
        }
        Ok(())
    }

    async fn open(&self, id: u32, fin: bool, headers: Headers) -> Result<(), SpdyError> {
        if self.entries.lock().expect("no holder panics").contains_key(&id) {
            return Err(SpdyError::Frame);
        }
        let stream = enter(&self.entries, &self.outgoing, id, headers, fin);
        self.opened.send(stream).await.map_err(|_| SpdyError::Closed)
    }

    async fn data(&self, id: u32, data: Bytes, fin: bool) {
        let reader = self.entries.lock().expect("no holder panics").get(&id).and_then(|entry| entry.data.clone());
        if let (Some(reader), false) = (reader, data.is_empty()) {
            // Refused only by a stream whose reader has gone.
            let _ = reader.send(data).await;
        }
        if let (true, Some(entry)) = (fin, self.entries.lock().expect("no holder panics").get_mut(&id)) {
            entry.data = None;
        }
    }

    fn reset(&self, id: u32) {
        if let Some(entry) = self.entries.lock().expect("no holder panics").remove(&id) {
            entry.reset.cancel();
        }
    }
}

async fn write_frames(mut write: WriteHalf<impl AsyncWrite>, mut frames: mpsc::Receiver<Outgoing>) {
    let mut deflater = Deflater::new();
    while let Some(outgoing) = frames.recv().await {
        let frame = match outgoing {
            Outgoing::Open(stream, headers) => {
                Frame::Open { stream, fin: false, block: deflater.pack(&headers).into() }
            }
            Outgoing::Reply(stream) => {
                Frame::Reply { stream, fin: false, block: deflater.pack(&Headers::default()).into() }
            }
            Outgoing::Frame(frame) => frame,
        };
        if write.write_all(&frame.encode()).await.is_err() || (frames.is_empty() && write.flush().await.is_err()) {
            return;
        }
    }
    let _ = write.shutdown().await;
}
