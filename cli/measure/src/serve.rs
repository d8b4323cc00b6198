//! The other end of [`crate::load`]: answers, counts what it is sent, and closes first where the client asks for that,
//! so that no closed connection holds a port of the client's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use crate::load::{CHUNK, Kind, MESSAGE};

/// More than one client has connections open.
const THREADS: usize = 8;
/// Datagrams that wait while the receiver sleeps: some milliseconds at full speed.
const QUEUE: usize = 8 << 20;
/// How long no datagram comes before all have.
const SILENCE: Duration = Duration::from_millis(1);

/// Listens on both protocols with threads that live as long as the process. Port 0 is any; returns the one it became.
pub fn start(port: u16) -> Result<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on port {port}"))?;
    let port = listener.local_addr()?.port();
    let socket =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on UDP port {port}"))?;
    // Without the privilege to go beyond the system's limit, the limit it is.
    if setsockopt(&socket, sockopt::RcvBufForce, &QUEUE).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &QUEUE)?;
    }
    let (listener, datagrams) = (Arc::new(listener), Arc::new(AtomicU64::new(0)));
    for _ in 0..THREADS {
        let (listener, datagrams) = (Arc::clone(&listener), Arc::clone(&datagrams));
        thread::spawn(move || accept(&listener, &datagrams));
    }
    thread::spawn(move || receive(&socket, &datagrams));
    Ok(port)
}

/// A client that goes away in the middle is no concern of the next.
fn accept(listener: &TcpListener, datagrams: &AtomicU64) {
    for stream in listener.incoming().flatten() {
        let _ = answer(stream, datagrams);
    }
}

fn answer(mut stream: TcpStream, datagrams: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        stream.read_exact(&mut message)?;
        match Kind::from_byte(message[0]) {
            Some(Kind::Connections) => return stream.write_all(&message),
            Some(Kind::Requests) => stream.write_all(&message)?,
            Some(Kind::Throughput) => return count_bytes(stream),
            Some(Kind::Datagrams) => {
                datagrams.store(0, Ordering::Relaxed);
                stream.write_all(&message)?;
                return count_datagrams(stream, datagrams);
            }
            Some(Kind::FirstPackets) | None => return Ok(()),
        }
    }
}

/// Reads to the end and tells how much it was.
fn count_bytes(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut buffer, mut total) = (vec![0; CHUNK], 0_u64);
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            read => total += read as u64,
        }
    }
}

/// Waits for the client's end of it and for the last datagram.
fn count_datagrams(mut stream: TcpStream, datagrams: &AtomicU64) -> std::io::Result<()> {
    stream.read_to_end(&mut Vec::new())?;
    let mut total = datagrams.load(Ordering::Relaxed);
    loop {
        thread::sleep(SILENCE);
        match datagrams.load(Ordering::Relaxed) {
            same if same == total => return stream.write_all(&total.to_be_bytes()),
            more => total = more,
        }
    }
}

fn receive(socket: &UdpSocket, datagrams: &AtomicU64) {
    let mut message = [0; MESSAGE];
    loop {
        // An error is one that an earlier answer met.
        let Ok((length, from)) = socket.recv_from(&mut message) else { continue };
        match Kind::from_byte(message[0]) {
            Some(Kind::FirstPackets) => drop(socket.send_to(&message[..length], from)),
            _ => drop(datagrams.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::load::{burst, wait_for};

    #[test]
    fn every_kind_of_load_is_answered_and_counted() {
        let port = start(0).unwrap();
        let target = SocketAddr::from(([127, 0, 0, 1], port));
        wait_for(target, Duration::from_secs(5)).unwrap();
        for kind in Kind::ALL {
            let burst = burst(kind, target, Duration::from_millis(20)).unwrap();
            assert!(burst.rate > 0.0, "{kind:?}");
            assert_eq!(burst.latency.is_some(), !matches!(kind, Kind::Throughput | Kind::Datagrams), "{kind:?}");
        }
    }
}
