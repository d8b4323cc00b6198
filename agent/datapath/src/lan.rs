//! The network between the nodes of a local cluster: a program on the host end of each node's NIC instead of a bridge.
//!
//! Called by `leme up`, which makes the namespaces and the veth pairs. It redirects between nodes, lets nodes and the
//! machine itself talk, and gives nodes the outside through SNAT.

use crate::{Error, Result};
use std::{net::Ipv4Addr, path::Path};

/// The programs and the table of nodes, pinned below a directory of their own. Dropping it changes nothing.
pub struct Lan {}

impl Lan {
    /// Loads or adopts. `pin_dir`: `/sys/fs/bpf/leme/lan` or the like, one per local cluster.
    pub fn open(pin_dir: &Path) -> Result<Self> {
        let _ = pin_dir;
        Err(Error::NoPrograms)
    }

    /// Attaches the host end `ifindex` (in the caller's namespace) of the node's NIC. `mac` is the node end's, `host_mac`
    /// the host end's. Done is done.
    pub fn attach(&mut self, ifindex: u32, node: Ipv4Addr, mac: [u8; 6], host_mac: [u8; 6]) -> Result<()> {
        let _ = (ifindex, node, mac, host_mac);
        Err(Error::NoPrograms)
    }

    /// Lets nodes reach the outside through this device of the machine, from its address.
    pub fn attach_uplink(&mut self, ifindex: u32, address: Ipv4Addr) -> Result<()> {
        let _ = (ifindex, address);
        Err(Error::NoPrograms)
    }

    /// Forgets one node. Absent is done.
    pub fn detach(&mut self, node: Ipv4Addr) -> Result<()> {
        let _ = node;
        Err(Error::NoPrograms)
    }

    /// Removes every pin and link. Absent is done.
    pub fn remove(pin_dir: &Path) -> Result<()> {
        let _ = pin_dir;
        Err(Error::NoPrograms)
    }
}
