//! Load on one address in bursts of a fraction of a second. Whoever compares addresses takes them in turn, so that
//! whatever else the machine does meets all alike. The other end is [`crate::serve`].

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// What is asked for, as the first byte of each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A connection per request, closed by the server.
    Connections = b'c',
    /// Requests one after another on one connection.
    Requests = b'r',
    /// One stream, as fast as it goes.
    Throughput = b't',
    /// Datagrams from one socket, as fast as they go.
    Datagrams = b'd',
    /// A datagram from a new socket each time, and its answer.
    FirstPackets = b'f',
}

/// Length of every request and of every answer.
pub(crate) const MESSAGE: usize = 64;
/// How much a stream is written and read at once.
pub(crate) const CHUNK: usize = 128 << 10;

/// Before an exchange counts as failed.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a datagram is sent in that time.
const ATTEMPTS: u32 = 3;

/// What one burst came to: operations, bytes or datagrams per second, and how long single operations took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Burst {
    pub rate: f64,
    pub latency: Option<Latency>,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

impl Kind {
    pub const ALL: [Self; 5] =
        [Self::Connections, Self::Requests, Self::Throughput, Self::Datagrams, Self::FirstPackets];

    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::Throughput => "throughput",
            Self::Datagrams => "datagrams",
            Self::FirstPackets => "first-packets",
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Streams alone fill both processors of a small machine; first packets are about how long they take.
    fn threads(self) -> usize {
        if matches!(self, Self::Connections | Self::Requests) { 2 } else { 1 }
    }

    /// What is told of its bursts.
    pub fn figures(self) -> &'static [Figure] {
        const RATE: fn(&Burst) -> f64 = |burst| burst.rate;
        const MEDIAN: fn(&Burst) -> f64 = |burst| burst.latency.map_or(f64::NAN, |latency| latency.p50);
        const TAIL: fn(&Burst) -> f64 = |burst| burst.latency.map_or(f64::NAN, |latency| latency.p99);
        match self {
            Self::Connections => &[Figure { metric: "new connections", unit: "1/s", of: RATE }],
            Self::Requests => &[
                Figure { metric: "requests", unit: "1/s", of: RATE },
                Figure { metric: "request latency, median", unit: "µs", of: MEDIAN },
                Figure { metric: "request latency, p99", unit: "µs", of: TAIL },
            ],
            Self::Throughput => &[Figure { metric: "throughput", unit: "Gbit/s", of: |burst| burst.rate * 8.0 / 1e9 }],
            Self::Datagrams => &[Figure { metric: "UDP packets", unit: "1/s", of: RATE }],
            Self::FirstPackets => &[
                Figure { metric: "first packet and answer, median", unit: "µs", of: MEDIAN },
                Figure { metric: "first packet and answer, p99", unit: "µs", of: TAIL },
            ],
        }
    }
}

/// One figure of a burst, as people read it.
#[derive(Clone, Copy)]
pub struct Figure {
    pub metric: &'static str,
    pub unit: &'static str,
    pub of: fn(&Burst) -> f64,
}

impl Figure {
    pub fn samples(&self, bursts: &[Burst]) -> Vec<f64> {
        bursts.iter().map(self.of).collect()
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).with_context(|| format!("no kind of load: {name}"))
    }
}

/// Until the address answers both ways that are measured: a Service's does so a moment after its endpoint is there.
pub fn wait_for(target: SocketAddr, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match exchange(target).and_then(|()| first_packet(target)) {
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("{target} does not answer"));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
            Ok(()) => return Ok(()),
        }
    }
}

pub fn burst(kind: Kind, target: SocketAddr, length: Duration) -> Result<Burst> {
    let parts: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..kind.threads()).map(|_| scope.spawn(move || part(kind, target, length))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client does not panic")).collect::<Result<_>>()
    })
    .with_context(|| format!("{} on {target}", kind.name()))?;
    let rate = parts.iter().map(|part| part.rate).sum();
    let times: Vec<_> = parts.into_iter().flat_map(|part| part.times).collect();
    Ok(Burst { rate, latency: Latency::of(times) })
}

/// One thread's share.
struct Part {
    rate: f64,
    /// Nanoseconds each operation took.
    times: Vec<u32>,
}

fn part(kind: Kind, target: SocketAddr, length: Duration) -> Result<Part> {
    match kind {
        Kind::Connections => repeat(length, || exchange(target)),
        Kind::FirstPackets => repeat(length, || first_packet(target)),
        Kind::Requests => {
            let mut stream = connect(target)?;
            repeat(length, || request(&mut stream, Kind::Requests))
        }
        Kind::Throughput => Ok(Part { rate: stream(target, length)?, times: Vec::new() }),
        Kind::Datagrams => Ok(Part { rate: flood(target, length)?, times: Vec::new() }),
    }
}

fn repeat(length: Duration, mut work: impl FnMut() -> Result<()>) -> Result<Part> {
    let began = Instant::now();
    let mut times = Vec::new();
    let mut before = began;
    while before - began < length {
        work()?;
        let now = Instant::now();
        times.push(u32::try_from((now - before).as_nanos()).unwrap_or(u32::MAX));
        before = now;
    }
    Ok(Part { rate: times.len() as f64 / (before - began).as_secs_f64(), times })
}

impl Latency {
    fn of(mut times: Vec<u32>) -> Option<Self> {
        times.sort_unstable();
        let at = |share: f64| {
            let index = (times.len() as f64 * share) as usize;
            Some(f64::from(*times.get(index.min(times.len().checked_sub(1)?))?) / 1000.0)
        };
        Some(Self { p50: at(0.5)?, p99: at(0.99)? })
    }
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn request(stream: &mut TcpStream, kind: Kind) -> Result<()> {
    let mut message = [kind as u8; MESSAGE];
    stream.write_all(&message)?;
    Ok(stream.read_exact(&mut message)?)
}

/// Connect, ask, be answered, wait for the server's end of it.
fn exchange(target: SocketAddr) -> Result<()> {
    let mut stream = connect(target)?;
    request(&mut stream, Kind::Connections)?;
    let rest = stream.read(&mut [0; 1])?;
    ensure!(rest == 0, "the server says more than it was asked");
    Ok(())
}

/// Bytes per second: what has arrived, not what was sent.
fn stream(target: SocketAddr, length: Duration) -> Result<f64> {
    let (mut stream, chunk) = (connect(target)?, vec![0; CHUNK]);
    stream.write_all(&[Kind::Throughput as u8; MESSAGE])?;
    let began = Instant::now();
    while began.elapsed() < length {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    Ok(u64::from_be_bytes(total) as f64 / began.elapsed().as_secs_f64())
}

/// Everything before the answer belongs to it: making the socket, choosing a backend, remembering the connection. What
/// is lost is sent again, as resolvers do: the wait counts, and one packet does not end a measurement of an hour.
fn first_packet(target: SocketAddr) -> Result<()> {
    let socket = datagram_socket(target)?;
    socket.set_read_timeout(Some(PATIENCE / ATTEMPTS))?;
    let mut message = [Kind::FirstPackets as u8; MESSAGE];
    for _ in 0..ATTEMPTS {
        socket.send(&message)?;
        match socket.recv(&mut message) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            length => {
                let length = length?;
                ensure!(length == MESSAGE, "an answer of {length} bytes");
                return Ok(());
            }
        }
    }
    bail!("no answer to {ATTEMPTS} datagrams")
}

/// Datagrams that arrived, per second. The server counts; a connection beside tells when to start and what it came to.
fn flood(target: SocketAddr, length: Duration) -> Result<f64> {
    let (mut control, socket) = (connect(target)?, datagram_socket(target)?);
    request(&mut control, Kind::Datagrams)?;
    let message = [Kind::Datagrams as u8; MESSAGE];
    let began = Instant::now();
    while began.elapsed() < length {
        for _ in 0..16 {
            match socket.send(&message) {
                // The device's queue is full: nothing was sent.
                Err(error) if error.raw_os_error() != Some(nix::libc::ENOBUFS) => return Err(error.into()),
                _ => {}
            }
        }
    }
    let took = began.elapsed();
    control.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    control.read_exact(&mut total)?;
    match u64::from_be_bytes(total) {
        0 => bail!("no datagram arrived"),
        total => Ok(total as f64 / took.as_secs_f64()),
    }
}

fn datagram_socket(target: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    match socket.connect(target) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => bail!("{target} refuses datagrams"),
        result => result?,
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times: Vec<u32> = (1..=1000).rev().map(|n| n * 1000).collect();
        assert_eq!(Latency::of(times), Some(Latency { p50: 501.0, p99: 991.0 }));
        assert_eq!(Latency::of(vec![7000]), Some(Latency { p50: 7.0, p99: 7.0 }));
        assert_eq!(Latency::of(vec![]), None);
    }

    #[test]
    fn every_kind_is_found_by_its_name_and_byte() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse::<Kind>().unwrap(), kind);
            assert_eq!(Kind::from_byte(kind as u8), Some(kind));
        }
        assert!("nothing".parse::<Kind>().is_err());
    }
}
