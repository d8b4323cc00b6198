//! Conversations between namespaces: what is sent arrives whole, and comes back whole.

use crate::Network;
use anyhow::{Context, Result, ensure};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

/// Emulated machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what another CPU may be about to do.
pub fn soon(done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "nothing of the kind in {PATIENCE:?}");
        thread::yield_now();
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// Bytes in which neither a lost nor a doubled piece goes unnoticed.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Who serves: a namespace and the address there.
pub type Server<'a> = (&'a Network, &'a str);

/// Asks `target` from a client's namespace over TCP; `length` bytes go and come back. Who the server says it was, and
/// whom the client thinks it talked to.
pub fn tcp(server: Server<'_>, client: &Network, target: &str, length: usize) -> Result<SocketAddr> {
    tcp_from(server, client, None, target, length)
}

/// The same from a port of the client's choice.
pub fn tcp_from(
    (server, listen): Server<'_>,
    client: &Network,
    source: Option<&str>,
    target: &str,
    length: usize,
) -> Result<SocketAddr> {
    let listener = server.within(|| TcpListener::bind(address(listen))).context("listen")?;
    let stream = connect(client, source, target).with_context(|| format!("connect to {target}"))?;
    ensure!(stream.peer_addr()? == address(target), "the client's peer is {}", stream.peer_addr()?);
    thread::scope(|scope| {
        let served = scope.spawn(|| echo(&listener));
        let sent = pattern(length);
        converse(stream, &sent).with_context(|| format!("{length} bytes to {target} and back"))?;
        served.join().expect("an echo does not panic")
    })
}

pub fn connect(client: &Network, source: Option<&str>, target: &str) -> Result<TcpStream> {
    client.within(|| {
        let stream = match source {
            None => TcpStream::connect_timeout(&address(target), PATIENCE)?,
            Some(source) => connect_from(&address(source), &address(target))?,
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

fn connect_from(source: &SocketAddr, target: &SocketAddr) -> Result<TcpStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
    use std::os::fd::AsRawFd;
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(*source))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(*target))?;
    Ok(socket.into())
}

/// Sends, reads and sends on at once: more than all buffers hold may be on the way.
fn converse(mut stream: TcpStream, sent: &[u8]) -> Result<()> {
    let mut reader = stream.try_clone()?;
    thread::scope(|scope| {
        let back = scope.spawn(move || {
            let mut back = Vec::new();
            reader.read_to_end(&mut back).map(|_| back)
        });
        stream.write_all(sent)?;
        stream.shutdown(Shutdown::Write)?;
        let back = back.join().expect("reading does not panic")?;
        ensure!(back == sent, "{} bytes came back", back.len());
        Ok(())
    })
}

fn echo(listener: &TcpListener) -> Result<SocketAddr> {
    let (mut stream, peer) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 65_536];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(peer),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

/// A TCP connection that stays open.
pub struct Conversation {
    client: TcpStream,
    server: TcpStream,
}

impl Conversation {
    pub fn begin((server, listen): Server<'_>, client: &Network, target: &str) -> Result<Self> {
        let listener = server.within(|| TcpListener::bind(address(listen))).context("listen")?;
        let client = connect(client, None, target).with_context(|| format!("connect to {target}"))?;
        let (server, _) = listener.accept()?;
        server.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { client, server })
    }

    /// Something there, and something back: little enough for the buffers on the way.
    pub fn go_on(&self) -> Result<()> {
        let sent = pattern(10_000);
        let mut received = vec![0; sent.len()];
        for (mut from, mut to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            from.write_all(&sent)?;
            to.read_exact(&mut received)?;
            ensure!(received == sent, "other bytes arrived");
        }
        Ok(())
    }
}

/// A datagram of `length` bytes, and its answer. Who the server says it was.
pub fn udp((server, listen): Server<'_>, client: &Network, target: &str, length: usize) -> Result<SocketAddr> {
    let server = server.within(|| UdpSocket::bind(address(listen)))?;
    let client = client.within(|| UdpSocket::bind("0.0.0.0:0"))?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let (sent, mut buffer) = (pattern(length), vec![0; 65_536]);
    client.send_to(&sent, address(target)).with_context(|| format!("send to {target}"))?;
    let (received, peer) = server.recv_from(&mut buffer).with_context(|| format!("{length} bytes to {target}"))?;
    ensure!(buffer[..received] == sent, "{received} other bytes arrived");
    server.send_to(&buffer[..received], peer)?;
    let (received, from) = client.recv_from(&mut buffer).with_context(|| format!("the answer of {target}"))?;
    ensure!(from == address(target), "the answer comes from {from}");
    ensure!(buffer[..received] == sent, "{received} other bytes came back");
    Ok(peer)
}
