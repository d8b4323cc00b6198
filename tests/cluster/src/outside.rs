//! Servers that a test runs itself: they say who asked.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::place::in_network;

/// Answers every HTTP request with the address it came from, as long as the test runs.
pub fn echo(address: Ipv4Addr) -> Result<SocketAddr> {
    echo_at((address, 0).into())
}

fn echo_at(address: SocketAddr) -> Result<SocketAddr> {
    serve(address, |peer| peer.to_string())
}

/// The same in the network of a process.
pub fn echo_in(process: i32, address: Ipv4Addr) -> Result<SocketAddr> {
    in_network(process, || echo(address))
}

/// The same on a port of its own choice.
pub fn echo_in_at(process: i32, address: SocketAddr) -> Result<SocketAddr> {
    in_network(process, || echo_at(address))
}

/// In the network of a process: answers HTTP and datagrams with its name and the address of who asked.
pub fn name_in(process: i32, address: SocketAddr, name: &str) -> Result<()> {
    let say = |name: String| move |peer: IpAddr| format!("{name} {peer}");
    in_network(process, || {
        serve(address, say(name.to_owned()))?;
        serve_datagrams(address, say(name.to_owned()))
    })
}

fn serve(address: SocketAddr, say: impl Fn(IpAddr) -> String + Send + 'static) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let Ok(peer) = stream.peer_addr() else { continue };
            let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
            let _ = stream.read(&mut [0; 1024]);
            let body = say(peer.ip());
            let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    Ok(address)
}

fn serve_datagrams(address: SocketAddr, say: impl Fn(IpAddr) -> String + Send + 'static) -> Result<()> {
    let socket = UdpSocket::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    thread::spawn(move || {
        while let Ok((_, peer)) = socket.recv_from(&mut [0; 512]) {
            let _ = socket.send_to(say(peer.ip()).as_bytes(), peer);
        }
    });
    Ok(())
}
