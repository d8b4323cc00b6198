//! Kubernetes' network model: who reaches whom, and as whom.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::client::ask_once;
use leme_tests_cluster::{Cluster, Node, Place, outside};

pub(crate) fn pods_reach_pods_with_their_own_addresses(cluster: &Cluster) -> Result<()> {
    let (tools, web) = (cluster.tools()?, cluster.web(3)?);
    for server in &tools {
        let target = outside::echo_in(server.process()?, server.address)?;
        // One of each on every node: so some are neighbours and some are not.
        for client in tools.iter().chain(&web) {
            let seen = ask_once(cluster, Place::Pod(client), target, "/")?;
            ensure!(seen == client.address.to_string(), "{} is seen by {} as {seen}", client.name, server.name);
        }
    }
    Ok(())
}

pub(crate) fn nodes_reach_pods(cluster: &Cluster) -> Result<()> {
    let tools = cluster.tools()?;
    for server in &tools {
        let target = outside::echo_in(server.process()?, server.address)?;
        for node in &cluster.nodes {
            let seen = ask_once(cluster, Place::Node(&node.name), target, "/")?;
            let own = [node.address, router(cluster, node)?].map(|address| address.to_string());
            ensure!(own.contains(&seen), "{} is seen by {} as {seen}, not as one of {own:?}", node.name, server.name);
        }
    }
    Ok(())
}

/// The first address of a node's pod range.
fn router(cluster: &Cluster, node: &Node) -> Result<Ipv4Addr> {
    let value = cluster.get(&["node", &node.name])?;
    let range = value["spec"]["podCIDR"].as_str().context("no pod range")?;
    let first: Ipv4Addr = range.split('/').next().context("no address")?.parse()?;
    Ok(Ipv4Addr::from(u32::from(first) + 1))
}

pub(crate) fn pods_reach_nodes(cluster: &Cluster) -> Result<()> {
    let tools = cluster.tools()?;
    for node in &cluster.nodes {
        let target = outside::echo_in(cluster.process(&node.name, "agent")?, node.address)?;
        for (client, home) in tools.iter().zip(&cluster.nodes) {
            let seen = ask_once(cluster, Place::Pod(client), target, "/")?;
            // Other nodes have no way back to a pod's address but through the overlay: they see the pod's node.
            let wanted = if home == node { client.address } else { home.address };
            ensure!(seen == wanted.to_string(), "{} is seen by {} as {seen}, not {wanted}", client.name, node.name);
        }
    }
    Ok(())
}

pub(crate) fn pods_reach_the_outside_as_their_node(cluster: &Cluster) -> Result<()> {
    let target = outside::echo(cluster.gateway())?;
    let mut seen_as = BTreeSet::new();
    for (client, home) in cluster.tools()?.iter().zip(&cluster.nodes) {
        let seen = ask_once(cluster, Place::Pod(client), target, "/")?;
        ensure!(seen == home.address.to_string(), "{} is seen as {seen}", client.name);
        seen_as.insert(seen);
    }
    ensure!(seen_as.len() == 3, "{seen_as:?}");
    Ok(())
}
