//! The other end of the node's wire: a namespace of its own, with real sockets in it.

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd, FromRawFd},
    thread,
};

use crate::node::ADDRESS;

/// Its address; the node's default route leads to it.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);

pub struct Outside(File);

impl Outside {
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net").context("open the namespace")
        });
        Ok(Self(made.join().expect("it only makes a namespace")?))
    }

    /// Runs work there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Sends a frame over the wire as it is.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.within(|| {
            let protocol = (libc::ETH_P_ALL as u16).to_be();
            // SAFETY: all zero is a valid address.
            let mut wire: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            (wire.sll_family, wire.sll_protocol) = (libc::AF_PACKET as u16, protocol);
            wire.sll_ifindex = index("wire")? as i32;
            // SAFETY: makes a descriptor out of numbers; the address and the frame are as long as told.
            let sent = unsafe {
                let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol));
                let socket = std::os::fd::OwnedFd::from_raw_fd(socket);
                let (place, length) = ((&raw const wire).cast(), size_of_val(&wire) as libc::socklen_t);
                libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, place, length)
            };
            anyhow::ensure!(sent == frame.len() as isize, "send: {}", std::io::Error::last_os_error());
            Ok(())
        })
    }

    /// Gives the node a new NIC that leads here, with its address and default route; an older one goes.
    pub async fn plug_in(&self) -> Result<()> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        if let Ok(old) = nix::net::if_::if_nametoindex("eth0") {
            handle.link().del(old).execute().await?;
        }
        handle.link().add(LinkVeth::new("eth0", "wire").build()).execute().await?;
        let [nic, wire] = [index("eth0")?, index("wire")?];
        handle.link().set(LinkUnspec::new_with_index(wire).setns_by_fd(self.0.as_raw_fd()).build()).execute().await?;
        self.within(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(configure()))?;
        handle.link().set(LinkUnspec::new_with_index(nic).up().build()).execute().await?;
        handle.address().add(nic, IpAddr::V4(ADDRESS), 24).execute().await?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(ROUTER);
        Ok(handle.route().add(default.build()).execute().await?)
    }
}

async fn configure() -> Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let wire = index("wire")?;
    handle.link().set(LinkUnspec::new_with_index(wire).up().build()).execute().await?;
    Ok(handle.address().add(wire, IpAddr::V4(ROUTER), 24).execute().await?)
}

fn index(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("no device {name}"))
}
