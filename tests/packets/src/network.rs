//! A network namespace of its own, and work inside it. A socket opened there belongs there, whoever uses it then.

use anyhow::{Context, Result};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
};
use rtnetlink::{
    Handle, LinkBond, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan, RouteMessageBuilder,
    packet_route::{
        link::{BondMode, InfoData, InfoVeth, LinkMessage},
        route::{RouteAttribute, RouteMetric, RouteScope},
    },
};
use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd},
    thread,
};

pub struct Network(File);

impl Network {
    /// With `lo` up.
    pub fn new() -> Result<Self> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).context("these tests need root: run them with `cargo xtask test`")?;
            Self::of_this_thread()
        };
        let made = thread::scope(|scope| scope.spawn(make).join());
        let made = made.expect("opening a file does not panic")?;
        made.up("lo")?;
        Ok(made)
    }

    pub(crate) fn of_this_thread() -> Result<Self> {
        Ok(Self(File::open("/proc/thread-self/ns/net")?))
    }

    /// Where others find it while it lives.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// The same one.
    pub fn again(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Runs work on a thread in this namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).expect("the namespace lives as long as its file");
            work()
        };
        match thread::scope(|scope| scope.spawn(enter).join()) {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Says something to rtnetlink here.
    pub fn netlink<T: Send>(&self, work: impl AsyncFnOnce(Handle) -> Result<T> + Send) -> Result<T> {
        self.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                work(handle).await
            })
        })
    }

    pub fn index(&self, device: &str) -> Result<u32> {
        self.within(|| if_nametoindex(device)).with_context(|| format!("no device {device}"))
    }

    pub fn up(&self, device: &str) -> Result<()> {
        self.change(device, |link| link.up())
    }

    pub fn down(&self, device: &str) -> Result<()> {
        self.change(device, |link| link.down())
    }

    pub fn set_mtu(&self, device: &str, mtu: u32) -> Result<()> {
        self.change(device, |link| link.mtu(mtu))
    }

    pub(crate) fn set_mac(&self, device: &str, mac: [u8; 6]) -> Result<()> {
        self.change(device, |link| link.address(mac.to_vec()))
    }

    /// Moves a device to another namespace, where it is down and without addresses.
    pub(crate) fn give(&self, device: &str, to: &Self) -> Result<()> {
        self.change(device, |link| link.setns_by_fd(to.0.as_raw_fd()))
    }

    fn change(
        &self,
        device: &str,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec> + Send,
    ) -> Result<()> {
        let link = change(LinkUnspec::new_with_index(self.index(device)?)).build();
        self.netlink(async |netlink| Ok(netlink.link().set(link).execute().await?))
            .with_context(|| format!("change {device}"))
    }

    /// A switch.
    pub fn bridge(&self, name: &str, members: &[&str]) -> Result<()> {
        self.add(name, LinkBridge::new(name).up().build())?;
        members.iter().try_for_each(|member| self.enslave(member, name))
    }

    /// One device out of several, of which one at a time carries everything.
    pub fn bond(&self, name: &str, members: &[&str]) -> Result<()> {
        self.add(name, LinkBond::new(name).mode(BondMode::ActiveBackup).miimon(10).up().build())?;
        // One that is up is refused.
        members.iter().try_for_each(|member| self.down(member).and_then(|()| self.enslave(member, name)))
    }

    /// The device of a bond that carries everything at this moment.
    pub fn active_member(&self, bond: &str) -> Result<String> {
        let path = format!("/proc/thread-self/net/bonding/{bond}");
        let text = self.within(|| fs::read_to_string(&path)).with_context(|| format!("read {path}"))?;
        let active = text.lines().find_map(|line| line.strip_prefix("Currently Active Slave: "));
        Ok(active.context("a bond names its active member")?.to_owned())
    }

    pub fn vlan(&self, name: &str, under: &str, id: u16) -> Result<()> {
        self.add(name, LinkVlan::new(name, self.index(under)?, id).up().build())
    }

    fn add(&self, name: &str, link: LinkMessage) -> Result<()> {
        self.netlink(async |netlink| Ok(netlink.link().add(link).execute().await?))
            .with_context(|| format!("make {name}"))
    }

    fn enslave(&self, device: &str, master: &str) -> Result<()> {
        let master = self.index(master)?;
        self.change(device, |link| link.controller(master))
    }

    pub fn remove(&self, device: &str) -> Result<()> {
        let index = self.index(device)?;
        self.netlink(async |netlink| Ok(netlink.link().del(index).execute().await?))
            .with_context(|| format!("remove {device}"))
    }

    pub fn address(&self, device: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
        let index = self.index(device)?;
        self.netlink(async |netlink| Ok(netlink.address().add(index, IpAddr::V4(address), prefix).execute().await?))
            .with_context(|| format!("give {device} {address}"))
    }

    pub fn default_route(&self, gateway: Ipv4Addr) -> Result<()> {
        self.default_route_of_mtu(gateway, None)
    }

    /// The same with an MTU of its own, or with the device's again.
    pub fn default_route_of_mtu(&self, gateway: Ipv4Addr, mtu: Option<u32>) -> Result<()> {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        route.attributes.extend(mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        self.netlink(async |netlink| Ok(netlink.route().add(route).replace().execute().await?))
            .context("add the default route")
    }

    pub fn route(&self, network: Ipv4Addr, prefix: u8, gateway: Ipv4Addr) -> Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(network, prefix).gateway(gateway).build();
        self.netlink(async |netlink| Ok(netlink.route().add(route).execute().await?))
            .with_context(|| format!("route {network}/{prefix} to {gateway}"))
    }

    /// What lies directly behind a device, and the MAC there.
    pub fn neighbour(&self, device: &str, address: Ipv4Addr, mac: [u8; 6]) -> Result<()> {
        self.neighbour_of(device, address, mac, None)
    }

    /// The same for those who speak to it with another source than the device's.
    pub(crate) fn neighbour_of(
        &self,
        device: &str,
        address: Ipv4Addr,
        mac: [u8; 6],
        source: Option<Ipv4Addr>,
    ) -> Result<()> {
        let index = self.index(device)?;
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(index)
            .scope(RouteScope::Link);
        if let Some(source) = source {
            route = route.pref_source(source);
        }
        let route = route.build();
        self.netlink(async |netlink| {
            let neighbour = netlink.neighbours().add(index, IpAddr::V4(address));
            neighbour.link_layer_address(&mac).replace().execute().await?;
            Ok(netlink.route().add(route).execute().await?)
        })
        .with_context(|| format!("put {address} behind {device}"))
    }

    /// Writes a setting below `/proc/sys/net/ipv4`.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/ipv4/{setting}");
        self.within(|| fs::write(&path, value)).with_context(|| format!("write {path}"))
    }
}

/// A veth pair between two namespaces, both ends up.
pub fn connect((one, name): (&Network, &str), (other, peer): (&Network, &str)) -> Result<()> {
    connect_with_macs((one, name, None), (other, peer, None))
}

type End<'a> = (&'a Network, &'a str, Option<[u8; 6]>);

pub fn connect_with_macs((one, name, mac): End<'_>, (other, peer, peer_mac): End<'_>) -> Result<()> {
    let mut far = LinkMessageBuilder::<LinkUnspec>::default().name(peer).setns_by_fd(other.0.as_raw_fd());
    let mut near = LinkVeth::new(name, peer);
    if let Some(mac) = peer_mac {
        far = far.address(mac.to_vec());
    }
    if let Some(mac) = mac {
        near = near.address(mac.to_vec());
    }
    let pair = near.set_info_data(InfoData::Veth(InfoVeth::Peer(far.build()))).build();
    one.netlink(async |netlink| Ok(netlink.link().add(pair).execute().await?))
        .with_context(|| format!("connect {name} and {peer}"))?;
    one.up(name)?;
    other.up(peer)
}
