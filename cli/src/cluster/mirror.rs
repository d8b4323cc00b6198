//! What listens on the machine's loopback, reachable in the nodes at the same loopback address: a registry mirror, an
//! etcd. The node's supervisor listens in the node and connects on the machine.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;

use anyhow::{Result, bail};
use nix::sched::{CloneFlags, setns};

/// Loopback addresses among some URLs.
pub(crate) fn loopback_addresses<'a>(urls: impl Iterator<Item = &'a String>) -> BTreeSet<SocketAddr> {
    urls.filter_map(|url| loopback_address(url)).collect()
}

fn loopback_address(url: &str) -> Option<SocketAddr> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let default = if scheme == "https" { 443 } else { 80 };
    let (host, port) =
        authority.rsplit_once(':').map_or((authority, Some(default)), |(host, port)| (host, port.parse().ok()));
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let address: IpAddr = host.parse().ok()?;
    address.is_loopback().then_some(SocketAddr::new(address, port?))
}

/// The addresses that are forwarded from a node's network to the machine's.
pub(crate) struct Forwards {
    node: File,
    machine: File,
    known: BTreeSet<SocketAddr>,
}

impl Forwards {
    pub(crate) fn new(node: File, machine: File) -> Self {
        Self { node, machine, known: BTreeSet::new() }
    }

    /// Forwards these, too.
    pub(crate) fn add(&mut self, addresses: BTreeSet<SocketAddr>) -> Result<()> {
        for address in addresses {
            if !self.known.contains(&address) {
                self.forward(address)?;
                self.known.insert(address);
            }
        }
        Ok(())
    }

    fn forward(&self, address: SocketAddr) -> Result<()> {
        let (node, machine) = (self.node.try_clone()?, self.machine.try_clone()?);
        let (ready, bound) = mpsc::channel();
        thread::Builder::new().name(format!("forward {}", address.port())).spawn(move || {
            let listener = listen(address, &node, &machine);
            let started = ready.send(listener.as_ref().map(drop).map_err(|error| format!("{error:#}")));
            if let (Ok(listener), Ok(())) = (listener, started) {
                accept(&listener, address);
            }
        })?;
        match bound.recv()? {
            Ok(()) => Ok(()),
            Err(error) => bail!("cannot offer {address} in the node: {error}"),
        }
    }
}

/// A listener that is in the node, on a thread that then is on the machine.
fn listen(address: SocketAddr, net: &File, machine: &File) -> Result<TcpListener> {
    setns(net.as_fd(), CloneFlags::CLONE_NEWNET)?;
    let listener = TcpListener::bind(address)?;
    setns(machine.as_fd(), CloneFlags::CLONE_NEWNET)?;
    Ok(listener)
}

fn accept(listener: &TcpListener, address: SocketAddr) {
    for client in listener.incoming().flatten() {
        // A refused connection on the machine is a closed one in the node.
        if let Ok(server) = TcpStream::connect(address) {
            let _ = thread::Builder::new().spawn(move || join(&client, &server));
        }
    }
}

fn join(client: &TcpStream, server: &TcpStream) {
    thread::scope(|scope| {
        scope.spawn(|| pass(client, server));
        pass(server, client);
    });
}

fn pass(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_urls_are_forwarded() {
        let urls = [
            "http://localhost:5000",
            "https://127.0.0.1",
            "http://192.0.2.1:5000",
            "http://mirror.example",
            "nonsense",
        ]
        .map(str::to_owned);
        let found: Vec<_> = loopback_addresses(urls.iter()).into_iter().map(|address| address.to_string()).collect();
        assert_eq!(found, ["127.0.0.1:443", "127.0.0.1:5000"]);
    }
}
