//! A small cluster to measure: two nodes and a client outside, joined by a bridge, a pod that asks on the first node and
//! one that answers on each. Every namespace is its own, so all worlds have the same addresses and stand side by side;
//! what differs is what forwards between them.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::cgroup;
use super::leme;
use super::namespace::Namespace;
use super::objects::{self, BACKEND_PORT, Position, Service, Side};
use super::worker::{self, Client, Process};
use super::{iptables, nftables};

pub(crate) const NODES: [&str; 2] = ["node-1", "node-2"];
pub(crate) const NODE_ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 18, 0, 1), Ipv4Addr::new(172, 18, 0, 2)];
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 9);
pub(crate) const CLUSTER_RANGE: &str = "10.128.0.0/10";
pub(crate) const POD_RANGES: [&str; 2] = ["10.128.1.0/24", "10.128.2.0/24"];
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 128, 1, 10);
pub(crate) const NEAR: Ipv4Addr = Ipv4Addr::new(10, 128, 1, 11);
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(10, 128, 2, 11);
/// Of pods and tunnels: the wire's less VXLAN's headers.
const MTU: u32 = 1450;

/// What forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum System {
    Leme,
    Nftables,
    Iptables,
    /// The kernel's routing and VXLAN without any rule: what the rules stand on.
    Routed,
    /// A bridge per node, and the kernel's VXLAN between them.
    Bridged,
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Leme => "leme",
            Self::Nftables => "nftables rules",
            Self::Iptables => "iptables rules",
            Self::Routed => "routing without rules",
            Self::Bridged => "Linux bridge and kernel VXLAN",
        }
    }
}

/// A pod's end of its pair, and where its traffic goes.
pub(crate) struct Pod {
    pub(crate) net: Namespace,
    pub(crate) address: Ipv4Addr,
    pub(crate) device: &'static str,
    pub(crate) mac: [u8; 6],
    pub(crate) host_mac: [u8; 6],
}

pub(crate) struct Node {
    pub(crate) net: Namespace,
    pub(crate) cgroup: PathBuf,
    pub(crate) pods: Vec<Pod>,
    pub(crate) leme: Option<leme::Node>,
}

pub(crate) struct World {
    pub(crate) system: System,
    pub(crate) services: u32,
    pub(crate) nodes: [Node; 2],
    pub(crate) pod_client: Client,
    pub(crate) outside_client: Client,
    _servers: Vec<Process>,
    _wire: Namespace,
    _outside: Namespace,
}

impl World {
    pub(crate) fn build(system: System, services: &[Service]) -> Result<Self> {
        let count = services.len() as u32;
        let label = format!("{system:?}-{count}").to_lowercase();
        Self::assemble(system, services, &label).with_context(|| format!("cannot build the world {label}"))
    }

    fn assemble(system: System, services: &[Service], label: &str) -> Result<Self> {
        let (wire, outside) = (Namespace::new()?, Namespace::new()?);
        let mut nodes = [make_node(0, label)?, make_node(1, label)?];
        lay_wire(
            &wire,
            &[(&nodes[0].net, NODE_ADDRESSES[0]), (&nodes[1].net, NODE_ADDRESSES[1]), (&outside, OUTSIDE)],
        )?;
        outside.ip(&format!("route add {CLUSTER_RANGE} via {}\n", NODE_ADDRESSES[0]))?;
        for (index, node) in nodes.iter_mut().enumerate() {
            connect(system, node, index)?;
            forward(system, node, index, services, label)?;
        }
        let mut servers = Vec::new();
        for (node, pod) in [(&nodes[0], 1), (&nodes[1], 0)] {
            servers.push(worker::serve(&node.pods[pod].net, &node.cgroup, BACKEND_PORT)?);
        }
        let pod_client = Client::start(&nodes[0].pods[0].net, &nodes[0].cgroup)?;
        let outside_client = Client::start(&outside, &cgroup::create(&format!("{label}/outside"))?)?;
        Ok(Self {
            system,
            services: services.len() as u32,
            nodes,
            pod_client,
            outside_client,
            _servers: servers,
            _wire: wire,
            _outside: outside,
        })
    }
}

/// The way a client takes to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    SameNode,
    AcrossNodes,
    NodePortLocal,
    NodePortRemote,
}

impl Path {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SameNode => "same node",
            Self::AcrossNodes => "across nodes",
            Self::NodePortLocal => "outside to NodePort, backend on that node",
            Self::NodePortRemote => "outside to NodePort, backend on another node",
        }
    }

    pub(crate) fn is_outside(self) -> bool {
        matches!(self, Self::NodePortLocal | Self::NodePortRemote)
    }

    fn side(self) -> Side {
        match self {
            Self::SameNode | Self::NodePortLocal => Side::Near,
            Self::AcrossNodes | Self::NodePortRemote => Side::Far,
        }
    }

    /// The backend's own address.
    pub(crate) fn backend(self) -> SocketAddr {
        let address = if self.side() == Side::Near { NEAR } else { FAR };
        SocketAddrV4::new(address, BACKEND_PORT).into()
    }

    pub(crate) fn service(self, count: u32, position: Position) -> SocketAddr {
        match self.is_outside() {
            true => objects::node_port(NODE_ADDRESSES[0], count, position, self.side()).into(),
            false => objects::cluster_address(count, position, self.side()).into(),
        }
    }
}

impl World {
    pub(crate) fn client(&mut self, path: Path) -> &mut Client {
        if path.is_outside() { &mut self.outside_client } else { &mut self.pod_client }
    }
}

fn make_node(index: usize, label: &str) -> Result<Node> {
    let pods: &[_] = if index == 0 { &[("client", CLIENT), ("near", NEAR)] } else { &[("far", FAR)] };
    let pods = pods.iter().map(|(device, address)| {
        let last = address.octets()[3];
        let (mac, host_mac) = ([2, 0, 0, 1, index as u8, last], [2, 0, 0, 2, index as u8, last]);
        Ok(Pod { net: Namespace::new()?, address: *address, device, mac, host_mac })
    });
    Ok(Node {
        net: Namespace::new()?,
        cgroup: cgroup::create(&format!("{label}/{}", NODES[index]))?,
        pods: pods.collect::<Result<_>>()?,
        leme: None,
    })
}

/// A bridge in a namespace of its own; whoever is on it has `eth0`.
fn lay_wire(wire: &Namespace, ends: &[(&Namespace, Ipv4Addr)]) -> Result<()> {
    wire.ip("link add wire type bridge\nlink set wire up\n")?;
    no_bridge_netfilter(wire)?;
    for (n, (net, address)) in ends.iter().enumerate() {
        let path = net.path();
        wire.ip(&format!("link add port{n} type veth peer name eth0 netns {path}\nlink set port{n} master wire up\n"))?;
        net.ip(&format!("link set lo up\nlink set eth0 up\naddress add {address}/24 dev eth0\n"))?;
    }
    Ok(())
}

/// A bridge here is a wire: no rule shall look at what passes it.
fn no_bridge_netfilter(net: &Namespace) -> Result<()> {
    match std::path::Path::new("/proc/sys/net/bridge").exists() {
        true => net.set("bridge/bridge-nf-call-iptables", "0"),
        false => Ok(()),
    }
}

/// Pods' pairs: routed, each pod alone on its link with a gateway that is a static neighbour; or on a bridge.
fn connect(system: System, node: &Node, index: usize) -> Result<()> {
    if system == System::Bridged {
        no_bridge_netfilter(&node.net)?;
        node.net.ip(&format!(
            "link add cni0 type bridge\nlink set cni0 up\naddress add 10.128.{}.1/24 dev cni0\n",
            index + 1
        ))?;
    }
    for pod in &node.pods {
        let (path, device, address) = (pod.net.path(), pod.device, pod.address);
        let (mac, host_mac) = (text(pod.mac), text(pod.host_mac));
        node.net.ip(&format!(
            "link add {device} address {host_mac} mtu {MTU} type veth peer name eth0 address {mac} mtu {MTU} netns \
             {path}\nlink set {device} up\n"
        ))?;
        pod.net.ip("link set lo up\nlink set eth0 up\n")?;
        match system {
            System::Bridged => {
                node.net.ip(&format!("link set {device} master cni0\n"))?;
                pod.net.ip(&format!(
                    "address add {address}/24 dev eth0\nroute add default via 10.128.{}.1\n",
                    index + 1
                ))?;
            }
            _ => {
                node.net.ip(&format!(
                    "neighbour add {address} lladdr {mac} dev {device}\nroute add {address}/32 dev {device}\n"
                ))?;
                pod.net.ip(&format!(
                    "address add {address}/32 dev eth0\nneighbour add 169.254.1.1 lladdr {host_mac} dev eth0\nroute add \
                     169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 src {address}\n"
                ))?;
            }
        }
    }
    Ok(())
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What makes the node a router to pods, here and behind the other node.
fn forward(system: System, node: &mut Node, index: usize, services: &[Service], label: &str) -> Result<()> {
    if system == System::Leme {
        node.leme = Some(leme::Node::open(node, index, label)?);
        return node.leme.as_mut().expect("just put there").load(services).map(drop);
    }
    node.net.set("ipv4/ip_forward", "1")?;
    tunnel(&node.net, index)?;
    match system {
        System::Iptables => iptables::load(&node.net, &iptables::rules(services)),
        System::Nftables => nftables::load(&node.net, &nftables::rules(services, &[NODE_ADDRESSES[index]])),
        _ => Ok(()),
    }
}

/// The kernel's VXLAN towards the one other node, its far end a static neighbour.
fn tunnel(net: &Namespace, index: usize) -> Result<()> {
    let (here, there) = (index + 1, 2 - index);
    let (own, other) = (NODE_ADDRESSES[index], NODE_ADDRESSES[1 - index]);
    net.ip(&format!(
        "link add vxlan0 address 02:00:00:03:00:0{here} mtu {MTU} type vxlan id 1 dstport 4789 local {own} remote {other} \
         nolearning\nlink set vxlan0 up\naddress add 10.128.{here}.0/32 dev vxlan0\nneighbour add 10.128.{there}.0 lladdr \
         02:00:00:03:00:0{there} dev vxlan0\nroute add 10.128.{there}.0/24 via 10.128.{there}.0 dev vxlan0 onlink\n"
    ))
}
