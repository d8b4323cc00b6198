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
use leme_datapath::{Config, Datapath, EndpointSpec, Limits, Sizes, Snapshot};
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
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

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
        let (router, far) = (Network::new()?, Network::new()?);
        router.set("ip_forward", "1")?;
        connect((&router, "to-far"), (&far, "eth0"))?;
        router.address("to-far", Ipv4Addr::new(198, 51, 100, 1), 24)?;
        far.address("eth0", FAR, 24)?;
        far.default_route(Ipv4Addr::new(198, 51, 100, 1))?;
        let nodes = cluster([A, B]);
        let objects: Vec<&Value> = nodes.iter().chain(objects).collect();
        let a = Host::new(&router, "a", A, &objects, &configure)?;
        let b = Host::new(&router, "b", B, &objects, &configure)?;
        Ok(Self { router, far, a, b })
    }

    /// A change in the API that both nodes hear of.
    pub fn feed(&mut self, objects: &[Value]) -> Result<()> {
        self.a.feed(objects)?;
        self.b.feed(objects)
    }
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
        router: &Network,
        name: &str,
        address: Ipv4Addr,
        objects: &[&Value],
        configure: impl Fn(&mut Config),
    ) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("site-{}-{}-{name}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let [x, y, n, _] = address.octets();
        let network = Network::new()?;
        let port = format!("to-{name}");
        connect((router, &port), (&network, "eth0"))?;
        router.address(&port, Ipv4Addr::new(x, y, n, 1), 24)?;
        network.address("eth0", address, 24)?;
        network.default_route(Ipv4Addr::new(x, y, n, 1))?;
        ensure_bpffs()?;
        let cgroup = cgroup_root()?.join(&unique);
        fs::create_dir(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
        let mut config = Config::new(unique, &cgroup, IpAddr::V4(address), format!("10.244.{n}.0/24").parse()?);
        config.node = name.into();
        config.nics = vec![network.index("eth0")?];
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
        self.network.set_mtu(&name, self.datapath.pod_mtu())?;
        pod.set_mtu("eth0", self.datapath.pod_mtu())?;
        pod.address("eth0", address, 32)?;
        pod.neighbour("eth0", GATEWAY, host_mac)?;
        pod.default_route(GATEWAY)?;
        self.network.neighbour(&name, address, mac)?;
        let (addr, ifindex, limits) = (address.into(), self.network.index(&name)?, Limits::default());
        let spec = EndpointSpec { addr, ifindex, mac, host_mac, limits };
        let Self { network, datapath, .. } = self;
        network.within(|| datapath.add_endpoint(&spec))?;
        self.pods.push(pod);
        Ok(())
    }

    pub fn feed(&mut self, objects: &[Value]) -> Result<()> {
        objects.iter().try_for_each(|object| feed(&mut self.snapshot, object))?;
        self.reconcile()
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
