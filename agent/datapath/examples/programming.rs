//! What a large cluster costs a node: from a full list of Services and EndpointSlices in memory to the last map write, one
//! endpoint's change at that size, a restart, and the memory of all of it.
//!
//! As root, in a namespace and with maps of its own that are gone afterwards:
//! `cargo run --release -p leme-datapath --example programming -- [SERVICES] [ENDPOINTS]`. One JSON line each.

use anyhow::{Context, Result};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use leme_datapath::{Config, Datapath, Sizes, Snapshot};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use rtnetlink::{LinkUnspec, LinkVeth};
use serde_json::json;
use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CHANGES: usize = 1000;

fn main() -> Result<()> {
    let number = |n: usize, default: usize| std::env::args().nth(n).map_or(Ok(default), |text| text.parse());
    let (services, endpoints) = (number(1, 10_000)?, number(2, 10)?);
    unshare(CloneFlags::CLONE_NEWNET).context("this needs root")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cgroup = cgroup_root()?.join(format!("programming-{}", std::process::id()));
    fs::create_dir(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
    let config = runtime.block_on(make_config(&cgroup))?;
    let outcome = runtime.block_on(measure(&config, services, endpoints));
    let removed = runtime.block_on(leme_datapath::remove_all(&config));
    fs::remove_dir(&cgroup)?;
    outcome?;
    Ok(removed?)
}

async fn measure(config: &Config, services: usize, endpoints: usize) -> Result<()> {
    let mut datapath = Datapath::open(config.clone()).await?;
    give_back();
    report("opened", json!({"resident_mib": resident()}));
    let objects: Vec<_> = (0..services).map(|n| (service(n), slice(n, endpoints, None))).collect();
    let listed = resident();

    let started = Instant::now();
    let mut snapshot = Snapshot::new("a");
    for (service, slice) in &objects {
        snapshot.upsert_service(service);
        snapshot.upsert_slice(slice);
    }
    let known = started.elapsed();
    let done = datapath.reconcile_all(&snapshot)?;
    let took = started.elapsed();
    report(
        "from the full list to the last map write",
        json!({"services": services, "endpoints": endpoints, "operations": done.operations, "snapshot_ms": ms(known), "ms": ms(took)}),
    );
    drop(objects);
    give_back();
    report("memory", json!({"resident_mib": resident(), "with_the_objects_mib": listed}));

    change(&mut datapath, &mut snapshot, services, endpoints)?;

    let started = Instant::now();
    let mut datapath = Datapath::open(config.clone()).await?;
    let opened = started.elapsed();
    let done = datapath.reconcile_all(&snapshot)?;
    report(
        "restart with everything in the maps",
        json!({"open_ms": ms(opened), "ms": ms(started.elapsed()), "operations": done.operations}),
    );
    give_back();
    report("memory after the restart", json!({"resident_mib": resident()}));
    Ok(())
}

/// One endpoint of one Service after another comes or goes.
fn change(datapath: &mut Datapath, snapshot: &mut Snapshot, services: usize, endpoints: usize) -> Result<()> {
    let mut times = Vec::with_capacity(CHANGES);
    for i in 0..CHANGES {
        let object = slice(i * 7919 % services, endpoints, Some(i / services));
        let started = Instant::now();
        let changes: BTreeSet<_> = snapshot.upsert_slice(&object).into_iter().collect();
        datapath.reconcile(snapshot, &changes)?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    let at = |share: usize| ms(times[(times.len() - 1) * share / 1000]);
    report("one endpoint's change", json!({"median_ms": at(500), "p99_ms": at(990), "max_ms": at(1000)}));
    Ok(())
}

fn service(n: usize) -> Service {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + n as u32).to_string();
    let object = json!({
        "metadata": {"namespace": format!("team-{}", n % 100), "name": format!("service-{n}")},
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "selector": {"app": format!("app-{n}")},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    });
    serde_json::from_value(object).expect("a Service")
}

/// With `gone` one endpoint is another than without.
fn slice(n: usize, endpoints: usize, gone: Option<usize>) -> EndpointSlice {
    let endpoint = |i: usize| {
        let number = (n * endpoints + i) as u32;
        let place = if i == 0 { gone.map_or(0, |round| round as u32 + 1) << 22 } else { 0 };
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 1)) + number + place).to_string();
        json!({
            "addresses": [address], "nodeName": format!("node-{}", number % 500),
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": format!("team-{}", n % 100), "name": format!("app-{n}-{i}")},
        })
    };
    let object = json!({
        "metadata": {
            "namespace": format!("team-{}", n % 100), "name": format!("service-{n}-abcde"),
            "labels": {"kubernetes.io/service-name": format!("service-{n}")},
        },
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    });
    serde_json::from_value(object).expect("an EndpointSlice")
}

fn report(what: &str, mut figures: serde_json::Value) {
    figures["what"] = what.into();
    println!("{figures}");
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// As the agent does after a complete list.
fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: safe from any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap_or_default();
    (kib / 102.4).round() / 10.0
}

async fn make_config(cgroup: &Path) -> Result<Config> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    handle.link().add(LinkVeth::new("eth0", "wire").build()).execute().await?;
    for name in ["lo", "wire", "eth0"] {
        handle.link().set(LinkUnspec::new_with_index(if_nametoindex(name)?).up().build()).execute().await?;
    }
    let nic = if_nametoindex("eth0")?;
    handle.address().add(nic, IpAddr::V4(ADDRESS), 24).execute().await?;
    let name = cgroup.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut config = Config::new(name, cgroup, IpAddr::V4(ADDRESS), "10.244.1.0/24".parse()?);
    config.nics = vec![nic];
    config.sizes = Sizes { connections: 4096, ..config.sizes };
    Ok(config)
}

/// Where cgroup v2 is: alone, or beside v1.
fn cgroup_root() -> Result<PathBuf> {
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    places.into_iter().find(|path| path.join("cgroup.procs").exists()).context("no cgroup v2 is mounted")
}
