//! The kernel side as one object: opened once per agent, one writer.

use crate::{Change, Config, Error, ObjectKey, Result, Snapshot};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

/// A pod on this node, as the CNI server made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    pub addr: IpAddr,
    /// Host side of the veth pair, in the node's namespace.
    pub ifindex: u32,
    /// MAC of the pod's side.
    pub mac: [u8; 6],
    /// MAC of the host side.
    pub host_mac: [u8; 6],
}

/// What a reconciliation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub services: usize,
    pub operations: usize,
}

/// What a garbage collection of connections found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    pub live: usize,
    pub removed: usize,
    /// Room in the connection map.
    pub capacity: usize,
}

/// The tables as text-friendly rows: for `leme bpf` and for tests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    pub services: Vec<ServiceRow>,
    pub endpoints: Vec<EndpointSpec>,
    /// Prefix → node address.
    pub routes: BTreeMap<String, IpAddr>,
    /// Address → "local" or "remote".
    pub node_addresses: BTreeMap<IpAddr, String>,
    pub connections: usize,
    /// reason/direction → packets.
    pub counters: BTreeMap<String, u64>,
}

/// One entry of `services` with everything that leads to it and follows from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceRow {
    pub id: u32,
    /// `10.96.0.10:53/UDP`, NodePorts as `*:30080/TCP`, `… external` where inside and outside differ.
    pub frontends: Vec<String>,
    /// `10.244.1.7:80`
    pub backends: Vec<String>,
    pub flags: u32,
    pub affinity: u32,
}

/// The node's datapath. Dropping it changes nothing in the kernel: programs, links and maps stay pinned.
pub struct Datapath {
    config: Config,
}

impl Datapath {
    /// Loads the programs, adopting pinned maps and links of an earlier agent; attaches socket hooks and the NICs in
    /// `config.nics`; creates the VXLAN device and the route of the pod range. Works in the caller's network namespace.
    pub async fn open(config: Config) -> Result<Self> {
        config.check()?;
        Err(Error::NoPrograms)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// MTU for pods: the first NIC's less the tunnel header.
    pub fn pod_mtu(&self) -> u32 {
        self.config.mtu
    }

    /// Attaches the `nic` hooks to a device; done is done.
    pub fn attach_nic(&mut self, ifindex: u32) -> Result<()> {
        let _ = ifindex;
        Err(Error::NoPrograms)
    }

    /// Attaches a pod's hooks and makes it reachable; done is done.
    pub fn add_endpoint(&mut self, endpoint: &EndpointSpec) -> Result<()> {
        let _ = endpoint;
        Err(Error::NoPrograms)
    }

    /// Absent is done.
    pub fn remove_endpoint(&mut self, addr: IpAddr) -> Result<()> {
        let _ = addr;
        Err(Error::NoPrograms)
    }

    pub fn endpoints(&self) -> Result<Vec<EndpointSpec>> {
        Err(Error::NoPrograms)
    }

    /// Brings the tables of the changed objects up to date. Nothing else is looked at, nothing is pruned.
    pub fn reconcile(&mut self, snapshot: &Snapshot, changes: &BTreeSet<Change>) -> Result<Report> {
        let _ = (snapshot, changes);
        Err(Error::NoPrograms)
    }

    /// Everything, and removal of what the snapshot does not have. Only after the first complete list of Services,
    /// EndpointSlices and Nodes.
    pub fn reconcile_all(&mut self, snapshot: &Snapshot) -> Result<Report> {
        let _ = snapshot;
        Err(Error::NoPrograms)
    }

    /// Removes expired connections; call every few seconds.
    pub fn collect(&mut self) -> Result<Collected> {
        Err(Error::NoPrograms)
    }

    pub fn dump(&self) -> Result<Dump> {
        dump(&self.config.pin_dir)
    }

    /// True while the kernel would send a new connection for the Service to this address (used to hold a pod's stop
    /// signal until its endpoint has left the tables).
    pub fn serves(&self, service: &ObjectKey, addr: IpAddr) -> bool {
        let _ = (service, addr);
        false
    }
}

/// Reads the pinned tables of a node without owning them.
pub fn dump(pin_dir: &Path) -> Result<Dump> {
    let _ = pin_dir;
    Err(Error::NoPrograms)
}

/// Removes every pin, link and device of a node, whether or not an agent ever ran. Absent is done.
pub async fn remove_all(config: &Config) -> Result<()> {
    let _ = config;
    Err(Error::NoPrograms)
}
