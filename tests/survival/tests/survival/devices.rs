//! One node's devices go and come back: nobody mends them by hand, and no other node notices.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::wait::eventually;
use leme_tests_cluster::{Cluster, Place, Pod, client, command, tables};
use leme_tests_survival::scale;

use crate::survive;

/// In which everything works again.
const SOON: Duration = Duration::from_secs(15);

pub(crate) fn devices_that_flap_come_back_and_disturb_no_other_node(cluster: &Cluster) -> Result<()> {
    let tools = cluster.tools()?;
    survive(cluster, || {
        let target = SocketAddr::from((cluster.service("steady")?.0, 8000));
        for round in 0..scale(5, 2) {
            for flap in FLAPS {
                let name = format!("{} (round {round})", flap.0);
                (flap.1)(cluster, &tools[2]).with_context(|| name.clone())?;
                works(cluster, &tools, target).with_context(|| format!("after {name}"))?;
            }
        }
        Ok(())
    })
}

type Flap = (&'static str, fn(&Cluster, &Pod) -> Result<()>);

const FLAPS: [Flap; 6] = [
    ("the node's NIC was down", |cluster, pod| flap(cluster, &pod.node, "eth0")),
    ("the host end of the node's NIC was down", |_, pod| {
        ip("link set NODE down", &pod.node)?;
        ip("link set NODE up", &pod.node)
    }),
    ("the tunnel's device was down", |cluster, pod| flap(cluster, &pod.node, "leme-vxlan")),
    ("the tunnel's device was removed", |cluster, pod| on(cluster, &pod.node, "ip link del leme-vxlan")),
    ("a pod's link was down", |cluster, pod| flap(cluster, &pod.node, &link(cluster, pod)?)),
    ("a pod's link was removed", |cluster, pod| {
        on(cluster, &pod.node, &format!("ip link del {}", link(cluster, pod)?))
    }),
];

fn flap(cluster: &Cluster, node: &str, device: &str) -> Result<()> {
    on(cluster, node, &format!("ip link set {device} down"))?;
    on(cluster, node, &format!("ip link set {device} up"))
}

fn on(cluster: &Cluster, node: &str, words: &str) -> Result<()> {
    command::output(&mut cluster.on_node(node, &words.split(' ').collect::<Vec<_>>()), SOON).map(drop)
}

fn ip(words: &str, node: &str) -> Result<()> {
    let words = words.split(' ').map(|word| if word == "NODE" { node } else { word });
    command::output(std::process::Command::new("ip").args(words), SOON).map(drop)
}

/// The device that leads to a pod, whose route may be on its way back.
fn link(cluster: &Cluster, pod: &Pod) -> Result<String> {
    let words = ["ip", "-o", "-4", "route", "show", &pod.address.to_string()];
    eventually(SOON, "there is a way to the pod", || {
        let text = command::output(&mut cluster.on_node(&pod.node, &words), SOON)?;
        let name = text.split(' ').skip_while(|word| *word != "dev").nth(1);
        name.map(str::to_owned).with_context(|| format!("no route to {}", pod.address))
    })
}

/// The node's pod and the node itself reach everybody and are reached, and the node hears from the API.
fn works(cluster: &Cluster, tools: &[Pod], target: SocketAddr) -> Result<()> {
    let (pod, node) = (&tools[2], &cluster.nodes[2]);
    let port = cluster.service("steady")?.1;
    eventually(SOON, "the node works again", || {
        client::ask(cluster, Place::Pod(pod), target, "/", 4).context("its pod")?;
        client::ask(cluster, Place::Node(&node.name), target, "/", 4).context("itself")?;
        client::fetch((node.address, port).into(), "/").context("its NodePort")?;
        // Its pod answers others: nobody listens there, and it is the pod that says so.
        let closed = SocketAddr::from((pod.address, 9));
        for place in [Place::Pod(&tools[0]), Place::Node(&node.name)] {
            let error = client::ask(cluster, place, closed, "/", 1).expect_err("nobody listens");
            ensure!(format!("{error:#}").contains("refused"), "from {place}: {error:#}");
        }
        Ok(())
    })?;
    cluster.kubectl(&["create", "service", "clusterip", "flapped", "--tcp=80"])?;
    let heard = tables::check(cluster);
    cluster.kubectl(&["delete", "service", "flapped"])?;
    heard.context("the node hears nothing from the API")
}
