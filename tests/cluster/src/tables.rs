//! What a node's datapath must hold, computed from Services and EndpointSlices as the Kubernetes documentation
//! describes them, and what it does hold, as `leme bpf` reads it from the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Cluster, command};

/// Frontend (`10.96.0.1:443/TCP`, `*:30080/TCP`) → backends (`10.244.1.2:80`).
pub type Table = BTreeMap<String, BTreeSet<String>>;

/// The Services' table of every node must be the same function of the API's objects.
pub fn check(cluster: &Cluster) -> Result<()> {
    for node in &cluster.nodes {
        crate::wait::eventually(
            Duration::from_secs(10),
            &format!("{}'s tables are as the API says", node.name),
            || {
                let (wanted, found) = (expected(cluster, &node.name)?, found(cluster, &node.name)?);
                ensure!(wanted == found, "wanted {wanted:#?}\nfound {found:#?}");
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// `leme bpf …` of a node.
pub fn rows(cluster: &Cluster, table: &str, node: &str) -> Result<Value> {
    let mut command = std::process::Command::new(&cluster.binary);
    command.args(["bpf", table, "--node", node, "-o", "json"]).env("PATH", cluster.path("bin"));
    Ok(serde_json::from_str(&command::output(&mut command, Duration::from_secs(10))?)?)
}

/// What the kernel holds on a node.
pub fn found(cluster: &Cluster, node: &str) -> Result<Table> {
    let rows = rows(cluster, "services", node)?;
    let mut table = Table::new();
    for row in rows.as_array().context("no list of services")? {
        let backends: BTreeSet<_> = strings(&row["backends"]).collect();
        table.extend(strings(&row["frontends"]).map(|frontend| (frontend, backends.clone())));
    }
    Ok(table)
}

/// What it should hold.
pub fn expected(cluster: &Cluster, node: &str) -> Result<Table> {
    let services = cluster.get(&["services", "-A"])?;
    let slices = cluster.get(&["endpointslices", "-A"])?;
    let mut table = Table::new();
    for service in items(&services) {
        let spec = &service["spec"];
        let Some(address) = spec["clusterIP"].as_str().filter(|address| *address != "None") else { continue };
        let own: Vec<_> = items(&slices).filter(|slice| belongs(slice, service)).collect();
        let near = own.iter().any(|slice| !slice["endpoints"][0]["hints"]["forNodes"].is_null());
        for port in spec["ports"].as_array().into_iter().flatten() {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            let backends = backends(&own, port["name"].as_str().unwrap_or_default(), near.then_some(node));
            table.insert(format!("{address}:{}/{protocol}", port["port"]), backends.clone());
            // Of a Service's ports the first stands for the address as such.
            table.entry(address.to_owned()).or_insert_with(|| backends.clone());
            if let Some(node_port) = port["nodePort"].as_u64() {
                table.insert(format!("*:{node_port}/{protocol}"), backends);
            }
        }
    }
    Ok(table)
}

fn belongs(slice: &Value, service: &Value) -> bool {
    let (slice, service) = (&slice["metadata"], &service["metadata"]);
    slice["namespace"] == service["namespace"] && slice["labels"]["kubernetes.io/service-name"] == service["name"]
}

/// Ready endpoints; the node's own if it has some and they are preferred; terminating ones if nothing else serves.
fn backends(slices: &[&Value], port: &str, near: Option<&str>) -> BTreeSet<String> {
    let mut all: Vec<(&Value, String)> = Vec::new();
    for slice in slices {
        let ports = slice["ports"].as_array().into_iter().flatten();
        for number in ports.filter(|it| it["name"].as_str().unwrap_or_default() == port).map(|it| &it["port"]) {
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                all.extend(strings(&endpoint["addresses"]).map(|address| (endpoint, format!("{address}:{number}"))));
            }
        }
    }
    let ready = |endpoint: &Value| endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
    let serving = |endpoint: &Value| endpoint["conditions"]["serving"].as_bool().unwrap_or(ready(endpoint));
    let pick = |test: &dyn Fn(&Value) -> bool| -> BTreeSet<String> {
        all.iter().filter(|(endpoint, _)| test(endpoint)).map(|(_, address)| address.clone()).collect()
    };
    let own = |endpoint: &Value| near.is_some_and(|node| endpoint["nodeName"] == node);
    let choices = [pick(&|it| ready(it) && own(it)), pick(&ready), pick(&serving)];
    choices.into_iter().find(|choice| !choice.is_empty()).unwrap_or_default()
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn strings(list: &Value) -> impl Iterator<Item = String> {
    list.as_array().into_iter().flatten().filter_map(|it| it.as_str().map(str::to_owned))
}
