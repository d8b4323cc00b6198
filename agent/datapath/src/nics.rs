//! The node's devices towards the outside, as they are now: those get the `nic` hooks, and their addresses are the node's.
//!
//! A device counts if it has the node's address, if a default route leads out of it, or if it is a real one (or a VLAN,
//! bond or the like of real ones) with an address of its own. Bridges and veth pairs of containers and virtual machines
//! do not count. What a bond is of, or a VLAN is on, carries no addresses itself and needs no hooks: its packets are seen
//! on the device that has the address, decided about once. One that is down keeps its addresses and so its hooks: when it
//! comes up again, no packet passes them by.

use crate::{Result, device::Devices};
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteNextHop},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// A device towards the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    pub index: u32,
    pub mtu: u32,
    /// Addresses that the outside may know.
    pub addresses: Vec<IpAddr>,
}

/// Finds them in the caller's network namespace, the one with the node's address first. `own`: devices that are ours.
pub async fn find_nics(node: IpAddr, own: &[&str]) -> Result<Vec<Nic>> {
    let devices = Devices::connect()?;
    let (links, addresses) = (devices.links().await?, devices.addresses().await?);
    let ways_out = ways_out(&devices.routes().await?);
    Ok(choose(node, own, &links, &by_device(addresses), &ways_out))
}

fn choose(
    node: IpAddr,
    own: &[&str],
    links: &BTreeMap<u32, LinkMessage>,
    addresses: &BTreeMap<u32, Vec<IpAddr>>,
    ways_out: &BTreeSet<u32>,
) -> Vec<Nic> {
    let mut nics: Vec<Nic> = Vec::new();
    for (index, link) in links.iter().filter(|(_, link)| may_serve(link, own)) {
        let has = addresses.get(index).cloned().unwrap_or_default();
        let counts = has.contains(&node) || ways_out.contains(index) || (!has.is_empty() && is_real(link));
        if counts {
            nics.push(Nic { index: *index, mtu: mtu(link), addresses: has });
        }
    }
    nics.sort_by_key(|nic| (!nic.addresses.contains(&node), nic.index));
    nics
}

fn may_serve(link: &LinkMessage, own: &[&str]) -> bool {
    let name =
        link.attributes.iter().find_map(|it| if let LinkAttribute::IfName(name) = it { Some(name) } else { None });
    let ours = name.is_none_or(|name| own.contains(&name.as_str()));
    !link.header.flags.contains(LinkFlags::Loopback) && !ours
}

/// Hardware (which has no kind), or made of hardware.
fn is_real(link: &LinkMessage) -> bool {
    let kind = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(parts) => {
            parts.iter().find_map(|part| if let LinkInfo::Kind(kind) = part { Some(kind) } else { None })
        }
        _ => None,
    });
    match kind {
        None => link.header.link_layer_type == LinkLayerType::Ether,
        Some(InfoKind::Vlan | InfoKind::Bond | InfoKind::Team | InfoKind::MacVlan | InfoKind::IpVlan) => true,
        Some(_) => false,
    }
}

fn mtu(link: &LinkMessage) -> u32 {
    let mtu = link.attributes.iter().find_map(|it| if let LinkAttribute::Mtu(mtu) = it { Some(*mtu) } else { None });
    mtu.unwrap_or(1500)
}

/// Addresses of IPv4 that hold beyond their link.
fn by_device(messages: Vec<AddressMessage>) -> BTreeMap<u32, Vec<IpAddr>> {
    let mut found: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    let wide = messages.iter().filter(|message| message.header.scope == AddressScope::Universe);
    for message in wide {
        // On a point-to-point link `Address` is the other side's.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address @ IpAddr::V4(_)) => Some(*address),
            _ => None,
        });
        found.entry(message.header.index).or_default().extend(local);
    }
    found
}

/// Devices that default routes lead out of.
fn ways_out(routes: &[RouteMessage]) -> BTreeSet<u32> {
    let default = routes.iter().filter(|route| {
        let RouteHeader { address_family, destination_prefix_length, table, .. } = route.header;
        address_family == AddressFamily::Inet && destination_prefix_length == 0 && table == RouteHeader::RT_TABLE_MAIN
    });
    let hops = |hops: &Vec<RouteNextHop>| hops.iter().map(|hop| hop.interface_index).collect::<Vec<_>>();
    let devices = default.flat_map(|route| &route.attributes).flat_map(move |attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(several) => hops(several),
        _ => Vec::new(),
    });
    devices.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: Option<InfoKind>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.link_layer_type = LinkLayerType::Ether;
        link.attributes.push(LinkAttribute::IfName(name.into()));
        link.attributes.extend(kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])));
        link
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_devices_towards_the_outside_are_those_with_addresses_and_ways_out() {
        let links = BTreeMap::from([
            (2, link("eth0", None)),
            (3, link("docker0", Some(InfoKind::Bridge))),
            (4, link("bond0", Some(InfoKind::Bond))),
            (5, link("eth1", None)),
            (6, link("bond0.100", Some(InfoKind::Vlan))),
            (7, link("leme-vxlan", Some(InfoKind::Vxlan))),
            (8, link("veth", Some(InfoKind::Veth))),
            (9, link("br0", Some(InfoKind::Bridge))),
        ]);
        let addresses = BTreeMap::from([
            (2, vec![ip("192.0.2.1")]),
            (3, vec![ip("172.17.0.1")]),
            (6, vec![ip("198.51.100.1"), ip("198.51.100.2")]),
            (7, vec![ip("10.244.1.1")]),
            (8, vec![ip("10.0.0.1")]),
        ]);
        let nics = choose(ip("198.51.100.1"), &["leme-vxlan"], &links, &addresses, &BTreeSet::from([9]));
        let indices: Vec<u32> = nics.iter().map(|nic| nic.index).collect();
        // The node's own first; neither the bond nor its slave, which have no address.
        assert_eq!(indices, [6, 2, 9]);
        assert_eq!(nics[0].addresses, [ip("198.51.100.1"), ip("198.51.100.2")]);
    }

    #[test]
    fn default_routes_may_have_several_ways() {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        let mut single = route.clone();
        single.attributes.push(RouteAttribute::Oif(2));
        let mut hop = RouteNextHop::default();
        hop.interface_index = 5;
        route.attributes.push(RouteAttribute::MultiPath(vec![hop]));
        let mut narrow = single.clone();
        narrow.header.destination_prefix_length = 24;
        narrow.attributes = vec![RouteAttribute::Oif(9)];
        assert_eq!(ways_out(&[single, route, narrow]), BTreeSet::from([2, 5]));
    }
}
