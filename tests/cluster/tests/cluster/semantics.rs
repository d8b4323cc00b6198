//! What a Service may ask for beside an address: each is answered, refused or left alone as Kubernetes says, whoever
//! asks. One manifest for all; the last test takes it away.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::client::{Knock, ask, fetch, knock};
use leme_tests_cluster::cluster::manifest;
use leme_tests_cluster::wait::eventually;
use leme_tests_cluster::{Cluster, Place, Pod, command, outside, tables};

/// Enough that one of three servers is missed by chance once in a hundred million times.
const TIMES: usize = 45;
const LIMIT: Duration = Duration::from_secs(20);

/// The manifest's pods, their servers answering.
struct Site {
    /// One per node, in the nodes' order.
    served: Vec<Pod>,
    hosted: Pod,
    unready: Pod,
}

/// Addresses that a person wrote into Services, and one for each thing that can be done with them.
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const BALANCED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
const PROXIED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 30);
const GUARDED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 40);
const NODE_PORT: u16 = 31880;
const DESERTED: u16 = 31881;

/// Made on first use.
fn site(cluster: &Cluster) -> Result<Site> {
    let is_new = !cluster.try_kubectl(&["get", "pod", "hosted"])?.success;
    if is_new {
        cluster.kubectl(&["create", "-f", &write_manifest(cluster)?])?;
        balance(cluster, "named", &[(BALANCED, "VIP"), (PROXIED, "Proxy")])?;
        balance(cluster, "guarded", &[(GUARDED, "VIP")])?;
    }
    let served = (1..=3).map(|index| cluster.wait_for_pod(&format!("served-{index}"))).collect::<Result<Vec<_>>>()?;
    let site =
        Site { served, hosted: cluster.wait_for_pod("hosted")?, unready: cluster.wait_for_started_pod("unready")? };
    if is_new {
        let ports = site.served.iter().zip(8081..).chain([(&site.unready, 8084), (&site.hosted, 8085)]);
        for (pod, port) in ports {
            outside::name_in(pod.process()?, (pod.address, port).into(), &pod.name)?;
        }
    }
    Ok(site)
}

fn write_manifest(cluster: &Cluster) -> Result<String> {
    let mut text = fs::read_to_string(manifest("semantics.yaml"))?.replace("SOURCE", &cluster.gateway().to_string());
    for (index, node) in cluster.nodes.iter().enumerate() {
        text = text.replace(&format!("NODE{}", index + 1), &node.name);
    }
    let path = cluster.path("semantics.yaml");
    fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

/// What a load balancer's controller writes.
fn balance(cluster: &Cluster, service: &str, addresses: &[(Ipv4Addr, &str)]) -> Result<()> {
    let ingress: Vec<_> = addresses.iter().map(|(ip, mode)| serde_json::json!({ "ip": ip, "ipMode": mode })).collect();
    let patch = serde_json::json!({ "status": { "loadBalancer": { "ingress": ingress } } }).to_string();
    cluster.kubectl(&["patch", "service", service, "--subresource=status", "--type=merge", "-p", &patch]).map(drop)
}

fn address(cluster: &Cluster, service: &str) -> Result<Ipv4Addr> {
    let value = cluster.get(&["service", service])?;
    Ok(value["spec"]["clusterIP"].as_str().with_context(|| format!("{service} has no address"))?.parse()?)
}

/// The names among what servers answered, and whom they saw.
fn servers(cluster: &Cluster, place: Place<'_>, target: SocketAddr) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let answers = ask(cluster, place, target, "/", TIMES)?;
    Ok(answers.into_keys().filter_map(|it| it.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()))).unzip())
}

/// Waits until exactly these servers answer.
fn expect_servers(cluster: &Cluster, place: Place<'_>, target: SocketAddr, wanted: &[&str]) -> Result<()> {
    eventually(LIMIT, &format!("{wanted:?} and nobody else answer {place} at {target}"), || {
        let found = servers(cluster, place, target)?.0;
        ensure!(found.iter().eq(wanted), "{found:?}");
        Ok(())
    })
}

fn expect(cluster: &Cluster, place: Place<'_>, protocol: &str, target: SocketAddr, wanted: &Knock) -> Result<()> {
    eventually(LIMIT, &format!("{place} at {target}/{protocol}: {wanted:?}"), || {
        let found = knock(cluster, place, protocol, target)?;
        ensure!(found == *wanted, "{found:?}");
        Ok(())
    })
}

fn expect_answer(cluster: &Cluster, place: Place<'_>, protocol: &str, target: SocketAddr, name: &str) -> Result<()> {
    eventually(LIMIT, &format!("{name} answers {place} at {target}/{protocol}"), || {
        let found = knock(cluster, place, protocol, target)?;
        ensure!(matches!(&found, Knock::Answered(text) if text.starts_with(name)), "{found:?}");
        Ok(())
    })
}

const ALL: [&str; 3] = ["served-1", "served-2", "served-3"];

pub(crate) fn a_port_by_name_is_whatever_each_pod_calls_so(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    let target = (address(cluster, "named")?, 80).into();
    expect_servers(cluster, Place::Pod(&site.served[0]), target, &ALL)?;
    expect_servers(cluster, Place::Node(&cluster.nodes[1].name), target, &ALL)?;
    expect_servers(cluster, Place::Machine, (cluster.nodes[2].address, NODE_PORT).into(), &ALL)
}

pub(crate) fn one_node_port_serves_streams_and_datagrams(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    let (home, other) = (&cluster.nodes[0], &cluster.nodes[1]);
    for (place, address) in [
        (Place::Machine, home.address),
        (Place::Machine, other.address),
        (Place::Node(&other.name), home.address),
        (Place::Node(&other.name), Ipv4Addr::LOCALHOST),
        (Place::Pod(&site.served[2]), other.address),
    ] {
        let target = (address, NODE_PORT).into();
        for protocol in ["TCP", "UDP"] {
            expect_answer(cluster, place, protocol, target, "served-")?;
        }
    }
    Ok(())
}

pub(crate) fn addresses_of_load_balancers_and_external_ones_are_the_clusters(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    let route = Route::to_outside_addresses(cluster)?;
    for place in [Place::Pod(&site.served[0]), Place::Node(&cluster.nodes[1].name), Place::Machine] {
        for address in [EXTERNAL, BALANCED] {
            expect_servers(cluster, place, (address, 80).into(), &ALL)?;
        }
    }
    // Whoever balances wants to see its clients first: nothing of it is in the kernel.
    for node in &cluster.nodes {
        let table = tables::found(cluster, &node.name)?;
        let of = |address: Ipv4Addr| table.keys().any(|frontend| frontend.starts_with(&format!("{address}:")));
        ensure!(of(BALANCED) && !of(PROXIED), "{}: {:?}", node.name, table.keys());
    }
    // Its source ranges have the machine alone.
    let guarded = (GUARDED, 80).into();
    expect_answer(cluster, Place::Machine, "TCP", guarded, "served-")?;
    let dropped = dropped(cluster, "source_range")?;
    for place in [Place::Pod(&site.served[0]), Place::Node(&cluster.nodes[0].name)] {
        expect(cluster, place, "TCP", guarded, &Knock::Silence)?;
    }
    ensure!(self::dropped(cluster, "source_range")? >= dropped + 2, "not counted");
    drop(route);
    Ok(())
}

/// The machine's way to addresses that the cluster is to answer: through its first node.
struct Route;

const OUTSIDE: &str = "203.0.113.0/24";

impl Route {
    fn to_outside_addresses(cluster: &Cluster) -> Result<Self> {
        let via = cluster.nodes[0].address.to_string();
        command::output(Command::new("ip").args(["route", "add", OUTSIDE, "via", &via]), LIMIT)?;
        Ok(Self)
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["route", "del", OUTSIDE]).status();
    }
}

/// Packets that the first node has dropped for a reason, as its metrics have it.
fn dropped(cluster: &Cluster, reason: &str) -> Result<u64> {
    let metrics = fetch((cluster.nodes[0].address, 10256).into(), "/metrics")?;
    let of = |line: &&str| line.starts_with("leme_dropped_packets_total{") && line.contains(&format!("\"{reason}\""));
    let counts = metrics.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

pub(crate) fn where_nobody_serves_clients_are_refused_at_once(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    let (inside, node) = (address(cluster, "empty")?, &cluster.nodes[0]);
    for (place, target) in [
        (Place::Pod(&site.served[0]), (inside, 80)),
        (Place::Node(&node.name), (inside, 80)),
        (Place::Pod(&site.served[0]), (inside, 81)),
        (Place::Node(&node.name), (inside, 81)),
        (Place::Node(&node.name), (Ipv4Addr::LOCALHOST, DESERTED)),
        (Place::Pod(&site.served[1]), (node.address, DESERTED)),
        (Place::Machine, (node.address, DESERTED)),
    ] {
        for protocol in ["TCP", "UDP"] {
            expect(cluster, place, protocol, target.into(), &Knock::Refused)?;
        }
    }
    Ok(())
}

pub(crate) fn nothing_for_a_cluster_ip_that_nobody_has_leaves_its_node(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    let pod = &site.served[0];
    let dropped = || -> Result<u64> {
        let rows = tables::rows(cluster, "counters", &pod.node)?;
        let ours = rows.as_array().into_iter().flatten().filter(|row| row["reason"] == "no_service");
        Ok(ours.filter_map(|row| row["packets"].as_u64()).sum())
    };
    let before = dropped()?;
    let nobodys = SocketAddr::from((Ipv4Addr::new(10, 96, 255, 250), 80));
    expect(cluster, Place::Pod(pod), "UDP", nobodys, &Knock::Silence)?;
    ensure!(dropped()? > before, "it was not dropped as nobody's");
    Ok(())
}

pub(crate) fn pods_that_are_not_ready_serve_whoever_wants_them_so(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    for place in [Place::Pod(&site.served[1]), Place::Node(&cluster.nodes[1].name)] {
        expect(cluster, place, "TCP", (address(cluster, "patient")?, 80).into(), &Knock::Refused)?;
        expect_answer(cluster, place, "TCP", (address(cluster, "early")?, 80).into(), "unready ")?;
    }
    Ok(())
}

pub(crate) fn a_service_of_another_proxy_is_left_alone_until_it_is_ours(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    let foreign = address(cluster, "foreign")?;
    let is_there =
        |node: &str| Ok::<_, anyhow::Error>(tables::found(cluster, node)?.contains_key(&format!("{foreign}:80/TCP")));
    for node in &cluster.nodes {
        ensure!(!is_there(&node.name)?, "{} serves it", node.name);
    }
    cluster.kubectl(&["label", "service", "foreign", "service.kubernetes.io/service-proxy-name-"])?;
    expect_servers(cluster, Place::Pod(&site.served[0]), (foreign, 80).into(), &ALL)
}

pub(crate) fn a_local_policy_keeps_traffic_on_its_node(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    // The server is on the second node.
    let inside = (address(cluster, "inside")?, 80).into();
    expect_answer(cluster, Place::Pod(&site.served[1]), "TCP", inside, "hosted ")?;
    let before = dropped(cluster, "no_local_backend")?;
    expect(cluster, Place::Pod(&site.served[0]), "TCP", inside, &Knock::Silence)?;
    ensure!(dropped(cluster, "no_local_backend")? > before, "not counted");
    let (_, port) = cluster.service("local")?;
    for (node, pod) in cluster.nodes.iter().zip(&site.served) {
        let target = (node.address, port).into();
        expect_servers(cluster, Place::Machine, target, &[&pod.name])?;
        let seen = servers(cluster, Place::Machine, target)?.1;
        ensure!(seen.iter().eq([&cluster.gateway().to_string()]), "{} saw {seen:?}", pod.name);
    }
    // Whoever is inside is not the outside, whichever policy that has.
    expect_servers(cluster, Place::Pod(&site.served[0]), (address(cluster, "local")?, 80).into(), &ALL)
}

pub(crate) fn clients_are_served_nearby_where_the_service_says_so(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    let zone = |node: &str, zone: &str| {
        cluster.kubectl(&["label", "node", node, &format!("topology.kubernetes.io/zone{zone}")]).map(drop)
    };
    let near = (address(cluster, "near")?, 80).into();
    for (pod, node) in site.served.iter().zip(&cluster.nodes) {
        expect_servers(cluster, Place::Pod(pod), near, &[&pod.name])?;
        expect_servers(cluster, Place::Node(&node.name), near, &[&pod.name])?;
    }
    for (node, name) in cluster.nodes.iter().zip(["=a", "=a", "=b"]) {
        zone(&node.name, name)?;
    }
    let zonal = (address(cluster, "zonal")?, 80).into();
    expect_servers(cluster, Place::Pod(&site.served[0]), zonal, &ALL[..2])?;
    expect_servers(cluster, Place::Pod(&site.served[2]), zonal, &ALL[2..])?;
    cluster.nodes.iter().try_for_each(|node| zone(&node.name, "-"))?;
    expect_servers(cluster, Place::Pod(&site.served[2]), zonal, &ALL)
}

pub(crate) fn pods_in_their_nodes_network_ask_and_answer(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    let (inside, port) = cluster.service("hosted")?;
    let [first, second, third] = [0, 1, 2].map(|index| &cluster.nodes[index]);
    for (place, target) in [
        (Place::Pod(&site.served[0]), (inside, 80)),
        (Place::Pod(&site.served[1]), (inside, 80)),
        (Place::Pod(&site.hosted), (inside, 80)),
        (Place::Node(&third.name), (inside, 80)),
        (Place::Machine, (first.address, port)),
        (Place::Machine, (second.address, port)),
    ] {
        expect_answer(cluster, place, "TCP", target.into(), "hosted ")?;
    }
    expect_servers(cluster, Place::Pod(&site.hosted), (address(cluster, "named")?, 80).into(), &ALL)
}

pub(crate) fn a_name_for_another_name_is_followed(cluster: &Cluster) -> Result<()> {
    site(cluster)?;
    let pod = cluster.tools()?.remove(0).name;
    let said = cluster.exec(&pod, &["dig", "+short", "+tries=1", "+time=5", "alias.default.svc.cluster.local"])?;
    let wanted = format!("named.default.svc.cluster.local.\n{}\n", address(cluster, "named")?);
    ensure!(said == wanted, "{said:?} instead of {wanted:?}");
    let page = cluster.exec(&pod, &["curl", "-sS", "--max-time", "5", "http://alias/"])?;
    ensure!(page.starts_with("served-"), "{page}");
    Ok(())
}

pub(crate) fn pods_that_end_are_spared_and_the_last_resort(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    let target = (address(cluster, "named")?, 80).into();
    let client = cluster.tools()?.remove(0);
    // None of them minds being told to end, for a minute.
    let end = |pod: &Pod| cluster.kubectl(&["delete", "pod", &pod.name, "--wait=false"]).map(drop);
    end(&site.served[0])?;
    expect_servers(cluster, Place::Pod(&client), target, &ALL[1..])?;
    site.served[1..].iter().try_for_each(end)?;
    expect_servers(cluster, Place::Pod(&client), target, &ALL)?;
    cluster.kubectl(&["delete", "pod", "-l", "app=served", "--grace-period=0", "--force"])?;
    expect(cluster, Place::Pod(&client), "TCP", target, &Knock::Refused)?;
    cluster.kubectl(&["delete", "services,pods", "-l", "set=semantics"])?;
    cluster.wait_until_gone("pods", "set=semantics")
}
