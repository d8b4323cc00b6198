//! A node's NIC: a veth pair whose node end is `eth0` and whose host end carries the program that joins the nodes.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use leme_datapath::Lan;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
};

use super::namespace::Namespaces;
use super::{Cluster, Node};

const NODE_END: &str = "eth0";

/// One end of a veth pair.
struct End {
    index: u32,
    mac: [u8; 6],
}

/// Makes the NIC if it is not there, switches it on, and joins it to the cluster's network.
pub(crate) async fn ensure(cluster: &Cluster, node: &Node, namespaces: &Namespaces) -> Result<()> {
    let handle = connect()?;
    if find(&handle, &node.name).await?.is_none() {
        create(&handle, cluster, node, namespaces)
            .await
            .with_context(|| format!("cannot make the NIC of {}", node.name))?;
    }
    let host_end = end(&find(&handle, &node.name).await?.context("the NIC just made is gone")?)?;
    switch_on(&handle, &host_end, cluster, node).await.with_context(|| format!("cannot switch on {}", node.name))?;
    let node_end = namespaces
        .within(|| in_runtime(async { end(&find(&connect()?, NODE_END).await?.context("no eth0 in the node")?) }))?;
    let mut lan = Lan::open(&cluster.lan_pins()).context("cannot load the program that joins the nodes")?;
    lan.attach(host_end.index, node.address, node_end.mac, host_end.mac)?;
    if let Some((uplink, address)) = uplink(&handle).await? {
        lan.attach_uplink(uplink, address)?;
    }
    Ok(())
}

/// Removes the NIC; absent is done.
pub(crate) async fn remove(node: &Node) -> Result<()> {
    let handle = connect()?;
    if let Some(link) = find(&handle, &node.name).await? {
        handle
            .link()
            .del(link.header.index)
            .execute()
            .await
            .with_context(|| format!("cannot remove link {}", node.name))?;
    }
    Ok(())
}

/// Whether the machine has a link of that name.
pub(crate) async fn exists(name: &str) -> Result<bool> {
    Ok(find(&connect()?, name).await?.is_some())
}

/// A subnet of which the machine has no route yet.
pub(crate) async fn is_free(subnet: ipnetwork::Ipv4Network) -> Result<bool> {
    let handle = connect()?;
    let mut routes = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(route) = routes.try_next().await? {
        let inside = |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Destination(RouteAddress::Inet(address)) if subnet.contains(*address));
        if route.attributes.iter().any(inside) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn create(handle: &Handle, cluster: &Cluster, node: &Node, namespaces: &Namespaces) -> Result<()> {
    let temporary = format!("{}~", node.name.get(..node.name.len().min(14)).unwrap_or("leme"));
    handle.link().add(LinkVeth::new(&node.name, &temporary).build()).execute().await?;
    let peer = end(&find(handle, &temporary).await?.context("the pair has no other end")?)?;
    let net = namespaces.open_net()?;
    handle.link().set(LinkUnspec::new_with_index(peer.index).setns_by_fd(net.as_raw_fd()).build()).execute().await?;
    namespaces.within(|| in_runtime(configure_node_end(temporary, node.address, cluster.gateway())))?;
    Ok(())
}

/// The machine's address on the host end has the node as its peer: so the kernel itself keeps the route to the node, and
/// puts it back when the link comes back after it was down.
async fn switch_on(handle: &Handle, host: &End, cluster: &Cluster, node: &Node) -> Result<()> {
    handle.link().set(LinkUnspec::new_with_index(host.index).up().build()).execute().await?;
    let mut request = handle.address().add(host.index, node.address.into(), 32);
    for attribute in &mut request.message_mut().attributes {
        if let AddressAttribute::Local(local) = attribute {
            *local = cluster.gateway().into();
        }
    }
    match request.execute().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => Ok(()),
        outcome => Ok(outcome?),
    }
}

async fn configure_node_end(name: String, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<()> {
    let handle = connect()?;
    let index = end(&find(&handle, &name).await?.context("the NIC did not arrive in the node")?)?.index;
    handle.link().set(LinkUnspec::new_with_index(index).name(NODE_END).build()).execute().await?;
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    handle.link().set(LinkUnspec::new_with_name("lo").up().build()).execute().await?;
    let mut request = handle.address().add(index, address.into(), 32);
    request.message_mut().header.scope = AddressScope::Universe;
    request.execute().await?;
    add_way_out(&handle, index, gateway).await
}

/// The default route; there already is done.
async fn add_way_out(handle: &Handle, index: u32, gateway: Ipv4Addr) -> Result<()> {
    let gateway = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).onlink();
    match handle.route().add(gateway.build()).execute().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// For ever, in the node's network: what a network manager does on a machine. When the NIC comes up again after it was
/// down, the kernel knows its address still, but not the way out.
pub(crate) fn keep(gateway: Ipv4Addr) -> Result<()> {
    in_runtime(async {
        loop {
            if let Err(error) = listen(gateway).await {
                eprintln!("{NODE_END}: {error:#}");
            }
            // Messages were lost, say: what was missed is looked for at the next beginning.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
}

async fn listen(gateway: Ipv4Addr) -> Result<()> {
    let (connection, handle, mut news) = new_multicast_connection(&[MulticastGroup::Link])?;
    tokio::spawn(connection);
    let mut link = find(&handle, NODE_END).await?;
    loop {
        if let Some(link) = link.filter(|link| link.header.flags.contains(LinkFlags::Up)) {
            add_way_out(&handle, link.header.index, gateway).await.context("cannot put the default route back")?;
        }
        let Some((message, _)) = news.next().await else { return Ok(()) };
        link = match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) if is_node_end(&link) => Some(link),
            _ => None,
        };
    }
}

fn is_node_end(link: &LinkMessage) -> bool {
    link.attributes.contains(&LinkAttribute::IfName(NODE_END.into()))
}

/// Device and address of the machine's default route.
async fn uplink(handle: &Handle) -> Result<Option<(u32, Ipv4Addr)>> {
    let mut routes = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let mut device = None;
    while let Some(route) = routes.try_next().await? {
        if route.header.destination_prefix_length == 0 && route.header.table == 254 {
            device = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            break;
        }
    }
    let Some(device) = device else { return Ok(None) };
    match crate::server::default_address()? {
        std::net::IpAddr::V4(address) => Ok(Some((device, address))),
        std::net::IpAddr::V6(_) => Ok(None),
    }
}

fn end(link: &LinkMessage) -> Result<End> {
    let mac = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    Ok(End { index: link.header.index, mac: mac.context("a NIC without a hardware address")? })
}

/// Whether a node's NIC is up.
pub(crate) async fn is_up(node: &Node) -> Result<bool> {
    Ok(find(&connect()?, &node.name).await?.is_some_and(|link| link.header.flags.contains(LinkFlags::Up)))
}

async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(link) => Ok(link),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot look for link {name}")),
    }
}

/// A netlink connection in the calling thread's network namespace.
fn connect() -> Result<Handle> {
    let (connection, handle, _) = new_connection().context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

fn in_runtime<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
