//! Two nodes with pods, the real datapath on both, and real traffic:
//!
//! ```text
//! pods 10.244.1.2, .3 ─ a 10.89.1.11 ─┐
//!                                     router ─ far 198.51.100.2
//! pods 10.244.2.2, .3 ─ b 10.89.2.12 ─┘
//! ```
//!
//! Every box is a network namespace. This process is outside the nodes' cgroups, so what its sockets ask is resolved
//! packet by packet; [`Host::within_cgroup`] makes it a process of a node, whose sockets are resolved as they connect.

use crate::{
    network::{Network, connect, connect_with_macs},
    node::{cgroup_root, cluster, ensure_bpffs, feed, within},
};
use anyhow::{Context, Result};
use leme_datapath::{Config, Datapath, EndpointSpec, Limits, Nic, Sizes, Snapshot};
use serde_json::Value;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

pub const A: Ipv4Addr = Ipv4Addr::new(10, 89, 1, 11);
pub const B: Ipv4Addr = Ipv4Addr::new(10, 89, 2, 12);
pub const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Every pod's gateway, answered by nobody.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

pub struct Site {
    pub router: Network,
    pub far: Network,
    pub a: Host,
    pub b: Host,
}

impl Site {
    /// With these Services, beside the nodes.
    pub fn new(objects: &[Value]) -> Result<Self> {
        Self::with(objects, |_| ())
    }

    /// The same with another configuration of the datapath on both nodes.
    pub fn with(objects: &[Value], configure: impl Fn(&mut Config)) -> Result<Self> {
        Self::over(objects, configure, cable)
    }

    /// The same where `a` has another uplink.
    pub fn over(objects: &[Value], configure: impl Fn(&mut Config), uplink: Uplink) -> Result<Self> {
        let (router, far) = (Network::new()?, Network::new()?);
        router.set("ip_forward", "1")?;
        connect((&router, "to-far"), (&far, "eth0"))?;
        router.address("to-far", Ipv4Addr::new(198, 51, 100, 1), 24)?;
        far.address("eth0", FAR, 24)?;
        far.default_route(Ipv4Addr::new(198, 51, 100, 1))?;
        let nodes = cluster([A, B]);
        let objects: Vec<&Value> = nodes.iter().chain(objects).collect();
        let a = Host::new((&router, uplink), "a", A, &objects, &configure)?;
        let b = Host::new((&router, cable), "b", B, &objects, &configure)?;
        Ok(Self { router, far, a, b })
    }

    /// A change in the API that both nodes hear of.
    pub fn feed(&mut self, objects: &[Value]) -> Result<()> {
        self.a.feed(objects)?;
        self.b.feed(objects)
    }
}

/// Connects a node of a name to the router, and returns the devices that are to have the addresses: the router's and the
/// node's.
pub type Uplink = fn(&Network, &Network, &str) -> Result<[String; 2]>;

fn cable(router: &Network, node: &Network, name: &str) -> Result<[String; 2]> {
    let port = format!("to-{name}");
    connect((router, &port), (node, "eth0"))?;
    Ok([port, "eth0".into()])
}

/// A node.
pub struct Host {
    pub network: Network,
    /// The last byte of their addresses is their number here plus two.
    pub pods: Vec<Network>,
    pub datapath: Datapath,
    snapshot: Snapshot,
    cgroup: PathBuf,
}

impl Host {
    fn new(
        (router, uplink): (&Network, Uplink),
        name: &str,
        address: Ipv4Addr,
        objects: &[&Value],
        configure: impl Fn(&mut Config),
    ) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("site-{}-{}-{name}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let [x, y, n, _] = address.octets();
        let network = Network::new()?;
        let [port, nic] = uplink(router, &network, name)?;
        let gateway = Ipv4Addr::new(x, y, n, 1);
        router.address(&port, gateway, 24)?;
        network.address(&nic, address, 24)?;
        network.default_route(gateway)?;
        ensure_bpffs()?;
        let cgroup = cgroup_root()?.join(&unique);
        fs::create_dir(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
        let mut config = Config::new(unique, &cgroup, IpAddr::V4(address), format!("10.244.{n}.0/24").parse()?);
        config.node = name.into();
        config.nics = vec![network.index(&nic)?];
        config.sizes = Sizes { connections: 4096, ..config.sizes };
        configure(&mut config);
        let datapath = open(&network, config)?;
        let mut host = Self { network, pods: Vec::new(), datapath, snapshot: Snapshot::new(name), cgroup };
        for last in [2, 3] {
            host.add_pod(Ipv4Addr::new(10, 244, n, last))?;
        }
        for object in objects {
            feed(&mut host.snapshot, object)?;
        }
        host.reconcile()?;
        Ok(host)
    }

    /// As the agent's CNI server makes it.
    fn add_pod(&mut self, address: Ipv4Addr) -> Result<()> {
        let last = address.octets()[3];
        let (mac, host_mac) = ([2, 0, 0, 0, last, 0], [2, 0, 0, 0, last, 1]);
        let pod = Network::new()?;
        let name = format!("pod{last}");
        connect_with_macs((&self.network, &name, Some(host_mac)), (&pod, "eth0", Some(mac)))?;
        pod.address("eth0", address, 32)?;
        pod.neighbour("eth0", GATEWAY, host_mac)?;
        pod.default_route_of_mtu(GATEWAY, Some(self.datapath.pod_mtu()))?;
        self.network.neighbour(&name, address, mac)?;
        let (addr, ifindex, limits) = (address.into(), self.network.index(&name)?, Limits::default());
        let spec = EndpointSpec { addr, ifindex, mac, host_mac, limits };
        let Self { network, datapath, .. } = self;
        network.within(|| datapath.add_endpoint(&spec))?;
        self.pods.push(pod);
        Ok(())
    }

    /// How fast a pod may send and receive.
    pub fn limit(&mut self, pod: &str, limits: Limits) -> Result<()> {
        let Self { network, datapath, .. } = self;
        let address: IpAddr = pod.parse()?;
        let spec = datapath.endpoints()?.into_iter().find(|spec| spec.addr == address).context("a pod of this node")?;
        network.within(|| Ok(datapath.add_endpoint(&EndpointSpec { limits, ..spec })?))
    }

    pub fn feed(&mut self, objects: &[Value]) -> Result<()> {
        objects.iter().try_for_each(|object| feed(&mut self.snapshot, object))?;
        self.reconcile()
    }

    /// What the agent does when the kernel tells of a change of devices. True if anything was different.
    pub fn follow(&mut self) -> Result<bool> {
        let Self { network, datapath, .. } = self;
        network.within(|| {
            let config = datapath.config().clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let overlay = runtime.block_on(leme_datapath::keep_overlay(&config))?;
            let nics = runtime.block_on(leme_datapath::find_nics(config.addresses[0], &[&config.vxlan]))?;
            Ok(datapath.follow(overlay, &nics)?)
        })
    }

    /// The same with devices that the agent would not take for NICs, as veth pairs are not.
    pub fn follow_these(&mut self, nics: &[Nic]) -> Result<bool> {
        let Self { network, datapath, .. } = self;
        let overlay = network.index(&datapath.config().vxlan)?;
        network.within(|| Ok(datapath.follow(overlay, nics)?))
    }

    /// Another agent after this one, maybe with another configuration.
    pub fn restart_with(&mut self, change: impl FnOnce(&mut Config)) -> Result<()> {
        let mut config = self.datapath.config().clone();
        change(&mut config);
        self.datapath = open(&self.network, config)?;
        self.reconcile()
    }

    /// Where programs are, as far as they really are there.
    pub fn attachments(&self) -> Result<Vec<String>> {
        let attachments = self.datapath.attachments()?;
        // Devices have their names here alone.
        self.network.within(|| {
            let mut places: Vec<_> = attachments.iter().map(ToString::to_string).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let found = runtime.block_on(leme_datapath::inspect(attachments))?;
            places.retain(|place| !found.detached.iter().any(|detached| detached.to_string() == *place));
            Ok(places)
        })
    }

    fn reconcile(&mut self) -> Result<()> {
        let Self { network, datapath, snapshot, .. } = self;
        network.within(|| datapath.reconcile_all(snapshot))?;
        Ok(())
    }

    /// What was dropped for a reason (`spoofed/egress`), so far.
    pub fn counter(&self, name: &str) -> u64 {
        self.datapath.dump().expect("the tables").counters.get(name).copied().unwrap_or(0)
    }

    /// Makes this process one of the node's while `work` runs.
    pub fn within_cgroup<T>(&self, work: impl FnOnce() -> T) -> T {
        within(&self.cgroup, work)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let config = self.datapath.config().clone();
        let removed = self.network.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok::<_, anyhow::Error>(runtime.block_on(leme_datapath::remove_all(&config))?)
        });
        let gone = fs::remove_dir(&self.cgroup);
        if !std::thread::panicking() {
            removed.expect("everything goes");
            gone.expect("the cgroup goes");
        }
    }
}

fn open(network: &Network, config: Config) -> Result<Datapath> {
    network.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(Datapath::open(config))?)
    })
}
