//! The other end of `load`: answers, counts what it is sent, and closes first where the client asks for that, so that
//! no closed connection holds a port of the client's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};
use clap::Args;

use crate::enter;
use crate::load::Kind;

#[derive(Args)]
pub(crate) struct Options {
    /// A process of the pod to serve in
    #[arg(long)]
    pod_of: u32,
    #[arg(long)]
    port: u16,
}

/// Length of every request and of every answer.
pub(crate) const MESSAGE: usize = 64;
/// How much a stream is written and read at once.
pub(crate) const CHUNK: usize = 128 << 10;
/// More than `load` has connections open.
const THREADS: usize = 8;

pub(crate) fn run(options: &Options) -> Result<()> {
    enter::pod_of(options.pod_of)?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, options.port)).context("cannot listen")?;
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| accept(&listener));
        }
    });
    Ok(())
}

/// A client that goes away in the middle is no concern of the next.
fn accept(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let _ = answer(stream);
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        stream.read_exact(&mut message)?;
        match Kind::from_byte(message[0]) {
            Some(Kind::Connections) => return stream.write_all(&message),
            Some(Kind::Requests) => stream.write_all(&message)?,
            Some(Kind::Throughput) => return count(stream),
            None => return Ok(()),
        }
    }
}

/// Reads to the end and tells how much it was.
fn count(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut buffer, mut total) = (vec![0; CHUNK], 0_u64);
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            read => total += read as u64,
        }
    }
}
