//! A pod's interface: a veth pair whose one end is made directly inside the pod's namespace.
//!
//! Called by `cni_server`. The pod gets a /32 address, a link-local gateway that is a static neighbour, and the MTU; the
//! node gets a route to the pod and a static neighbour, so nothing ever asks by ARP. Names and MAC addresses follow from
//! the attachment alone: after any crash DEL finds the link again without a record. Never runs another program, and
//! never leaves a thread of the agent in a foreign namespace. Each step is complete or undone by removing the pair: all
//! that hangs on it goes with it.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::MetadataExt as _,
    },
    thread,
};

use futures::TryStreamExt as _;
use leme_cni::AttachmentId;
use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::AddressAttribute,
        link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteScope},
    },
};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

/// The gateway of every pod: link-local, answered by nobody, known to the pod as a static neighbour.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to open the network namespace {path}")]
    OpenNamespace { path: String, source: io::Error },
    #[error("there is no network namespace {path}")]
    NoNamespace { path: String },
    #[error("{path} is {what}")]
    NotPods { path: String, what: &'static str },
    #[error("failed to enter the network namespace {path}")]
    EnterNamespace { path: String, source: io::Error },
    #[error("failed to open a netlink socket")]
    Socket(#[source] io::Error),
    #[error("failed to {action} {link}")]
    Netlink { action: &'static str, link: String, source: rtnetlink::Error },
    #[error("the container already has an interface {ifname}")]
    Taken { ifname: String },
    #[error("{link} is {found}, it should be {expected}")]
    Different { link: String, found: String, expected: String },
}

type Result<T> = std::result::Result<T, Error>;
pub type Mac = [u8; 6];

/// What the pair is to look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    pub host_ifname: String,
    pub host_mac: Mac,
    pub ifname: String,
    pub mac: Mac,
    pub address: Ipv4Addr,
    /// Of both ends. What comes from outside may be as large as the node's NICs carry, and kernels before 5.12 hand a pod
    /// nothing that is larger than its device's.
    pub mtu: u32,
    /// What the pod sends is no larger than this.
    pub route_mtu: u32,
}

impl Veth {
    pub fn new(attachment: &AttachmentId, address: Ipv4Addr, mtu: u32, route_mtu: u32) -> Self {
        let hash = digest(attachment);
        Self {
            host_ifname: host_ifname(attachment),
            host_mac: mac(&hash[8..]),
            ifname: attachment.ifname.clone(),
            mac: mac(&hash[16..]),
            address,
            mtu,
            route_mtu,
        }
    }
}

fn digest(attachment: &AttachmentId) -> [u8; 32] {
    Sha256::digest(format!("{}@{}", attachment.container_id, attachment.ifname)).into()
}

/// `leme` and 11 hexadecimal digits: the 15 characters that an interface name may have.
pub fn host_ifname(attachment: &AttachmentId) -> String {
    let mut name = String::from("leme");
    for byte in &digest(attachment)[..6] {
        write!(name, "{byte:02x}").expect("writing to a string");
    }
    name.truncate(15);
    name
}

/// Locally administered, unicast.
fn mac(bytes: &[u8]) -> Mac {
    [bytes[0] & 0xfc | 0x02, bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]]
}

pub fn mac_text(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The node's side of every pair; one netlink connection for the life of the agent.
#[derive(Clone)]
pub struct Links {
    netlink: Handle,
}

impl Links {
    /// Opens netlink in the namespace of the calling process, which is the node's.
    pub fn open() -> Result<Self> {
        let (connection, netlink, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        tokio::spawn(connection);
        Ok(Self { netlink })
    }

    /// Makes the pair, its pod end inside the pod's namespace, both ends down and bare.
    pub async fn make_pair(&self, veth: &Veth, netns: &str) -> Result<()> {
        let namespace = open(netns)?;
        match self.add_pair(veth, &namespace).await {
            // The node end's name is ours and was free: it is the pod end's that is taken.
            Err(Error::Netlink { source: rtnetlink::Error::NetlinkError(message), .. })
                if message.raw_code() == -libc::EEXIST =>
            {
                Err(Error::Taken { ifname: veth.ifname.clone() })
            }
            other => other,
        }
    }

    /// The pod end: address, gateway, default route, up.
    pub async fn configure_pod(&self, veth: &Veth, netns: &str) -> Result<()> {
        let wanted = veth.clone();
        within(netns, open(netns)?, move |netlink| async move { configure_pod(&netlink, &wanted).await }).await
    }

    async fn add_pair(&self, veth: &Veth, namespace: &File) -> Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::default()
            .name(&veth.ifname)
            .address(veth.mac.to_vec())
            .mtu(veth.mtu)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let pair = LinkVeth::new(&veth.host_ifname, &veth.ifname)
            .address(veth.host_mac.to_vec())
            .mtu(veth.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        let link = &veth.host_ifname;
        self.netlink.link().add(pair).execute().await.map_err(netlink("create the veth pair", link))
    }

    /// The node end: up, with the pod as its neighbour and routed to it. Returns its index.
    pub async fn configure_host(&self, veth: &Veth, router: Ipv4Addr) -> Result<u32> {
        let link = &veth.host_ifname;
        let index = self.index(link).await?.ok_or_else(|| absent(link))?;
        let up = LinkUnspec::new_with_index(index).up().build();
        self.netlink.link().change(up).execute().await.map_err(netlink("bring up", link))?;
        let neighbour = self.netlink.neighbours().add(index, IpAddr::V4(veth.address));
        let neighbour = neighbour.link_layer_address(&veth.mac).replace();
        neighbour.execute().await.map_err(netlink("add the pod's neighbour to", link))?;
        self.route(veth.address, index, router).await.map_err(netlink("add the pod's route to", link))?;
        Ok(index)
    }

    async fn route(&self, pod: Ipv4Addr, index: u32, router: Ipv4Addr) -> std::result::Result<(), rtnetlink::Error> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(pod, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .pref_source(router)
            .build();
        self.netlink.route().add(route).replace().execute().await
    }

    /// Which of these pairs lack something at their node end: they are gone, down, or without the way to their pod.
    pub async fn find_broken<'a>(&self, pairs: &'a [Veth]) -> Result<Vec<(&'a Veth, Option<u32>)>> {
        let of_nodes = "of the node";
        let links: Vec<LinkMessage> =
            self.netlink.link().get().execute().try_collect().await.map_err(netlink("list links", of_nodes))?;
        let links: HashMap<&String, &LinkMessage> =
            links.iter().filter_map(|link| Some((name_of(link)?, link))).collect();
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<RouteMessage> =
            self.netlink.route().get(all).execute().try_collect().await.map_err(netlink("list routes", of_nodes))?;
        let ways: HashSet<(Ipv4Addr, u32)> = routes.iter().filter_map(way).collect();
        let broken = pairs.iter().filter_map(|pair| {
            let link = links.get(&pair.host_ifname);
            let index = link.map(|link| link.header.index);
            let up = link.is_some_and(|link| link.header.flags.contains(LinkFlags::Up));
            let whole = up && index.is_some_and(|index| ways.contains(&(pair.address, index)));
            (!whole).then_some((pair, index))
        });
        Ok(broken.collect())
    }

    /// Removes the pair by its node end; one that is gone is done.
    pub async fn remove(&self, host_ifname: &str) -> Result<()> {
        match self.index(host_ifname).await? {
            Some(index) => self.remove_index(index, host_ifname).await,
            None => Ok(()),
        }
    }

    /// The same for one that was seen: not for a newer one of its name.
    pub async fn remove_index(&self, index: u32, host_ifname: &str) -> Result<()> {
        match self.netlink.link().del(index).execute().await {
            Err(error) if !is_absent(&error) => Err(netlink("remove", host_ifname)(error)),
            _ => Ok(()),
        }
    }

    pub async fn index(&self, name: &str) -> Result<Option<u32>> {
        Ok(self.link(name).await?.map(|link| link.header.index))
    }

    /// Whether the pair is as ADD made it: both ends up, the pod's with its addresses, and all routes there. Returns the
    /// index of the node end.
    pub async fn check(&self, veth: &Veth, netns: &str) -> Result<u32> {
        let link = self.link(&veth.host_ifname).await?.ok_or_else(|| absent(&veth.host_ifname))?;
        let index = link.header.index;
        expect_up(&veth.host_ifname, &link)?;
        expect_route(&self.netlink, &veth.host_ifname, index, (veth.address, 32)).await?;
        let wanted = veth.clone();
        within(netns, open(netns)?, move |netlink| async move { check_pod(&netlink, &wanted).await }).await?;
        Ok(index)
    }

    async fn link(&self, name: &str) -> Result<Option<LinkMessage>> {
        find(&self.netlink, name).await
    }

    /// Names and indices of the node ends that exist, for the collection of what no attachment owns.
    pub async fn host_ends(&self) -> Result<Vec<(String, u32)>> {
        let links: Vec<LinkMessage> =
            self.netlink.link().get().execute().try_collect().await.map_err(netlink("list", "links"))?;
        let ours = |name: &&String| name.len() == 15 && name.starts_with("leme") && is_hex(&name[4..]);
        let end = |link: &LinkMessage| Some((name_of(link).filter(ours)?.clone(), link.header.index));
        Ok(links.iter().filter_map(end).collect())
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn name_of(link: &LinkMessage) -> Option<&String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}

async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>> {
    let mut found = std::pin::pin!(handle.link().get().match_name(name).execute());
    match found.try_next().await {
        Err(error) if is_absent(&error) => Ok(None),
        other => other.map_err(netlink("look up", name)),
    }
}

async fn configure_pod(handle: &Handle, veth: &Veth) -> Result<()> {
    let link = &veth.ifname;
    let lo = LinkUnspec::new_with_index(1).up().build();
    handle.link().change(lo).execute().await.map_err(netlink("bring up", "lo"))?;
    let index = find(handle, link).await?.ok_or_else(|| absent(link))?.header.index;
    let address = handle.address().add(index, IpAddr::V4(veth.address), 32);
    address.execute().await.map_err(netlink("add the address to", link))?;
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().change(up).execute().await.map_err(netlink("bring up", link))?;
    let neighbour = handle.neighbours().add(index, IpAddr::V4(GATEWAY)).link_layer_address(&veth.host_mac).replace();
    neighbour.execute().await.map_err(netlink("add the gateway's neighbour to", link))?;
    let route = || RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index);
    let gateway = route().destination_prefix(GATEWAY, 32).scope(RouteScope::Link).build();
    handle.route().add(gateway).replace().execute().await.map_err(netlink("add the gateway's route to", link))?;
    let mut default = route().gateway(GATEWAY).pref_source(veth.address).build();
    default.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(veth.route_mtu)]));
    handle.route().add(default).replace().execute().await.map_err(netlink("add the default route to", link))
}

async fn check_pod(handle: &Handle, veth: &Veth) -> Result<()> {
    let link = find(handle, &veth.ifname).await?.ok_or_else(|| absent(&veth.ifname))?;
    let index = link.header.index;
    expect_up(&veth.ifname, &link)?;
    if !link.attributes.contains(&LinkAttribute::Address(veth.mac.to_vec())) {
        return Err(different(&veth.ifname, "of another MAC address", &mac_text(&veth.mac)));
    }
    if let Some(mtu) = mtu_of(&link).filter(|mtu| *mtu > veth.mtu) {
        return Err(different(&veth.ifname, &format!("of MTU {mtu}"), &veth.mtu.to_string()));
    }
    let of_link = handle.address().get().set_link_index_filter(index).execute();
    let messages: Vec<_> = of_link.try_collect().await.map_err(netlink("list addresses of", &veth.ifname))?;
    let wanted = AddressAttribute::Address(IpAddr::V4(veth.address));
    if !messages.iter().any(|message| message.attributes.contains(&wanted)) {
        return Err(different(&veth.ifname, "without its address", &veth.address.to_string()));
    }
    expect_route(handle, &veth.ifname, index, (GATEWAY, 32)).await?;
    expect_route(handle, &veth.ifname, index, (Ipv4Addr::UNSPECIFIED, 0)).await
}

/// A single address and the device that a route to it leads out of.
fn way(route: &RouteMessage) -> Option<(Ipv4Addr, u32)> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    let device = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    Some((address.filter(|_| route.header.destination_prefix_length == 32)?, device?))
}

async fn expect_route(handle: &Handle, link: &str, index: u32, (network, prefix): (Ipv4Addr, u8)) -> Result<()> {
    let all = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let routes: Vec<RouteMessage> = all.try_collect().await.map_err(netlink("list routes of", link))?;
    let leads = |route: &RouteMessage| {
        let to = RouteAttribute::Destination(RouteAddress::Inet(network));
        route.header.destination_prefix_length == prefix
            && (prefix == 0 || route.attributes.contains(&to))
            && route.attributes.contains(&RouteAttribute::Oif(index))
    };
    match routes.iter().any(leads) {
        true => Ok(()),
        false => Err(different(link, "without a route", &format!("the way to {network}/{prefix}"))),
    }
}

fn expect_up(name: &str, link: &LinkMessage) -> Result<()> {
    match link.header.flags.contains(LinkFlags::Up) {
        true => Ok(()),
        false => Err(different(name, "down", "up")),
    }
}

fn absent(link: &str) -> Error {
    different(link, "absent", "present")
}

fn different(link: &str, found: &str, expected: &str) -> Error {
    Error::Different { link: link.into(), found: found.into(), expected: expected.into() }
}

fn netlink(action: &'static str, link: &str) -> impl FnOnce(rtnetlink::Error) -> Error {
    let link = link.to_owned();
    move |source| Error::Netlink { action, link, source }
}

fn is_absent(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -libc::ENODEV)
}

/// A pod's namespace: not the node's own, whose interfaces would be mistaken for the pod's.
fn open(path: &str) -> Result<File> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::NoNamespace { path: path.into() },
        _ => Error::OpenNamespace { path: path.into(), source },
    };
    let file = File::open(path).map_err(failed)?;
    if !fstatfs(&file).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC) {
        return Err(Error::NotPods { path: path.into(), what: "no network namespace" });
    }
    let inode = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    let own = File::open("/proc/thread-self/ns/net").and_then(|own| inode(&own)).map_err(failed)?;
    match inode(&file).map_err(failed)? == own {
        true => Err(Error::NotPods { path: path.into(), what: "the node's own network namespace" }),
        false => Ok(file),
    }
}

/// Whether a pod's namespace is still there.
pub fn is_namespace(path: &str) -> bool {
    open(path).is_ok()
}

/// Runs `work` with a netlink connection inside another namespace, on a thread that ends there and is never reused.
async fn within<W, F>(path: &str, namespace: File, work: W) -> Result<()>
where
    W: FnOnce(Handle) -> F + Send + 'static,
    F: Future<Output = Result<()>>,
{
    let (done, result) = oneshot::channel();
    let path = path.to_owned();
    thread::spawn(move || done.send(enter(path, &namespace, work)));
    result.await.unwrap_or_else(|_| Err(Error::Socket(io::Error::other("the thread in the pod's namespace died"))))
}

fn enter<F: Future<Output = Result<()>>>(path: String, namespace: &File, work: impl FnOnce(Handle) -> F) -> Result<()> {
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
        .map_err(|errno| Error::EnterNamespace { path, source: errno.into() })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(Error::Socket)?;
    runtime.block_on(async {
        let (connection, netlink, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        let connection = tokio::spawn(connection);
        let result = work(netlink).await;
        connection.abort();
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_macs_follow_from_the_attachment_and_fit() {
        let id = |ifname: &str| AttachmentId { container_id: "0123".into(), ifname: ifname.into() };
        let veth = Veth::new(&id("eth0"), GATEWAY, 1500, 1450);
        assert_eq!(veth, Veth::new(&id("eth0"), GATEWAY, 1500, 1450));
        assert_eq!(veth.host_ifname.len(), 15);
        assert_ne!(veth.host_ifname, host_ifname(&id("eth1")));
        assert_ne!(veth.mac, veth.host_mac);
        assert_eq!(veth.mac[0] & 0x03, 0x02);
    }
}
