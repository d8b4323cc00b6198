//! The other end of [`crate::load`]: answers, counts what it is sent, and closes first where the client asks for that,
//! so that no closed connection holds a port of the client's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use crate::load::{CHUNK, Kind, MESSAGE};

/// More than one client has connections open.
const THREADS: usize = 8;
/// Datagrams that wait while the receiver sleeps: some milliseconds at full speed.
const QUEUE: usize = 8 << 20;
/// How long no datagram comes before all have.
const SILENCE: Duration = Duration::from_millis(1);
/// On a machine with much else to do the first one may be long in coming.
const PATIENCE: Duration = Duration::from_secs(1);

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
    let (listener, datagrams) = (Arc::new(listener), Arc::new(Datagrams { socket, count: AtomicU64::new(0) }));
    for _ in 0..THREADS {
        let (listener, datagrams) = (Arc::clone(&listener), Arc::clone(&datagrams));
        thread::spawn(move || accept(&listener, &datagrams));
    }
    thread::spawn(move || datagrams.receive());
    Ok(port)
}

/// Where datagrams arrive, and how many of a flood have been taken.
struct Datagrams {
    socket: UdpSocket,
    count: AtomicU64,
}

/// A client that goes away in the middle is no concern of the next.
fn accept(listener: &TcpListener, datagrams: &Datagrams) {
    for stream in listener.incoming().flatten() {
        let _ = answer(stream, datagrams);
    }
}

fn answer(mut stream: TcpStream, datagrams: &Datagrams) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        stream.read_exact(&mut message)?;
        match Kind::from_byte(message[0]) {
            Some(Kind::Connections) => return stream.write_all(&message),
            Some(Kind::Requests) => stream.write_all(&message)?,
            Some(Kind::Throughput) => return count_bytes(stream),
            Some(Kind::Datagrams) => {
                datagrams.count.store(0, Ordering::Relaxed);
                stream.write_all(&message)?;
                stream.read_to_end(&mut Vec::new())?;
                return stream.write_all(&datagrams.total().to_be_bytes());
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

impl Datagrams {
    /// Once the last one has been taken: none waits, and none has come for a moment.
    fn total(&self) -> u64 {
        let (began, mut before) = (Instant::now(), 0);
        loop {
            thread::sleep(SILENCE);
            let count = self.count.load(Ordering::Relaxed);
            if count == before && self.is_drained() && (count > 0 || began.elapsed() > PATIENCE) {
                return count;
            }
            before = count;
        }
    }

    fn is_drained(&self) -> bool {
        let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.socket.as_raw_fd(), &mut [0; 1], look) == Err(Errno::EAGAIN)
    }

    fn receive(&self) {
        let mut message = [0; MESSAGE];
        loop {
            // An error is one that an earlier answer met.
            let Ok((length, from)) = self.socket.recv_from(&mut message) else { continue };
            match Kind::from_byte(message[0]) {
                Some(Kind::FirstPackets) => drop(self.socket.send_to(&message[..length], from)),
                _ => drop(self.count.fetch_add(1, Ordering::Relaxed)),
            }
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
