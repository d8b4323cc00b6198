//! A node whose uplink is a VLAN upon a bond of two devices: kernels of development machines have neither.
//!
//! ```text
//! a: bond0.7 10.89.1.11 ─ bond0 ┬ eth0 ─ port0 ┬ switch ─ switch.7 10.89.1.1 (router)
//!                               └ eth1 ─ port1 ┘
//! ```

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use leme_tests_packets::{
    Network, Site,
    network::connect,
    node::service,
    site::{A, FAR},
    traffic::{Conversation, soon, tcp, udp},
};

const VLAN: u16 = 7;
const NIC: &str = "bond0.7";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 89, 1, 1);
const ELSEWHERE: &str = "10.89.1.11:30080";
const HERE: &str = "10.89.1.11:30081";
const KIB: usize = 1024;

fn bonded(router: &Network, node: &Network, _: &str) -> Result<[String; 2]> {
    connect((router, "port0"), (node, "eth0"))?;
    connect((router, "port1"), (node, "eth1"))?;
    router.bridge("switch", &["port0", "port1"])?;
    router.vlan("switch.7", "switch", VLAN)?;
    node.bond("bond0", &["eth0", "eth1"])?;
    node.vlan(NIC, "bond0", VLAN)?;
    Ok(["switch.7".into(), NIC.into()])
}

pub fn check() -> Result<()> {
    let services = [
        service("elsewhere", "10.96.0.50", 30080, &[("10.244.2.2", "b")]),
        service("here", "10.96.0.51", 30081, &[("10.244.1.3", "a")]),
    ];
    let mut site = Site::over(&services.concat(), |_| (), bonded).context("make nodes")?;
    ensure!(!site.a.follow()?, "the VLAN is the only device towards the outside");
    let outside = format!("{FAR}:443");
    let lasting = [
        Conversation::begin((&site.far, &outside), &site.a.pods[0], &outside).context("masquerade")?,
        Conversation::begin((&site.b.pods[1], "10.244.2.3:8080"), &site.a.pods[0], "10.244.2.3:8080")?,
        Conversation::begin((&site.b.pods[0], "10.244.2.2:8080"), &site.far, ELSEWHERE).context("NodePort")?,
    ];
    let goes_on = |site: &Site, when: &str| {
        println!("{when}");
        lasting.iter().try_for_each(Conversation::go_on).context("running connections")?;
        talk(site).with_context(|| when.to_owned())
    };
    goes_on(&site, "both members are up")?;

    for (pulled, other) in [("port0", "eth1"), ("port1", "eth0")] {
        site.router.down(pulled)?;
        soon(|| site.a.network.active_member("bond0").is_ok_and(|active| active == other));
        ensure!(!site.a.follow()?, "members are none of the node's devices");
        goes_on(&site, &format!("{other} alone"))?;
        site.router.up(pulled)?;
    }

    site.a.network.remove(NIC)?;
    ensure!(site.a.follow()?, "the VLAN has gone");
    ensure!(hooks(&site)?.is_empty(), "{:?}", hooks(&site)?);
    site.a.network.vlan(NIC, "bond0", VLAN)?;
    site.a.network.address(NIC, A, 24)?;
    site.a.network.default_route(GATEWAY)?;
    ensure!(site.a.follow()?, "the VLAN is back");
    ensure!(hooks(&site)? == [format!("nic_ingress on {NIC}"), format!("nic_egress on {NIC}")], "{:?}", hooks(&site)?);
    goes_on(&site, "the VLAN was gone and is back")
}

/// Hooks that are on devices towards the outside.
fn hooks(site: &Site) -> Result<Vec<String>> {
    Ok(site.a.attachments()?.into_iter().filter(|place| place.starts_with("nic_")).collect())
}

/// Every way over the uplink: from pods and the node through the overlay, masqueraded, and from outside.
fn talk(site: &Site) -> Result<()> {
    let (there, here) = ((&site.b.pods[0], "10.244.2.2:8080"), (&site.a.pods[1], "10.244.1.3:8080"));
    let outside = format!("{FAR}:80");
    for length in [5, 100 * KIB] {
        tcp(there, &site.a.pods[0], "10.96.0.50:80", length).context("pod to Service elsewhere")?;
        tcp(there, &site.a.network, "10.244.2.2:8080", length).context("node to pod elsewhere")?;
        tcp((&site.far, &outside), &site.a.pods[0], &outside, length).context("pod to outside")?;
        tcp(there, &site.far, ELSEWHERE, length).context("outside to pod elsewhere")?;
        tcp(here, &site.far, HERE, length).context("outside to pod here")?;
    }
    for length in [5, 8 * KIB] {
        udp(there, &site.a.pods[0], "10.96.0.50:80", length).context("pod to Service elsewhere")?;
        udp((&site.far, &outside), &site.a.pods[0], &outside, length).context("pod to outside")?;
        udp(there, &site.far, ELSEWHERE, length).context("outside to pod elsewhere")?;
        udp(here, &site.far, HERE, length).context("outside to pod here")?;
    }
    Ok(())
}
