//! Node `a` (10.89.0.11, pods 10.244.1.2 and .3) of a cluster with node `b` (10.89.0.12), in a namespace of its own.

use crate::{Frame, Network, Verdict, network::connect};
use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use leme_datapath::{Config, Datapath, EndpointSpec, Limits, Sizes, Snapshot};
use nix::{
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
    sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

const BPFFS: &str = "/sys/fs/bpf";
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 11);
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
/// The next hop to the outside, node `b`, and a client outside: all at the far end of the NIC.
const FAR: [Ipv4Addr; 3] = [Ipv4Addr::new(10, 89, 0, 1), Ipv4Addr::new(10, 89, 0, 12), Ipv4Addr::new(198, 51, 100, 2)];
/// MAC of the host ends.
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// What pods use as their gateway: no device has it.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// A pod's veth pair.
struct PodPlace {
    device: &'static str,
    peer: &'static str,
    address: Ipv4Addr,
    mac: [u8; 6],
}

const PODS: [PodPlace; 2] = [
    PodPlace { device: "pod2", peer: "peer2", address: Ipv4Addr::new(10, 244, 1, 2), mac: [2, 0, 0, 0, 1, 2] },
    PodPlace { device: "pod3", peer: "peer3", address: Ipv4Addr::new(10, 244, 1, 3), mac: [2, 0, 0, 0, 1, 3] },
];

/// Runs a test on a thread of its own in a new network namespace, with a node in it.
pub fn in_namespace(objects: Vec<Value>, test: impl FnOnce(&mut Node) + Send + 'static) {
    in_namespace_with(objects, |_| (), test);
}

/// The same with another configuration of the datapath.
pub fn in_namespace_with(
    objects: Vec<Value>,
    configure: impl FnOnce(&mut Config) + Send + 'static,
    test: impl FnOnce(&mut Node) + Send + 'static,
) {
    let outcome = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root: run them with `cargo xtask test packets`");
        let mut node = Node::new(&objects, configure).unwrap_or_else(|error| panic!("{error:?}"));
        test(&mut node);
    });
    if let Err(panic) = outcome.join() {
        std::panic::resume_unwind(panic);
    }
}

pub struct Node {
    pub datapath: Datapath,
    pub snapshot: Snapshot,
    runtime: Runtime,
    cgroup: PathBuf,
}

impl Node {
    fn new(objects: &[Value], configure: impl FnOnce(&mut Config)) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("packets-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ensure_bpffs()?;
        let cgroup = cgroup_root()?.join(&name);
        fs::create_dir(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let nic = make_nic()?;
        make_pods()?;
        let mut config = Config::new(name, &cgroup, IpAddr::V4(ADDRESS), "10.244.1.0/24".parse()?);
        config.node = "a".into();
        config.nics = vec![nic];
        config.sizes = Sizes { connections: 4096, ..config.sizes };
        configure(&mut config);
        let mut datapath = runtime.block_on(Datapath::open(config))?;
        for pod in &PODS {
            datapath.add_endpoint(&pod.spec()?)?;
        }
        let mut snapshot = Snapshot::new("a");
        for object in cluster([ADDRESS, FAR[1]]).iter().chain(objects) {
            feed(&mut snapshot, object)?;
        }
        datapath.reconcile_all(&snapshot)?;
        Ok(Self { datapath, snapshot, runtime, cgroup })
    }

    /// One packet through one loaded program, as if it were at a device.
    pub fn run(&self, program: &str, device: &str, packet: &Frame) -> (Verdict, Frame) {
        run(&self.datapath.config().pin_dir, program, device, packet)
    }

    /// A namespace with the pod of that host end in it: from then on real sockets talk there.
    pub fn pod_namespace(&self, device: &str) -> Network {
        let pod = PODS.iter().find(|pod| pod.device == device).expect("one of the two pods");
        pod.move_out().expect("the pod's end moves")
    }

    /// A namespace with everything at the far end of the NIC: the gateway, node `b`, and a client outside.
    pub fn far_namespace(&self) -> Network {
        move_wire().expect("the wire moves")
    }

    /// Another NIC in the place of today's, and what is at its far end.
    pub fn replace_nic(&self) -> Network {
        let gone = Network::of_this_thread().and_then(|node| node.remove("eth0"));
        gone.and_then(|()| make_nic()).expect("another NIC");
        self.far_namespace()
    }

    /// Waits until a counter has reached a value: packets between namespaces arrive a moment later.
    pub fn await_counter(&self, name: &str, value: u64) {
        let patience = Instant::now() + Duration::from_secs(5);
        while self.counter(name) < value {
            assert!(Instant::now() < patience, "{name} is {} and not {value}", self.counter(name));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Moves this process into the node's cgroup while `work` runs: its sockets become the node's.
    pub fn within_cgroup(&self, work: impl FnOnce()) {
        within(&self.cgroup, work);
    }

    /// The same while the node changes.
    pub fn change_within_cgroup(&mut self, work: impl FnOnce(&mut Self)) {
        within(&self.cgroup.clone(), || work(self));
    }

    pub fn feed(&mut self, object: &Value) {
        feed(&mut self.snapshot, object).expect("an object");
        self.datapath.reconcile_all(&self.snapshot).expect("room in the tables");
    }

    /// Opens the datapath once more, as an agent that comes after a crash.
    pub fn restart(&mut self) {
        self.restart_with(|_| {});
    }

    /// The same with another configuration.
    pub fn restart_with(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = self.datapath.config().clone();
        change(&mut config);
        self.datapath = self.runtime.block_on(Datapath::open(config)).expect("adopts what is pinned");
    }

    /// Runs what waits for netlink.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.counters().get(name).copied().unwrap_or(0)
    }

    /// `reason/direction` → packets.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        self.datapath.dump().expect("the tables").counters
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let config = self.datapath.config().clone();
        let removed = self.runtime.block_on(leme_datapath::remove_all(&config));
        let gone = fs::remove_dir(&self.cgroup);
        if !std::thread::panicking() {
            removed.expect("everything goes");
            gone.expect("the cgroup goes");
        }
    }
}

impl PodPlace {
    fn spec(&self) -> Result<EndpointSpec> {
        let ifindex = if_nametoindex(self.device)?;
        Ok(EndpointSpec {
            addr: self.address.into(),
            ifindex,
            mac: self.mac,
            host_mac: HOST_MAC,
            limits: Limits::default(),
        })
    }

    /// Moves the far end to a namespace of its own and configures both as CNI does.
    fn move_out(&self) -> Result<Network> {
        let (node, pod) = (Network::of_this_thread()?, Network::new()?);
        node.give(self.peer, &pod)?;
        pod.set_mac(self.peer, self.mac)?;
        pod.up(self.peer)?;
        pod.address(self.peer, self.address, 32)?;
        pod.neighbour(self.peer, GATEWAY, HOST_MAC)?;
        pod.default_route(GATEWAY)?;
        node.set_mac(self.device, HOST_MAC)?;
        node.neighbour_of(self.device, self.address, self.mac, Some(ROUTER))?;
        Ok(pod)
    }
}

fn move_wire() -> Result<Network> {
    let far = Network::new()?;
    Network::of_this_thread()?.give("wire", &far)?;
    far.up("wire")?;
    FAR.iter().try_for_each(|address| far.address("wire", *address, 24))?;
    Ok(far)
}

pub(crate) fn within<T>(cgroup: &Path, work: impl FnOnce() -> T) -> T {
    let own = fs::read_to_string("/proc/self/cgroup").expect("a cgroup");
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_start_matches('/').to_owned();
    let enter = |directory: &Path| fs::write(directory.join("cgroup.procs"), std::process::id().to_string());
    enter(cgroup).expect("enter the node's cgroup");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    enter(&cgroup_root().expect("found before").join(own)).expect("leave the node's cgroup");
    match outcome {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// One packet through a pinned program, as if it were at a device.
pub(crate) fn run(pins: &Path, program: &str, device: &str, packet: &Frame) -> (Verdict, Frame) {
    let program = SchedClassifier::from_pin(pins.join("programs").join(program)).expect("programs are pinned");
    let mut context = [0u8; 192];
    // `ifindex` of `struct __sk_buff`.
    let ifindex = if_nametoindex(device).expect("a device of the node");
    context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    let mut out = vec![0u8; 2048];
    let options = TestRunOptions {
        data_in: Some(&packet.0),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::new()
    };
    let result = program.test_run(options).expect("the kernel runs it");
    out.truncate(result.data_size_out as usize);
    (Verdict::from_action(result.return_value), Frame(out))
}

/// A pod without limits.
pub fn endpoint(addr: IpAddr, ifindex: u32) -> EndpointSpec {
    let (mac, host_mac) = ([2, 0, 0, 0, 1, 0], [2, 0, 0, 0, 1, 1]);
    EndpointSpec { addr, ifindex, mac, host_mac, limits: Limits::default() }
}

/// Nodes `a` and `b` with these addresses.
pub(crate) fn cluster(addresses: [Ipv4Addr; 2]) -> [Value; 2] {
    [("a", 1, addresses[0]), ("b", 2, addresses[1])].map(|(name, n, address)| {
        json!({"kind": "Node", "metadata": {"name": name}, "spec": {"podCIDRs": [format!("10.244.{n}.0/24")]},
            "status": {"addresses": [{"type": "InternalIP", "address": address.to_string()}]}})
    })
}

pub(crate) fn feed(snapshot: &mut Snapshot, object: &Value) -> Result<()> {
    match object["kind"].as_str() {
        Some("Service") => drop(snapshot.upsert_service(&serde_json::from_value(object.clone())?)),
        Some("EndpointSlice") => drop(snapshot.upsert_slice(&serde_json::from_value(object.clone())?)),
        Some("ServiceCIDR") => drop(snapshot.upsert_service_cidr(&serde_json::from_value(object.clone())?)),
        Some("Node") => drop(snapshot.upsert_node(&serde_json::from_value(object.clone())?)),
        kind => anyhow::bail!("{kind:?} is no kind of a scenario"),
    }
    Ok(())
}

/// A Service with a port of both protocols, and its slice. `backends` are addresses and nodes; the backends' port is 8080.
pub fn service(name: &str, ip: &str, node_port: u16, backends: &[(&str, &str)]) -> Vec<Value> {
    let ports: Vec<Value> = ["TCP", "UDP"]
        .iter()
        .map(|p| json!({"name": p.to_lowercase(), "port": 80, "nodePort": node_port, "protocol": p}))
        .collect();
    let targets: Vec<Value> =
        ["TCP", "UDP"].iter().map(|p| json!({"name": p.to_lowercase(), "port": 8080, "protocol": p})).collect();
    let endpoints: Vec<Value> =
        backends.iter().map(|(address, node)| json!({"addresses": [address], "nodeName": node})).collect();
    vec![
        json!({"kind": "Service", "metadata": {"namespace": "default", "name": name},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "type": "NodePort", "ports": ports}}),
        json!({"kind": "EndpointSlice", "addressType": "IPv4", "ports": targets, "endpoints": endpoints,
            "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": name}}}),
    ]
}

fn make_pods() -> Result<()> {
    let node = Network::of_this_thread()?;
    PODS.iter().try_for_each(|pod| connect((&node, pod.device), (&node, pod.peer)))
}

/// `lo` up, and the NIC `eth0` with the node's address and a default route. Returns its index.
pub fn make_nic() -> Result<u32> {
    // Devices to come say nothing by themselves, which would be counted.
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
    let node = Network::of_this_thread()?;
    node.up("lo")?;
    connect((&node, "eth0"), (&node, "wire"))?;
    node.address("eth0", ADDRESS, 24)?;
    node.default_route(FAR[0])?;
    node.index("eth0")
}

pub fn ensure_bpffs() -> Result<()> {
    if statfs(BPFFS)?.filesystem_type() != BPF_FS_MAGIC {
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).context("mount bpffs")?;
    }
    Ok(())
}

/// Where cgroup v2 is: alone, or beside v1.
pub fn cgroup_root() -> Result<PathBuf> {
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let is_v2 = |path: &PathBuf| statfs(path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    places.into_iter().find(is_v2).context("no cgroup v2 is mounted")
}
