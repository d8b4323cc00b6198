//! More network namespaces beside the node's: pods, and everything at the far end of the node's NIC.
//!
//! Programs that need a tunnel key or another namespace cannot be shown by a test run: there real sockets talk over real
//! devices.

use crate::node::{HOST_MAC, PodPlace};
use anyhow::{Context, Result};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder, packet_route::route::RouteScope};
use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd, RawFd},
    thread,
};

/// What pods use as their gateway: no device has it.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

pub struct Namespace(File);

impl Namespace {
    /// An empty one with `lo` up.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            blocking(|handle| async move { up(&handle, "lo").await })?;
            File::open("/proc/thread-self/ns/net").context("open a namespace")
        });
        Ok(Self(made.join().expect("the thread does not panic")?))
    }

    /// Runs `work` inside. Sockets that it makes stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter a namespace of ours");
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Where others find it while it lives.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Moves the far end of a pod's veth pair here and configures it as CNI does.
    pub(crate) fn adopt_pod(self, pod: &PodPlace) -> Result<Self> {
        let (peer, mac, address) = (pod.peer, pod.mac, pod.address);
        move_device(peer, self.0.as_raw_fd())?;
        self.run(move || {
            blocking(|handle| async move {
                let index = if_nametoindex(peer)?;
                set_mac(&handle, index, mac).await?;
                up(&handle, peer).await?;
                handle.address().add(index, IpAddr::V4(address), 32).execute().await?;
                neighbour(&handle, index, GATEWAY, HOST_MAC).await?;
                let route = || RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index);
                let gateway = route().destination_prefix(GATEWAY, 32).scope(RouteScope::Link).build();
                handle.route().add(gateway).execute().await?;
                handle.route().add(route().gateway(GATEWAY).pref_source(address).build()).execute().await?;
                Ok(())
            })
        })?;
        let (device, mac) = (pod.device, pod.mac);
        blocking(|handle| async move {
            let index = if_nametoindex(device)?;
            set_mac(&handle, index, HOST_MAC).await?;
            neighbour(&handle, index, address, mac).await?;
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32);
            let route = route.output_interface(index).scope(RouteScope::Link).pref_source(crate::node::ROUTER);
            Ok(handle.route().add(route.build()).execute().await?)
        })?;
        Ok(self)
    }

    /// Moves the far end of the node's NIC here, with these addresses.
    pub(crate) fn adopt_wire(self, addresses: &[Ipv4Addr]) -> Result<Self> {
        move_device("wire", self.0.as_raw_fd())?;
        self.run(|| {
            blocking(|handle| async move {
                let index = if_nametoindex("wire")?;
                up(&handle, "wire").await?;
                for address in addresses {
                    handle.address().add(index, IpAddr::V4(*address), 24).execute().await?;
                }
                Ok(())
            })
        })?;
        Ok(self)
    }
}

/// Rtnetlink in the namespace of this thread.
fn blocking<F: Future<Output = Result<()>>>(work: impl FnOnce(Handle) -> F) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        work(handle).await
    })
}

async fn up(handle: &Handle, device: &str) -> Result<()> {
    let link = LinkUnspec::new_with_index(if_nametoindex(device)?).up();
    Ok(handle.link().set(link.build()).execute().await?)
}

async fn set_mac(handle: &Handle, index: u32, mac: [u8; 6]) -> Result<()> {
    let link = LinkUnspec::new_with_index(index).address(mac.to_vec());
    Ok(handle.link().set(link.build()).execute().await?)
}

async fn neighbour(handle: &Handle, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Result<()> {
    let neighbour = handle.neighbours().add(index, IpAddr::V4(address)).link_layer_address(&mac);
    Ok(neighbour.replace().execute().await?)
}

fn move_device(name: &str, namespace: RawFd) -> Result<()> {
    let link = LinkUnspec::new_with_index(if_nametoindex(name)?).setns_by_fd(namespace).build();
    blocking(|handle| async move { Ok(handle.link().set(link).execute().await?) })
}
