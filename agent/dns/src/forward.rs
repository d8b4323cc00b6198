//! Questions that are not about the cluster: to the node's own resolvers, with a small cache in front.
//!
//! Called by `server`. Servers are tried in order, twice, each for a bounded time, from a fresh port with a fresh id.
//! Our own addresses are never asked: a node whose resolv.conf names its cluster DNS would ask itself for ever.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, Query, ResponseCode},
    rr::{LowerName, RecordType},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tracing::{debug, warn};

use crate::{edns, health::Metrics};

const ATTEMPT: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
const CACHED_ANSWERS: usize = 2048;
/// Nothing is kept longer, whatever its records allow.
const LONGEST: Duration = Duration::from_secs(30);
const NEGATIVE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    cache: Mutex<HashMap<(LowerName, RecordType), Cached>>,
    metrics: Arc<Metrics>,
}

struct Cached {
    answer: Arc<Message>,
    since: Instant,
    until: Instant,
}

impl Forwarder {
    pub fn new(upstreams: Vec<SocketAddr>, metrics: Arc<Metrics>) -> Self {
        Self { upstreams, cache: Mutex::default(), metrics }
    }

    /// An answer to `request`, under its id and with its question; nothing if no upstream gave one.
    pub async fn resolve(&self, request: &Message, transport: Transport) -> Option<Message> {
        let query = request.queries.first()?;
        // Signed answers are for those who ask for them: they pass by the cache.
        let plain = request.edns.as_ref().is_none_or(|edns| !edns.flags().dnssec_ok);
        let key = (LowerName::from(query.name().clone()), query.query_type());
        if let Some(answer) = self.cached(&key).filter(|_| plain) {
            self.metrics.hit();
            return Some(readdress(answer, request));
        }
        self.metrics.forwarded();
        let answer = self.ask_all(request, query, transport).await?;
        if plain && let Some(lifetime) = lifetime(&answer) {
            self.keep(key, &answer, lifetime);
        }
        Some(readdress(answer, request))
    }

    /// What a client hears when nobody answers.
    pub fn failure(&self) -> ResponseCode {
        if self.upstreams.is_empty() { ResponseCode::Refused } else { ResponseCode::ServFail }
    }

    async fn ask_all(&self, request: &Message, query: &Query, transport: Transport) -> Option<Message> {
        let mut fallback = None;
        for upstream in self.upstreams.iter().cycle().take(self.upstreams.len() * ROUNDS) {
            let asked = timeout(ATTEMPT, ask(*upstream, request, query, transport)).await;
            match asked.unwrap_or_else(|elapsed| Err(elapsed.into())) {
                // Another upstream may do better than one that fails or refuses.
                Ok(answer)
                    if matches!(answer.metadata.response_code, ResponseCode::ServFail | ResponseCode::Refused) =>
                {
                    fallback = Some(answer);
                }
                Ok(answer) => return Some(answer),
                Err(error) => debug!(%upstream, %error, "an upstream did not answer"),
            }
        }
        fallback
    }

    fn cached(&self, key: &(LowerName, RecordType)) -> Option<Message> {
        let now = Instant::now();
        let cache = self.cache();
        let cached = cache.get(key).filter(|cached| cached.until > now)?;
        let (mut answer, age) = ((*cached.answer).clone(), (now - cached.since).as_secs() as u32);
        drop(cache);
        for record in answer.answers.iter_mut().chain(&mut answer.authorities).chain(&mut answer.additionals) {
            record.decrement_ttl(age);
        }
        Some(answer)
    }

    fn keep(&self, key: (LowerName, RecordType), answer: &Message, lifetime: Duration) {
        let now = Instant::now();
        let mut cache = self.cache();
        if cache.len() >= CACHED_ANSWERS {
            cache.retain(|_, cached| cached.until > now);
        }
        if cache.len() >= CACHED_ANSWERS {
            cache.clear();
        }
        cache.insert(key, Cached { answer: Arc::new(answer.clone()), since: now, until: now + lifetime });
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<(LowerName, RecordType), Cached>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client's id, spelling of the name and options around an upstream's records.
fn readdress(mut answer: Message, request: &Message) -> Message {
    answer.metadata.id = request.metadata.id;
    answer.metadata.recursion_desired = request.metadata.recursion_desired;
    answer.metadata.authoritative = false;
    answer.queries = request.queries.clone();
    answer.edns = request.edns.as_ref().map(|asked| {
        let mut options = edns::ours();
        options.set_dnssec_ok(asked.flags().dnssec_ok);
        options
    });
    answer
}

/// How long an answer may be kept; nothing for failures and for those that are cut.
fn lifetime(answer: &Message) -> Option<Duration> {
    let shortest = answer.answers.iter().chain(&answer.authorities).map(|record| record.ttl).min();
    let allowed = Duration::from_secs(shortest.unwrap_or(0).into());
    match answer.metadata.response_code {
        _ if answer.metadata.truncation || allowed.is_zero() => None,
        ResponseCode::NoError if !answer.answers.is_empty() => Some(allowed.min(LONGEST)),
        ResponseCode::NoError | ResponseCode::NXDomain => Some(allowed.min(NEGATIVE)),
        _ => None,
    }
}

async fn ask(upstream: SocketAddr, request: &Message, query: &Query, transport: Transport) -> io::Result<Message> {
    let mut question = request.clone();
    question.metadata.id = fastrand::u16(..);
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let is_answer = |answer: &Message| {
        answer.metadata.id == question.metadata.id
            && answer.metadata.message_type == MessageType::Response
            && answer.queries.first().is_some_and(|q| q.name() == query.name() && q.query_type() == query.query_type())
    };
    match transport {
        Transport::Udp => ask_udp(upstream, &bytes, is_answer).await,
        Transport::Tcp => ask_tcp(upstream, &bytes).await.and_then(|answer| match is_answer(&answer) {
            true => Ok(answer),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question")),
        }),
    }
}

/// Datagrams that are not the answer are not for us: somebody is guessing.
async fn ask_udp(upstream: SocketAddr, bytes: &[u8], is_answer: impl Fn(&Message) -> bool) -> io::Result<Message> {
    let any: IpAddr = if upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = [0u8; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Ok(answer) = Message::from_vec(&buffer[..length])
            && is_answer(&answer)
        {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
    framed.extend(bytes);
    stream.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Message::from_vec(&answer).map_err(io::Error::other)
}

/// The `nameserver` lines of a resolv.conf, without those that are us.
pub fn read_resolv_conf(path: &Path, own: &[SocketAddr]) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| {
        warn!(path = %path.display(), %error, "no resolvers to forward to");
        String::new()
    });
    parse_resolv_conf(&text, own)
}

fn parse_resolv_conf(text: &str, own: &[SocketAddr]) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    servers.map(|address| SocketAddr::new(address, 53)).filter(|server| !own.contains(server)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_that_names_us_does_not_make_a_loop() {
        let own: SocketAddr = "10.89.0.2:53".parse().unwrap();
        let text = "# a comment\nsearch a b\nnameserver 10.89.0.2\nnameserver 1.1.1.1\nnameserver nonsense\n";
        assert_eq!(parse_resolv_conf(text, &[own]), ["1.1.1.1:53".parse().unwrap()]);
    }
}
