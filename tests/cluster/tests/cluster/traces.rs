//! What the product does to the machine: nothing that stays, and nothing it need not.

use std::env;
use std::fs;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::{Cluster, rules};

pub(crate) fn no_packet_filter_rule_is_written(cluster: &Cluster) -> Result<()> {
    cluster.web(3)?;
    let networks = rules::of_cluster(cluster)?;
    // The nodes' and at least those of the three pods.
    ensure!(networks.len() >= 6, "only {:?}", networks.keys());
    for (network, found) in &networks {
        ensure!(found.is_empty(), "{network} has rules:\n{found}");
    }
    let now = rules::dump()?;
    ensure!(now == cluster.before.rules(), "the machine's rules were\n{}\nand are\n{now}", cluster.before.rules());
    Ok(())
}

pub(crate) fn the_product_has_no_tools_to_call(cluster: &Cluster) -> Result<()> {
    let agents = cluster.nodes.iter().map(|node| (node, "agent"));
    for (node, name) in agents.chain([(&cluster.nodes[0], "server")]) {
        let environment = fs::read(format!("/proc/{}/environ", cluster.process(&node.name, name)?))?;
        let environment = String::from_utf8_lossy(&environment);
        let path = environment.split('\0').find_map(|entry| entry.strip_prefix("PATH=")).context("no PATH")?;
        for tool in ["ip", "tc", "nft", "iptables", "iptables-legacy", "mount", "nsenter"] {
            let found = env::split_paths(path).map(|folder| folder.join(tool)).find(|file| file.exists());
            ensure!(found.is_none(), "{name} of {} could call {found:?}", node.name);
        }
    }
    Ok(())
}

pub(crate) fn down_leaves_nothing_behind(cluster: Cluster) -> Result<()> {
    take_down(&cluster)
}

pub(crate) fn down_leaves_nothing_behind_and_up_works_again(mut cluster: Cluster) -> Result<()> {
    take_down(&cluster)?;
    cluster.start()?;
    cluster.kubectl(&["create", "deployment", "again", "--image=nginx"])?;
    cluster.wait_for_pods("app=again", 1)?;
    take_down(&cluster)
}

fn take_down(cluster: &Cluster) -> Result<()> {
    cluster.down()?;
    ensure!(cluster.kubeconfig_is_untouched(), "the kubeconfig is not what it was");
    ensure!(!cluster.path("clusters").exists(), "{} is still there", cluster.path("clusters").display());
    cluster.before.expect_nothing_new()?;
    // Absent is done.
    cluster.down()
}
