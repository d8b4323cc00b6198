//! Load on two addresses in turn, A B B A …, in short bursts: whatever else the machine does meets both alike.
//!
//! Started by `services` inside a pod; prints one pair of rates per line.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::enter;
use crate::serve::{CHUNK, MESSAGE};

#[derive(Args)]
pub(crate) struct Options {
    /// A process of the pod to load from
    #[arg(long)]
    pub(crate) pod_of: u32,
    #[arg(long)]
    pub(crate) kind: Kind,
    pub(crate) a: SocketAddr,
    pub(crate) b: SocketAddr,
    #[arg(long)]
    pub(crate) pairs: usize,
    /// Of one burst
    #[arg(long)]
    pub(crate) millis: u64,
}

/// What is asked for, as the first byte of each message.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Kind {
    /// A connection per request, closed by the server
    Connections = b'c' as isize,
    /// Requests one after another on one connection
    Requests = b'r' as isize,
    /// One stream, as fast as it goes
    Throughput = b't' as isize,
}

impl Kind {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Connections, Self::Requests, Self::Throughput].into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Streams alone fill both processors.
    fn threads(self) -> usize {
        if self == Self::Throughput { 1 } else { 2 }
    }
}

const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) fn run(options: &Options) -> Result<()> {
    enter::pod_of(options.pod_of)?;
    for target in [options.a, options.b] {
        wait_for(target)?;
        burst(options, target)?;
    }
    for pair in 0..options.pairs {
        let (a, b);
        if pair % 2 == 0 {
            (a, b) = (burst(options, options.a)?, burst(options, options.b)?);
        } else {
            (b, a) = (burst(options, options.b)?, burst(options, options.a)?);
        }
        println!("{a} {b}");
    }
    Ok(())
}

/// Until the address answers: a Service's does so a moment after its endpoint is there.
fn wait_for(target: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match exchange(target) {
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("{target} does not answer"));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
            Ok(()) => return Ok(()),
        }
    }
}

/// Operations, or bytes, per second.
fn burst(options: &Options, target: SocketAddr) -> Result<f64> {
    let length = Duration::from_millis(options.millis);
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..options.kind.threads()).map(|_| scope.spawn(|| rate(options.kind, target, length))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client does not panic")).sum()
    })
}

fn rate(kind: Kind, target: SocketAddr, length: Duration) -> Result<f64> {
    let began = Instant::now();
    let count = match kind {
        Kind::Connections => repeat(began, length, || exchange(target)),
        Kind::Requests => {
            let mut stream = connect(target)?;
            repeat(began, length, || request(&mut stream, Kind::Requests))
        }
        Kind::Throughput => send(target, began, length),
    };
    let count = count.with_context(|| format!("a request to {target} failed"))?;
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

fn repeat(began: Instant, length: Duration, mut work: impl FnMut() -> Result<()>) -> Result<u64> {
    let mut count = 0;
    while began.elapsed() < length {
        work()?;
        count += 1;
    }
    Ok(count)
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
    anyhow::ensure!(rest == 0, "the server says more than it was asked");
    Ok(())
}

/// Counts what has arrived, not what was sent.
fn send(target: SocketAddr, began: Instant, length: Duration) -> Result<u64> {
    let (mut stream, chunk) = (connect(target)?, vec![0; CHUNK]);
    stream.write_all(&[Kind::Throughput as u8; MESSAGE])?;
    while began.elapsed() < length {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    Ok(u64::from_be_bytes(total))
}
