//! What a node's datapath must be told before it can be opened.

use crate::NodePorts;
use ipnetwork::IpNetwork;
use leme_abi::Addr;
use std::{net::IpAddr, path::PathBuf};

/// The VXLAN device's name, where none is said.
pub const VXLAN: &str = "leme-vxlan";

#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name in the API.
    pub node: String,
    /// Where maps, links and programs are pinned: `/sys/fs/bpf/leme/<node>`.
    pub pin_dir: PathBuf,
    /// The cgroup v2 directory below which the node's pods, and the node's own processes, run.
    pub cgroup: PathBuf,
    /// The node's addresses; the first is the source of masqueraded traffic and of the tunnel.
    pub addresses: Vec<IpAddr>,
    /// Devices towards the outside: they get the `nic` hooks.
    pub nics: Vec<u32>,
    /// This node's pod range; its first address is the router address.
    pub pod_cidr: IpNetwork,
    /// The whole cluster's pod range, routed to the VXLAN device.
    pub cluster_cidr: IpNetwork,
    /// Outside ranges that see pods' own addresses and know the way back: what pods send there is not masqueraded.
    pub non_masquerade_cidrs: Vec<IpNetwork>,
    /// The VXLAN device's name and identifier; UDP port 4789.
    pub vxlan: String,
    pub vni: u32,
    /// MTU of pods and of the VXLAN device; 0: that of the first NIC less 50.
    pub mtu: u32,
    /// Source ports for masquerade and SNAT, inclusive: apart from ephemeral ports and NodePorts.
    pub ports: (u16, u16),
    /// On which addresses NodePorts answer.
    pub node_ports: NodePorts,
    pub socket_lb: SocketLb,
    pub sizes: Sizes,
}

impl Config {
    /// Defaults for everything that has one.
    pub fn new(node: impl Into<String>, cgroup: impl Into<PathBuf>, address: IpAddr, pod_cidr: IpNetwork) -> Self {
        let node = node.into();
        Self {
            pin_dir: PathBuf::from("/sys/fs/bpf/leme").join(&node),
            node,
            cgroup: cgroup.into(),
            addresses: vec![address],
            nics: Vec::new(),
            pod_cidr,
            cluster_cidr: "10.244.0.0/16".parse().expect("a constant"),
            non_masquerade_cidrs: Vec::new(),
            vxlan: VXLAN.into(),
            vni: 1,
            mtu: 0,
            ports: (12_000, 29_999),
            node_ports: NodePorts::default(),
            socket_lb: SocketLb::default(),
            sizes: Sizes::default(),
        }
    }

    /// First address of the pod range: the node's source towards other nodes' pods, and the pods' DNS server.
    pub fn router(&self) -> IpAddr {
        match self.pod_cidr {
            IpNetwork::V4(v4) => IpAddr::V4((u32::from(v4.network()) + 1).into()),
            IpNetwork::V6(v6) => IpAddr::V6((u128::from(v6.network()) + 1).into()),
        }
    }

    pub(crate) fn check(&self) -> crate::Result<()> {
        let (min, max) = self.ports;
        let fault = if self.addresses.is_empty() {
            "a node needs at least one address".to_owned()
        } else if min == 0 || max <= min || max - min < 1000 {
            format!("source ports {min}-{max}: at least a thousand are needed")
        } else if !self.addresses.iter().all(|address| Addr::from(*address).is_v4()) || self.pod_cidr.is_ipv6() {
            "only IPv4 is supported".to_owned()
        } else if let Some(range) = self.non_masquerade_cidrs.iter().find(|range| range.is_ipv6()) {
            format!("non-masquerade range {range}: only IPv4 is supported")
        } else {
            return Ok(());
        };
        Err(crate::Error::Config(fault))
    }
}

/// Whose sockets get a backend when they name a Service. Everybody else's packets do, on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketLb {
    #[default]
    All,
    /// Not those of pods: a sidecar that takes its pod's connections must see which Service they are for.
    HostOnly,
}

/// Entries per map. Connection maps follow the machine's memory, the others the cluster's state.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub connections: u32,
    pub frontends: u32,
    pub services: u32,
    pub slots: u32,
    pub backends: u32,
    pub endpoints: u32,
    pub routes: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        let connections = connections_for(total_memory());
        Self {
            connections,
            frontends: 131_072,
            services: 65_536,
            slots: 524_288,
            backends: 262_144,
            endpoints: 4_096,
            routes: 16_384,
        }
    }
}

/// One connection costs about 400 bytes in its three entries; at most 1/64 of memory goes there.
fn connections_for(memory: u64) -> u32 {
    (memory / 64 / 400).clamp(65_536, 1_048_576).next_power_of_two() as u32
}

fn total_memory() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(1 << 20) * 1024
}
