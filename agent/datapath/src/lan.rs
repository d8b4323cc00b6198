//! The network between the nodes of a local cluster: a program on the host end of each node's NIC instead of a bridge.
//!
//! Called by `leme up`, which makes the namespaces and the veth pairs. It redirects between nodes, lets nodes and the
//! machine itself talk, and gives nodes the outside through SNAT.

use crate::{
    Error, Result, Sizes,
    attach::Attacher,
    datapath::remove_pins,
    device::allow_forwarding,
    migration::Migration,
    programs::{self, Programs},
    table::Table,
};
use aya::programs::TcAttachType;
use leme_abi::{Addr, LanNode, Settings};
use std::{net::Ipv4Addr, path::Path};

/// The programs and the table of nodes, pinned below a directory of their own. Dropping it changes nothing.
pub struct Lan {
    programs: Programs,
    attacher: Attacher,
    nodes: Table<Addr, LanNode>,
    uplinks: Table<u32, Addr>,
}

/// Room for the machine's connections on behalf of its nodes; the maps of a node are not used here.
const SIZES: Sizes =
    Sizes { connections: 16_384, frontends: 1, services: 1, slots: 1, backends: 1, endpoints: 256, routes: 1 };

impl Lan {
    /// Loads or adopts. `pin_dir`: `/sys/fs/bpf/leme/<cluster>-lan` or the like, one per local cluster.
    pub fn open(pin_dir: &Path) -> Result<Self> {
        let settings = Settings { port_min: 12_000, port_max: 29_999, ..Settings::default() };
        let migration = Migration::begin(pin_dir, &SIZES)?;
        let programs = Programs::load(pin_dir, programs::LAN, settings, &SIZES)?;
        // The host ends get the new programs one by one, as `up` comes to them.
        migration.finish()?;
        Ok(Self {
            programs,
            attacher: Attacher::new(pin_dir)?,
            nodes: Table::open(pin_dir, "lan_nodes")?,
            uplinks: Table::open(pin_dir, "lan_uplinks")?,
        })
    }

    /// Attaches the host end `ifindex` (in the caller's namespace) of the node's NIC. `mac` is the node end's, `host_mac`
    /// the host end's. Done is done.
    pub fn attach(&mut self, ifindex: u32, node: Ipv4Addr, mac: [u8; 6], host_mac: [u8; 6]) -> Result<()> {
        allow_forwarding(ifindex)?;
        self.attacher.attach_device(&self.programs, "lan", ifindex, TcAttachType::Ingress)?;
        self.nodes.put(&node.into(), &LanNode { ifindex, mac, host_mac })
    }

    /// Lets nodes reach the outside through this device of the machine, from its address.
    pub fn attach_uplink(&mut self, ifindex: u32, address: Ipv4Addr) -> Result<()> {
        self.attacher.attach_device(&self.programs, "lan_uplink", ifindex, TcAttachType::Ingress)?;
        self.uplinks.put(&ifindex, &address.into())
    }

    /// Forgets one node. Absent is done.
    pub fn detach(&mut self, node: Ipv4Addr) -> Result<()> {
        let key = Addr::from(node);
        let Some(found) = self.nodes.get(&key)? else { return Ok(()) };
        self.nodes.delete(&key)?;
        self.attacher.detach_device(&["lan"], found.ifindex)
    }

    /// Removes every pin and link. Absent is done.
    pub fn remove(pin_dir: &Path) -> Result<()> {
        let removed = ["links", "programs", ""].map(|directory| remove_pins(&pin_dir.join(directory)));
        let failures: Vec<Error> = removed.into_iter().filter_map(Result::err).collect();
        if failures.is_empty() { Ok(()) } else { Err(Error::Teardown(failures)) }
    }
}
