//! Services: where they answer, who answers, and what the kernel holds for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::client::{ask, expect_refused, request};
use leme_tests_cluster::cluster::manifest;
use leme_tests_cluster::wait::eventually;
use leme_tests_cluster::{Cluster, Node, Place, Pod, tables};

/// Enough that each of three replicas is missed by chance once in ten thousand million times.
const TIMES: usize = 60;

/// Everyone who can ask: pods with and without the Service's replicas' node in common, nodes, the outside.
fn everyone<'a>(cluster: &'a Cluster, tools: &'a [Pod]) -> Vec<Place<'a>> {
    let nodes = cluster.nodes.iter().map(|node| Place::Node(&node.name));
    nodes.chain(tools.iter().map(Place::Pod)).collect()
}

/// All replicas and nobody else must answer.
fn expect_all_of(pods: &[Pod], answers: &BTreeMap<String, usize>, what: &str) -> Result<()> {
    let wanted: BTreeSet<_> = pods.iter().map(|pod| &pod.name).collect();
    let found: BTreeSet<_> = answers.keys().collect();
    ensure!(wanted == found, "{what}: answered {answers:?}, there are {wanted:?}");
    Ok(())
}

pub(crate) fn exposing_gives_a_cluster_ip_and_a_node_port(cluster: &Cluster) -> Result<()> {
    if !cluster.try_kubectl(&["get", "service", "nginx"])?.success {
        cluster.web(3)?;
    }
    cluster.kubectl(&["delete", "service", "nginx"])?;
    let ports = ["--port=8000", "--target-port=80", "--type=NodePort"];
    let said = cluster.kubectl(&[&["expose", "deployment", "nginx"], &ports[..]].concat())?;
    ensure!(said == "service/nginx exposed\n", "{said}");
    let (address, port) = cluster.service("nginx")?;
    ensure!(address.octets()[..2] == [10, 96], "cluster IP {address}");
    ensure!((30000..=32767).contains(&port), "node port {port}");
    let row = cluster.kubectl(&["get", "service", "nginx", "--no-headers"])?;
    ensure!(row.contains(&format!("8000:{port}/TCP")), "{row}");
    Ok(())
}

pub(crate) fn a_cluster_ip_answers_pods_and_nodes_from_all_replicas(cluster: &Cluster) -> Result<()> {
    let (pods, tools) = (cluster.web(3)?, cluster.tools()?);
    let (address, _) = cluster.service("nginx")?;
    tables::check(cluster)?;
    for place in everyone(cluster, &tools) {
        let answers = ask(cluster, place, (address, 8000).into(), "/who", TIMES)?;
        expect_all_of(&pods, &answers, &format!("from {place}"))?;
    }
    let page = cluster.exec("tools-1", &["curl", "-sS", "--max-time", "5", &format!("http://{address}:8000/")])?;
    ensure!(page.contains("Welcome to nginx"), "{page}");
    Ok(())
}

pub(crate) fn a_node_port_answers_from_all_replicas_whichever_node_is_asked(cluster: &Cluster) -> Result<()> {
    let (pods, tools) = (cluster.web(3)?, cluster.tools()?);
    let (_, port) = cluster.service("nginx")?;
    tables::check(cluster)?;
    let mut places = everyone(cluster, &tools);
    places.push(Place::Machine);
    for place in places {
        for node in &cluster.nodes {
            let answers = ask(cluster, place, (node.address, port).into(), "/who", TIMES)?;
            expect_all_of(&pods, &answers, &format!("from {place} through {}", node.name))?;
        }
    }
    for node in &cluster.nodes {
        let answers = ask(cluster, Place::Node(&node.name), (Ipv4Addr::LOCALHOST, port).into(), "/who", TIMES)?;
        expect_all_of(&pods, &answers, &format!("localhost of {}", node.name))?;
    }
    Ok(())
}

pub(crate) fn a_node_without_a_replica_forwards(cluster: &Cluster) -> Result<()> {
    let pods = cluster.web(2)?;
    let (_, port) = cluster.service("nginx")?;
    tables::check(cluster)?;
    let without = cluster.nodes.iter().find(|node| pods.iter().all(|pod| pod.node != node.name));
    let node = without.context("two pods on three nodes leave one without")?;
    for (place, address) in [
        (Place::Machine, node.address),
        (Place::Node(&cluster.nodes[0].name), node.address),
        (Place::Node(&node.name), Ipv4Addr::LOCALHOST),
    ] {
        let answers = ask(cluster, place, (address, port).into(), "/who", TIMES)?;
        expect_all_of(&pods, &answers, &format!("from {place} through {}, which has none", node.name))?;
    }
    Ok(())
}

pub(crate) fn load_balancers_learn_which_nodes_have_replicas(cluster: &Cluster) -> Result<()> {
    let pods = cluster.web(2)?;
    cluster.kubectl(&["apply", "-f", &manifest("balanced.yaml")])?;
    let spec = &cluster.get(&["service", "balanced"])?["spec"];
    let port = |value: &serde_json::Value| value.as_u64().context("no port").and_then(|it| Ok(u16::try_from(it)?));
    let (check, node_port) = (port(&spec["healthCheckNodePort"])?, port(&spec["ports"][0]["nodePort"])?);
    for node in &cluster.nodes {
        let replicas = pods.iter().filter(|pod| pod.node == node.name).count();
        eventually(Duration::from_secs(10), &format!("{} tells its {replicas}", node.name), || {
            tells((node.address, check).into(), replicas)
        })?;
        // On other nodes nobody answers, so that whoever balances tries another.
        let target = (node.address, node_port).into();
        let reached = TcpStream::connect_timeout(&target, Duration::from_millis(500));
        ensure!(reached.is_ok() == (replicas > 0), "{}, with {replicas} replicas: {reached:?}", node.name);
        let health = request((node.address, 10256).into(), "/healthz")?;
        ensure!(health.status == 200 && health.body.contains("\"nodeEligible\": true"), "{health:?}");
    }
    cluster.kubectl(&["delete", "service", "balanced"])?;
    cluster.nodes.iter().try_for_each(|node| expect_refused((node.address, check).into()))
}

/// Whether a health check says that its node has so many replicas, in upstream's words.
fn tells(check: SocketAddr, replicas: usize) -> Result<()> {
    let answer = request(check, "/")?;
    let body: serde_json::Value = serde_json::from_str(&answer.body)?;
    ensure!(answer.status == if replicas > 0 { 200 } else { 503 }, "{answer:?}");
    ensure!(answer.head.contains(&format!("x-load-balancing-endpoint-weight: {replicas}")), "{answer:?}");
    ensure!(body["service"]["name"] == "balanced" && body["localEndpoints"] == replicas, "{answer:?}");
    Ok(())
}

pub(crate) fn a_pod_reaches_itself_through_its_service(cluster: &Cluster) -> Result<()> {
    let pods = cluster.web(1)?;
    let (address, port) = cluster.service("nginx")?;
    tables::check(cluster)?;
    let own_node = cluster.nodes.iter().find(|node| node.name == pods[0].node).context("on no node")?;
    for target in [SocketAddr::from((address, 8000)), SocketAddr::from((own_node.address, port))] {
        let answers = ask(cluster, Place::Pod(&pods[0]), target, "/who", 5)?;
        expect_all_of(&pods, &answers, &format!("the pod itself through {target}"))?;
    }
    Ok(())
}

pub(crate) fn a_client_stays_with_one_replica_where_the_service_says_so(cluster: &Cluster) -> Result<()> {
    let (_, tools) = (cluster.web(3)?, cluster.tools()?);
    let (address, port) = cluster.service("nginx")?;
    let patch = |affinity: &str| {
        let patch = format!(r#"{{"spec":{{"sessionAffinity":"{affinity}","sessionAffinityConfig":null}}}}"#);
        cluster.kubectl(&["patch", "service", "nginx", "-p", &patch])
    };
    patch("ClientIP")?;
    for (place, node) in [
        (Place::Pod(&tools[0]), &cluster.nodes[0]),
        (Place::Node(&cluster.nodes[1].name), &cluster.nodes[1]),
        (Place::Machine, &cluster.nodes[2]),
    ] {
        let node_port = SocketAddr::from((node.address, port));
        let (first, times) = match place {
            Place::Machine => (node_port, 1),
            _ => ((address, 8000).into(), TIMES / 3),
        };
        let mut replicas = BTreeSet::new();
        eventually(Duration::from_secs(10), &format!("{place} has one replica"), || {
            replicas = ask(cluster, place, first, "/who", times)?.into_keys().collect();
            ensure!(replicas.len() == 1, "it was answered by {replicas:?}");
            Ok(())
        })?;
        let through_node: BTreeSet<_> = ask(cluster, place, node_port, "/who", TIMES / 3)?.into_keys().collect();
        ensure!(through_node == replicas, "{place}: {replicas:?} through {first}, {through_node:?} through the node");
        is_remembered(cluster, place, node)?;
    }
    patch("None")?;
    Ok(())
}

/// The node that was asked knows the client, and by which replica it was answered.
fn is_remembered(cluster: &Cluster, client: Place<'_>, node: &Node) -> Result<()> {
    let address = match client {
        Place::Machine => cluster.gateway(),
        Place::Node(_) => node.address,
        Place::Pod(pod) => pod.address,
    };
    let rows = tables::rows(cluster, "affinity", &node.name)?;
    let of = |row: &&serde_json::Value| row["client"] == address.to_string();
    let row = rows.as_array().into_iter().flatten().find(of).with_context(|| format!("no {address} in {rows}"))?;
    ensure!(row["backend"].is_string() && row["timeout_seconds"] == 10800, "{row}");
    Ok(())
}

pub(crate) fn the_kernel_holds_what_the_endpoints_say(cluster: &Cluster) -> Result<()> {
    for replicas in [3, 0, 2] {
        cluster.web(replicas)?;
        tables::check(cluster)?;
        let (address, _) = cluster.service("nginx")?;
        let table = tables::found(cluster, &cluster.nodes[0].name)?;
        let backends = table.get(&format!("{address}:8000/TCP")).context("no such frontend")?;
        ensure!(backends.len() == replicas, "{backends:?}");
    }
    Ok(())
}

pub(crate) fn deleting_closes_the_node_port_and_removes_the_pods(cluster: &Cluster) -> Result<()> {
    let pods = cluster.web(3)?;
    let (_, port) = cluster.service("nginx")?;
    cluster.kubectl(&["delete", "service", "nginx"])?;
    for node in &cluster.nodes {
        expect_refused((node.address, port).into())?;
    }
    cluster.kubectl(&["delete", "deployment", "nginx"])?;
    cluster.wait_until_gone("pods", "app=nginx")?;
    cluster.wait_until_gone("replicasets", "app=nginx")?;
    for pod in &pods {
        ensure!(pod.process().is_err(), "{} is gone from the API only", pod.name);
    }
    tables::check(cluster)
}
