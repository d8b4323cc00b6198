//! The VXLAN device and the route of the cluster's pod range, through rtnetlink in the caller's network namespace; and
//! what must be said to the kernel about devices of ours.

use crate::{Config, Error, Result};
use futures::TryStreamExt;
use rtnetlink::{
    Handle, LinkUnspec, LinkVxlan, RouteMessageBuilder,
    packet_route::address::{AddressAttribute, AddressMessage},
    packet_route::link::{LinkAttribute, LinkFlags, LinkMessage},
    packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope},
};
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
};

/// VXLAN's UDP port (IANA) and what its headers add to a packet over IPv4.
pub(crate) const PORT: u16 = 4789;
const OVERHEAD: u32 = 50;

pub(crate) struct Devices {
    pub(crate) handle: Handle,
}

impl Devices {
    pub(crate) fn connect() -> Result<Self> {
        let failed = |source| Error::Io { action: "open a netlink socket".into(), source };
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Index and MTU of the VXLAN device, made if absent: it takes tunnel keys from packets, knows no neighbours, and
    /// the cluster's pod range is routed to it with the router address as source.
    pub(crate) async fn ensure_overlay(&self, config: &Config) -> Result<(u32, u32)> {
        let mtu = match (config.mtu, config.nics.first()) {
            (0, Some(nic)) => self.mtu_of(*nic).await?.saturating_sub(OVERHEAD),
            (0, None) => 1500 - OVERHEAD,
            (mtu, _) => mtu,
        };
        if self.find(&config.vxlan).await?.is_none() {
            let device = LinkVxlan::new(&config.vxlan, 0).collect_metadata(true).port(PORT).learning(false);
            let made = self.handle.link().add(device.mtu(mtu).build()).execute().await;
            made.map_err(netlink(format!("make VXLAN device {}", config.vxlan)))?;
        }
        let Some(link) = self.find(&config.vxlan).await? else {
            return Err(Error::Config(format!("VXLAN device {} vanished", config.vxlan)));
        };
        let index = link.header.index;
        let up = LinkUnspec::new_with_index(index).arp(false).mtu(mtu).up();
        let set = self.handle.link().set(up.build()).execute().await;
        match set {
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::EADDRINUSE => {
                return Err(Error::PortTaken(PORT));
            }
            other => other.map_err(netlink(format!("bring {} up", config.vxlan)))?,
        }
        self.ensure_address(index, config).await?;
        self.ensure_route(index, config).await?;
        allow_forwarding(index)?;
        Ok((index, mtu))
    }

    async fn ensure_address(&self, index: u32, config: &Config) -> Result<()> {
        let added = self.handle.address().add(index, config.router(), 32).replace().execute().await;
        added.map_err(netlink(format!("add {} to {}", config.router(), config.vxlan)))
    }

    async fn ensure_route(&self, index: u32, config: &Config) -> Result<()> {
        let (IpAddr::V4(network), IpAddr::V4(router)) = (config.cluster_cidr.network(), config.router()) else {
            return Ok(());
        };
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(network, config.cluster_cidr.prefix())
            .output_interface(index)
            .scope(RouteScope::Link)
            .pref_source(router);
        let added = self.handle.route().add(route.build()).replace().execute().await;
        added.map_err(netlink(format!("route {} to {}", config.cluster_cidr, config.vxlan)))
    }

    /// The VXLAN device, if nothing of it is missing.
    async fn find_whole_overlay(&self, config: &Config) -> Result<Option<u32>> {
        let up = |link: &LinkMessage| link.header.flags.contains(LinkFlags::Up);
        let Some(link) = self.find(&config.vxlan).await?.filter(up) else { return Ok(None) };
        let index = link.header.index;
        let router = AddressAttribute::Local(config.router());
        let has_address =
            self.addresses().await?.iter().any(|it| it.header.index == index && it.attributes.contains(&router));
        let has_route = self.routes().await?.iter().any(|route| leads_to_pods(route, index, config));
        Ok((has_address && has_route).then_some(index))
    }

    /// All devices by their index.
    pub(crate) async fn links(&self) -> Result<BTreeMap<u32, LinkMessage>> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(netlink("list devices".into()))?;
        Ok(links.into_iter().map(|link| (link.header.index, link)).collect())
    }

    pub(crate) async fn addresses(&self) -> Result<Vec<AddressMessage>> {
        self.handle.address().get().execute().try_collect().await.map_err(netlink("list addresses".into()))
    }

    /// Of IPv4.
    pub(crate) async fn routes(&self) -> Result<Vec<RouteMessage>> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        self.handle.route().get(all).execute().try_collect().await.map_err(netlink("list routes".into()))
    }

    async fn mtu_of(&self, index: u32) -> Result<u32> {
        let mut links = self.handle.link().get().match_index(index).execute();
        let link = links.try_next().await.map_err(netlink(format!("look at interface {index}")))?;
        let attributes = link.map(|link| link.attributes).unwrap_or_default();
        let mtu = attributes.iter().find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None });
        Ok(mtu.unwrap_or(1500))
    }

    async fn find(&self, name: &str) -> Result<Option<LinkMessage>> {
        match self.handle.link().get().match_name(name.to_owned()).execute().try_next().await {
            Ok(link) => Ok(link),
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ENODEV => Ok(None),
            Err(error) => Err(netlink(format!("look for {name}"))(error)),
        }
    }

    /// Its address and route go with it. Absent is done.
    pub(crate) async fn remove_overlay(&self, name: &str) -> Result<()> {
        let Some(link) = self.find(name).await? else { return Ok(()) };
        let removed = self.handle.link().del(link.header.index).execute().await;
        removed.map_err(netlink(format!("remove {name}")))
    }
}

/// Index of the VXLAN device, which is made again if somebody has removed it, switched it off, or taken its address or
/// its route away: the route goes when it is switched off.
pub async fn keep_overlay(config: &Config) -> Result<u32> {
    let devices = Devices::connect()?;
    match devices.find_whole_overlay(config).await? {
        Some(index) => Ok(index),
        None => devices.ensure_overlay(config).await.map(|(index, _)| index),
    }
}

/// Whether a route is the one of the cluster's pod range, with the router address as source.
fn leads_to_pods(route: &RouteMessage, index: u32, config: &Config) -> bool {
    let (IpAddr::V4(network), IpAddr::V4(router)) = (config.cluster_cidr.network(), config.router()) else {
        return true;
    };
    let parts = [
        RouteAttribute::Destination(RouteAddress::Inet(network)),
        RouteAttribute::Oif(index),
        RouteAttribute::PrefSource(RouteAddress::Inet(router)),
    ];
    route.header.destination_prefix_length == config.cluster_cidr.prefix()
        && parts.iter().all(|part| route.attributes.contains(part))
}

fn netlink(action: String) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |source| Error::Netlink { action, source }
}

pub(crate) fn interface_name(ifindex: u32) -> Result<String> {
    let name = nix::net::if_::if_indextoname(ifindex);
    let name = name.map_err(|errno| Error::Io { action: format!("name interface {ifindex}"), source: errno.into() })?;
    Ok(name.to_string_lossy().into_owned())
}

/// For messages: devices come and go.
pub(crate) fn name(ifindex: u32) -> String {
    interface_name(ifindex).unwrap_or_else(|_| format!("device {ifindex}"))
}

/// For a device of ours: the routing table may be asked on behalf of packets that come from it (the kernel itself
/// forwards none of them), and its packets carry addresses that live elsewhere.
pub(crate) fn allow_forwarding(ifindex: u32) -> Result<()> {
    let name = interface_name(ifindex)?;
    for (setting, value) in [("forwarding", "1"), ("rp_filter", "0")] {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/{setting}");
        fs::write(&path, value).map_err(|source| Error::Io { action: format!("write {path}"), source })?;
    }
    Ok(())
}

pub(crate) fn may_forward(device: &str) -> bool {
    let setting = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{device}/forwarding"));
    setting.is_ok_and(|value| value.trim() == "1")
}

/// Cookie of the caller's network namespace (5.14); 0, "the initial one", where the kernel does not tell.
pub(crate) fn netns_cookie() -> u64 {
    const SO_NETNS_COOKIE: i32 = 71;
    let Ok(socket) = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    ) else {
        return 0;
    };
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer is eight bytes long and says so.
    let code = unsafe {
        use std::os::fd::AsRawFd;
        let place = std::ptr::from_mut(&mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, place, &mut length)
    };
    if code == 0 { cookie } else { 0 }
}
