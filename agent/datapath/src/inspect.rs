//! Whether the programs stand where they were put, and who stands before them.
//!
//! [`inspect`] only looks; `Datapath::reattach` mends what it found missing.

use crate::{
    Error, Result,
    attach::{Attachment, HANDLE, PRIORITY, Place},
    bpf,
    device::{Devices, PORT, name},
};
use aya::programs::{SchedClassifier, TcAttachType};
use futures::TryStreamExt;
use rtnetlink::{
    Handle,
    packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage, LinkXdp},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
    pin::pin,
};

/// A program of somebody else's that sees packets before ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Foreign {
    pub device: String,
    /// `XDP`, `tc ingress`, `tc egress`
    pub hook: String,
    pub program: String,
}

/// What an inspection found.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    pub detached: Vec<Attachment>,
    pub foreign: BTreeSet<Foreign>,
    /// Others' VXLAN devices on our UDP port.
    pub tunnels: BTreeSet<String>,
}

/// Looks at every place, in the caller's network namespace.
pub async fn inspect(attachments: Vec<Attachment>) -> Result<Inspection> {
    let devices = Devices::connect()?;
    let links = devices.links().await?;
    let foreign = foreign_xdp(&attachments, &links);
    let mut found = Inspection { foreign, tunnels: other_tunnels(&attachments, &links), detached: Vec::new() };
    for attachment in attachments {
        // A device that went away took its programs along, and nobody misses them.
        if !attachment.is_possible(&links) {
            continue;
        }
        if attachment.stands(&devices.handle).await? {
            found.foreign.extend(attachment.predecessors());
        } else {
            found.detached.push(attachment);
        }
    }
    Ok(found)
}

impl Attachment {
    fn is_possible(&self, links: &BTreeMap<u32, LinkMessage>) -> bool {
        match self.place {
            Place::Cgroup => true,
            Place::Device { ifindex, .. } => links.contains_key(&ifindex),
        }
    }

    async fn stands(&self, handle: &Handle) -> Result<bool> {
        match (bpf::get(&self.pin), self.place) {
            // A link that was detached by force still is, but leads nowhere.
            (Ok(link), place) => {
                let info = bpf::link_info(link.as_fd());
                let info = info.map_err(|source| Error::Pin { path: self.pin.clone(), source })?;
                Ok(info.is_attached(matches!(place, Place::Device { .. })))
            }
            (Err(_), Place::Cgroup) => Ok(false),
            // No tcx before 6.6, and so no link: the filter is looked for.
            (Err(_), Place::Device { ifindex, side }) => has_filter(handle, ifindex, side).await,
        }
    }

    /// Programs of others that run before ours at the same place.
    fn predecessors(&self) -> Vec<Foreign> {
        let Place::Device { ifindex, side } = self.place else { return Vec::new() };
        let Ok(ours) = bpf::get(&self.pin).and_then(|link| bpf::link_info(link.as_fd())) else { return Vec::new() };
        let device = name(ifindex);
        let Ok((_, chain)) = SchedClassifier::query_tcx(&device, side) else { return Vec::new() };
        let hook = if matches!(side, TcAttachType::Ingress) { "tc ingress" } else { "tc egress" };
        let before = chain.iter().take_while(|program| program.id() != ours.program);
        let named = before.map(|program| (program.id(), program.name_as_str().unwrap_or_default().to_owned()));
        named.map(|(id, name)| foreign(&device, hook, id, &name)).collect()
    }
}

fn foreign(device: &str, hook: &str, id: u32, name: &str) -> Foreign {
    let program = if name.is_empty() { format!("with id {id}") } else { format!("{name} (id {id})") };
    Foreign { device: device.to_owned(), hook: hook.to_owned(), program }
}

async fn has_filter(handle: &Handle, ifindex: u32, side: TcAttachType) -> Result<bool> {
    let filters = handle.traffic_filter(ifindex as i32).get();
    let ingress = matches!(side, TcAttachType::Ingress);
    let mut filters = pin!(if ingress { filters.ingress() } else { filters.egress() }.execute());
    let failed = |source| Error::Netlink { action: format!("list filters of {}", name(ifindex)), source };
    loop {
        match filters.try_next().await {
            Ok(Some(filter)) => {
                let header = filter.header;
                if u32::from(header.handle) == u32::from(HANDLE) && header.info >> 16 == u32::from(PRIORITY) {
                    return Ok(true);
                }
            }
            Ok(None) => return Ok(false),
            // Nobody has made the queueing discipline that filters hang on.
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::EINVAL => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
    }
}

/// XDP programs on our NICs, and on the devices that they are made of: none of them is ours.
fn foreign_xdp(attachments: &[Attachment], links: &BTreeMap<u32, LinkMessage>) -> BTreeSet<Foreign> {
    let nics = attachments.iter().filter(|attachment| attachment.program == "nic_ingress");
    let mut devices: BTreeSet<u32> = nics.filter_map(|attachment| attachment.ifindex()).collect();
    for nic in devices.clone() {
        devices.extend(lower(nic, links));
    }
    let programs = devices.into_iter().filter_map(|ifindex| Some((ifindex, xdp(links.get(&ifindex)?)?)));
    programs.map(|(ifindex, id)| foreign(&name(ifindex), "XDP", id, &program_name(id))).collect()
}

impl Attachment {
    fn ifindex(&self) -> Option<u32> {
        match self.place {
            Place::Cgroup => None,
            Place::Device { ifindex, .. } => Some(ifindex),
        }
    }
}

fn other_tunnels(attachments: &[Attachment], links: &BTreeMap<u32, LinkMessage>) -> BTreeSet<String> {
    let ours = |ifindex: &u32| attachments.iter().any(|attachment| attachment.ifindex() == Some(*ifindex));
    let others = links.iter().filter(|(ifindex, link)| !ours(ifindex) && is_tunnel(link));
    others.map(|(ifindex, _)| name(*ifindex)).collect()
}

fn is_tunnel(link: &LinkMessage) -> bool {
    let on_our_port = |info: &InfoVxlan| matches!(info, InfoVxlan::Port(PORT));
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(parts) => parts
            .iter()
            .any(|part| matches!(part, LinkInfo::Data(InfoData::Vxlan(data)) if data.iter().any(on_our_port))),
        _ => false,
    })
}

/// What a VLAN is on, what a bond is of.
fn lower(nic: u32, links: &BTreeMap<u32, LinkMessage>) -> BTreeSet<u32> {
    let attribute = |link: &LinkMessage, wanted: &LinkAttribute| link.attributes.contains(wanted);
    let mut found = BTreeSet::new();
    for (ifindex, link) in links {
        let carries = links.get(&nic).is_some_and(|nic| attribute(nic, &LinkAttribute::Link(*ifindex)));
        if carries || attribute(link, &LinkAttribute::Controller(nic)) {
            found.insert(*ifindex);
        }
    }
    found
}

fn xdp(link: &LinkMessage) -> Option<u32> {
    let parts =
        link.attributes.iter().find_map(|it| if let LinkAttribute::Xdp(parts) = it { Some(parts) } else { None });
    parts?.iter().find_map(|part| if let LinkXdp::ProgId(id) = part { Some(*id) } else { None })
}

fn program_name(id: u32) -> String {
    let mut programs = aya::programs::loaded_programs().flatten();
    let found = programs.find(|program| program.id() == id);
    found.and_then(|program| program.name_as_str().map(str::to_owned)).unwrap_or_default()
}
