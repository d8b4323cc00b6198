//! The product's datapath on a node made for measuring: the same crate that the agent runs, fed with made-up objects.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::maps::MapData;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use leme_datapath::{Config, Datapath, EndpointSpec, Limits, Snapshot};
use nix::net::if_::if_nametoindex;

use super::namespace::Namespace;
use super::objects::{self, Service};
use super::world::{self, CLUSTER_RANGE, NODE_ADDRESSES, NODES, POD_RANGES};

/// As everywhere; the mount below it is this process's own.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";
/// Room for connections: that of a machine with 2 GiB. Every node of every world has its own.
pub(crate) const CONNECTIONS: u32 = 65_536;

pub(crate) struct Node {
    datapath: Datapath,
    snapshot: Snapshot,
}

/// What the API server would have listed.
pub(crate) struct Objects {
    services: Vec<core::Service>,
    slices: Vec<discovery::EndpointSlice>,
    nodes: Vec<core::Node>,
}

impl Objects {
    pub(crate) fn of(services: &[Service]) -> Self {
        Self {
            services: services.iter().map(Service::object).collect(),
            slices: services.iter().flat_map(Service::slices).collect(),
            nodes: objects::nodes(NODE_ADDRESSES),
        }
    }
}

impl Node {
    /// On the node's devices, its pods made reachable; no Service yet.
    pub(crate) fn open(node: &world::Node, index: usize, label: &str) -> Result<Self> {
        let config = node.net.within(|| config(label, index, node.cgroup.clone()))?;
        let mut datapath = open(&node.net, config)?;
        node.net.within(|| {
            for pod in &node.pods {
                let (ifindex, addr) = (if_nametoindex(pod.device)?, IpAddr::V4(pod.address));
                let (mac, host_mac, limits) = (pod.mac, pod.host_mac, Limits::default());
                datapath.add_endpoint(&EndpointSpec { addr, ifindex, mac, host_mac, limits })?;
            }
            Ok(())
        })?;
        Ok(Self { datapath, snapshot: Snapshot::new(NODES[index]) })
    }

    /// From the full list in memory to the last map write.
    pub(crate) fn load(&mut self, services: &[Service]) -> Result<Duration> {
        self.take(&Objects::of(services))
    }

    pub(crate) fn take(&mut self, objects: &Objects) -> Result<Duration> {
        let began = Instant::now();
        objects.services.iter().for_each(|service| drop(self.snapshot.upsert_service(service)));
        objects.slices.iter().for_each(|slice| drop(self.snapshot.upsert_slice(slice)));
        objects.nodes.iter().for_each(|node| drop(self.snapshot.upsert_node(node)));
        self.datapath.reconcile_all(&self.snapshot)?;
        Ok(began.elapsed())
    }

    /// From the bytes of a changed slice, as a watch delivers them, to the call that flips its Service.
    pub(crate) fn change(&mut self, slice: &[u8]) -> Result<Duration> {
        let began = Instant::now();
        let changes = self.snapshot.upsert_slice(&serde_json::from_slice(slice)?).into_iter().collect();
        self.datapath.reconcile(&self.snapshot, &changes)?;
        Ok(began.elapsed())
    }

    /// What the agent does every few seconds.
    pub(crate) fn collect(&mut self) -> Result<()> {
        Ok(self.datapath.collect().map(drop)?)
    }

    pub(crate) fn pins(&self) -> &Path {
        &self.datapath.config().pin_dir
    }

    /// Bytes of every map, as the kernel accounts them, by the map's name.
    pub(crate) fn map_memory(&self) -> Result<Vec<(String, u64)>> {
        let mut sizes = Vec::new();
        for entry in std::fs::read_dir(self.pins())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let map = MapData::from_pin(entry.path())?;
                sizes.push((entry.file_name().to_string_lossy().into_owned(), fdinfo(map.fd().as_fd(), "memlock:")?));
            }
        }
        Ok(sizes)
    }
}

pub(crate) fn config(label: &str, index: usize, cgroup: PathBuf) -> Result<Config> {
    let mut config = Config::new(NODES[index], cgroup, NODE_ADDRESSES[index].into(), POD_RANGES[index].parse()?);
    config.pin_dir = Path::new(BPFFS).join("leme-bench").join(format!("{label}-{}", NODES[index]));
    config.cluster_cidr = CLUSTER_RANGE.parse()?;
    config.nics = vec![if_nametoindex("eth0").context("the node has no eth0")?];
    config.sizes.connections = CONNECTIONS;
    Ok(config)
}

pub(crate) fn open(net: &Namespace, config: Config) -> Result<Datapath> {
    net.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(Datapath::open(config))?)
    })
}

/// A field that the kernel tells of a map or a program.
pub(crate) fn fdinfo(fd: BorrowedFd<'_>, field: &str) -> Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let value = info.lines().find_map(|line| line.strip_prefix(field));
    Ok(value.with_context(|| format!("the kernel tells no {field}"))?.trim().parse()?)
}
