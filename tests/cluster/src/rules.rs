//! Packet filter rules, in all the places where the product could have left some.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::place::in_network;
use crate::{Cluster, command};

const DUMPS: [&[&str]; 3] = [&["nft", "list", "ruleset"], &["iptables-legacy-save"], &["ip6tables-legacy-save"]];

/// The rules of the network this is called in, without what changes by itself: counters and the time of day.
pub fn dump() -> Result<String> {
    let mut all = String::new();
    for words in DUMPS {
        let text = command::output(Command::new(words[0]).args(&words[1..]), Duration::from_secs(20))?;
        let lines = text.lines().filter(|line| !line.starts_with(['#', ':']) && !line.contains("counter packets"));
        all.extend(lines.map(|line| format!("{line}\n")));
    }
    Ok(all)
}

/// The rules of every network of the cluster, by a process that is in it.
pub fn of_cluster(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut networks = BTreeMap::new();
    for node in &cluster.nodes {
        for process in crate::pods::processes_of(&format!("/leme/{}/", node.name)) {
            if let Ok(meta) = fs::metadata(format!("/proc/{process}/ns/net")) {
                networks.entry(meta.ino()).or_insert((process, node.name.clone()));
            }
        }
    }
    let dump_in = |(process, node): (i32, String)| {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        Ok((format!("{node}: network of {process} {}", name.trim()), in_network(process, dump)?))
    };
    networks.into_values().map(dump_in).collect()
}
