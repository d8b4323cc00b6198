//! Questions from the wire: UDP and TCP, one task per address and transport, answers from the zone or from upstream.
//!
//! Answers about the cluster are made in the receiving task; only what waits for an upstream gets a task of its own,
//! and of those there is a bound. Before the cluster is known its names are SERVFAIL, so that resolvers ask another node.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    edns,
    forward::{Forwarder, Transport},
    health::Metrics,
    zone::{Answer, Zone},
};

const TCP_IDLE: Duration = Duration::from_secs(10);
const TCP_CONNECTIONS: usize = 256;
/// Questions that wait for an upstream at once.
const FORWARDED: usize = 1024;
/// Canonical names followed for one question.
const ALIASES: usize = 8;

pub struct Server {
    zone: Arc<RwLock<Zone>>,
    forwarder: Forwarder,
    metrics: Arc<Metrics>,
    /// Successive answers start with another of their records.
    turn: AtomicUsize,
    waiting: Arc<Semaphore>,
}

/// What can be answered now, and what somebody else must be asked first.
enum Next {
    Reply(Message),
    Forward(Message),
    /// The answer so far ends in a name of another domain.
    Follow(Message, Name),
}

impl Server {
    pub fn new(zone: Arc<RwLock<Zone>>, forwarder: Forwarder, metrics: Arc<Metrics>) -> Self {
        Self { zone, forwarder, metrics, turn: AtomicUsize::new(0), waiting: Arc::new(Semaphore::new(FORWARDED)) }
    }

    /// The first step, which never waits.
    fn consider(&self, request: Message) -> Next {
        if let Some(code) = refusal(&request) {
            return Next::Reply(reply(&request, code));
        }
        let query = request.queries[0].clone();
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        if !zone.owns(query.name()) && !self.metrics.is_synced() {
            return Next::Forward(request);
        }
        if !self.metrics.is_synced() {
            return Next::Reply(reply(&request, ResponseCode::ServFail));
        }
        match zone.answer(query.name(), query.query_type()) {
            Answer::Elsewhere => Next::Forward(request),
            Answer::NoSuchName => Next::Reply(negative(&request, &zone, ResponseCode::NXDomain)),
            Answer::NoData => Next::Reply(negative(&request, &zone, ResponseCode::NoError)),
            Answer::Found { answers, additionals } => self.found(&request, &zone, answers, additionals),
        }
    }

    fn found(&self, request: &Message, zone: &Zone, answers: Vec<Record>, additionals: Vec<Record>) -> Next {
        let mut response = authoritative(request, ResponseCode::NoError);
        response.answers = answers;
        response.additionals = additionals;
        let by = self.turn.fetch_add(1, Relaxed) % response.answers.len().max(1);
        response.answers.rotate_left(by);
        match self.follow_within(zone, &request.queries[0], &mut response) {
            Some(target) => Next::Follow(response, target),
            None => Next::Reply(response),
        }
    }

    /// Appends what canonical names of this domain lead to; returns the name of another domain where they leave it.
    fn follow_within(&self, zone: &Zone, query: &Query, response: &mut Message) -> Option<Name> {
        for _ in 0..ALIASES {
            let target = match response.answers.last().map(|record| &record.data) {
                Some(RData::CNAME(target)) if query.query_type() != RecordType::CNAME => target.0.clone(),
                _ => return None,
            };
            match zone.answer(&target, query.query_type()) {
                Answer::Found { answers, .. } => response.answers.extend(answers),
                Answer::Elsewhere => return Some(target),
                Answer::NoData | Answer::NoSuchName => return None,
            }
        }
        None
    }

    async fn forward(&self, next: Next, transport: Transport) -> Message {
        match next {
            Next::Reply(response) => response,
            Next::Forward(request) => match self.forwarder.resolve(&request, transport).await {
                Some(answer) => answer,
                None => reply(&request, self.forwarder.failure()),
            },
            Next::Follow(mut response, target) => {
                let mut request = Message::query();
                request.metadata.recursion_desired = true;
                request.add_query(Query::query(target, response.queries[0].query_type()));
                // A client that gets the alias alone can still ask for its target.
                if let Some(answer) = self.forwarder.resolve(&request, Transport::Udp).await {
                    response.answers.extend(answer.answers);
                }
                response
            }
        }
    }
}

/// Why a message is no question that this server answers.
fn refusal(request: &Message) -> Option<ResponseCode> {
    match request.queries.as_slice() {
        _ if request.metadata.op_code != OpCode::Query => Some(ResponseCode::NotImp),
        [_] if request.version() > 0 => Some(ResponseCode::BADVERS),
        [query] if query.query_class() != DNSClass::IN => Some(ResponseCode::Refused),
        [query] if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) => Some(ResponseCode::Refused),
        [_] => None,
        _ => Some(ResponseCode::FormErr),
    }
}

fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.queries = request.queries.clone();
    response.edns = request.edns.as_ref().map(|_| edns::ours());
    response
}

fn authoritative(request: &Message, code: ResponseCode) -> Message {
    let mut response = reply(request, code);
    response.metadata.authoritative = true;
    response
}

fn negative(request: &Message, zone: &Zone, code: ResponseCode) -> Message {
    let mut response = authoritative(request, code);
    response.authorities = vec![zone.soa()];
    response
}

/// The bytes of a response that fit: over UDP one that does not is cut and the client comes again over TCP.
fn encode(response: &Message, room: usize) -> Option<Vec<u8>> {
    let bytes = response.to_vec().ok()?;
    match bytes.len() <= room {
        true => Some(bytes),
        false => response.truncate().to_vec().ok(),
    }
}

/// A question, or nothing for what must not be answered: responses, and bytes that are no message.
fn decode(bytes: &[u8]) -> Option<Message> {
    Message::from_vec(bytes).ok().filter(|message| message.metadata.message_type == MessageType::Query)
}

pub async fn serve_udp(server: Arc<Server>, address: SocketAddr) {
    let socket = Arc::new(insist(address, "UDP", || UdpSocket::bind(address)).await);
    let mut buffer = [0u8; 4096];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // ICMP errors about earlier answers arrive here.
                debug!(%address, %error, "failed to receive");
                continue;
            }
        };
        let Some(request) = decode(&buffer[..length]) else { continue };
        let room = edns::room(&request);
        match server.consider(request) {
            Next::Reply(response) => send(&server, &socket, &response, room, client).await,
            next => {
                let Ok(permit) = Arc::clone(&server.waiting).try_acquire_owned() else { continue };
                let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
                tokio::spawn(async move {
                    let response = server.forward(next, Transport::Udp).await;
                    send(&server, &socket, &response, room, client).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn send(server: &Server, socket: &UdpSocket, response: &Message, room: usize, client: SocketAddr) {
    server.metrics.answered(response.metadata.response_code);
    if let Some(bytes) = encode(response, room)
        && let Err(error) = socket.send_to(&bytes, client).await
    {
        debug!(%client, %error, "failed to answer");
    }
}

pub async fn serve_tcp(server: Arc<Server>, address: SocketAddr) {
    let listener = insist(address, "TCP", || TcpListener::bind(address)).await;
    let room = Arc::new(Semaphore::new(TCP_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    // A connection that breaks is its client's to open again.
                    let _ = converse(&server, stream).await;
                    drop(permit);
                });
            }
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(server: &Server, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let length = timeout(TCP_IDLE, stream.read_u16()).await??;
        let mut bytes = vec![0; usize::from(length)];
        timeout(TCP_IDLE, stream.read_exact(&mut bytes)).await??;
        let Some(request) = decode(&bytes) else { return Ok(()) };
        let response = server.forward(server.consider(request), Transport::Tcp).await;
        server.metrics.answered(response.metadata.response_code);
        let Some(bytes) = encode(&response, usize::from(u16::MAX)) else { return Ok(()) };
        let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
        framed.extend(bytes);
        timeout(TCP_IDLE, stream.write_all(&framed)).await??;
    }
}

/// The node's address may appear after us.
async fn insist<T, F: Future<Output = io::Result<T>>>(address: SocketAddr, transport: &str, bind: impl Fn() -> F) -> T {
    let mut complained = false;
    loop {
        match bind().await {
            Ok(bound) => {
                info!(%address, transport, "answering");
                return bound;
            }
            Err(error) if !complained => warn!(%address, transport, %error, "cannot listen yet; trying again"),
            Err(_) => {}
        }
        complained = true;
        sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests;
