//! What each of those who might mean harm reaches, and does not: the lines of SECURITY.md that take a whole cluster.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use leme_tests_cluster::client::{Knock, knock};
use leme_tests_cluster::cluster::expect_all;
use leme_tests_cluster::command::{self, Outcome};
use leme_tests_cluster::{Cluster, Place, client};

/// The kubelet's API, and health with metrics of the network.
const AGENT: [u16; 2] = [10250, 10256];
const SERVER: u16 = 6443;
const DNS: u16 = 53;
/// What kubectl makes of a 401.
const LOG_IN: &str = "You must be logged in to the server";

/// kubectl as somebody else, at any server that speaks HTTPS.
fn as_stranger(cluster: &Cluster, server: &str, credentials: &[&str], words: &[&str]) -> Result<Outcome> {
    let strange = ["--kubeconfig=/dev/null", "--insecure-skip-tls-verify=true"];
    let server = format!("--server=https://{server}");
    let arguments = [&strange[..], &[server.as_str()], credentials, words].concat();
    command::run(&mut cluster.kubectl_command(&arguments), Duration::from_secs(20))
}

fn expect_refusal(outcome: &Outcome, word: &str) -> Result<()> {
    ensure!(!outcome.success, "it was let in: {}", outcome.stdout);
    expect_all(&outcome.stderr, &[word])
}

/// Ports of a network on which TCP is listened for by others than its own loopback.
fn listening(process: i32) -> Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for file in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{process}/net/{file}"))?;
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next().context("no address")?, fields.nth(1).context("no state")?);
            let (address, port) = local.split_once(':').context("no port")?;
            // In the machine's order: the first byte of 127.0.0.1 comes last.
            if state == "0A" && !address.ends_with("7F") {
                ports.insert(u16::from_str_radix(port, 16)?);
            }
        }
    }
    Ok(ports)
}

pub(crate) fn nothing_listens_that_is_not_known(cluster: &Cluster) -> Result<()> {
    for (index, node) in cluster.nodes.iter().enumerate() {
        let known = AGENT.into_iter().chain([DNS]).chain((index == 0).then_some(SERVER)).collect();
        let found = listening(cluster.process(&node.name, "agent")?)?;
        ensure!(found == known, "{} listens on {found:?}, not on {known:?}", node.name);
        for port in [10250, SERVER].into_iter().filter(|port| found.contains(port)) {
            let plain = client::request((node.address, port).into(), "/");
            ensure!(!plain.as_ref().is_ok_and(|answer| answer.status == 200), "{port} speaks without TLS: {plain:?}");
        }
    }
    Ok(())
}

/// kubectl asks a person for a name where it has no credentials at all; that case is the API's own test.
pub(crate) fn who_cannot_say_who_they_are_reads_nothing(cluster: &Cluster) -> Result<()> {
    let get = |server: &str, path: &str| as_stranger(cluster, server, &["--token=made.up"], &["get", "--raw", path]);
    let server = format!("{}:{SERVER}", cluster.nodes[0].address);
    for path in ["/api/v1/secrets", "/api/v1/nodes", "/metrics", "/openapi/v2", "/apis"] {
        expect_refusal(&get(&server, path)?, LOG_IN).context(path)?;
    }
    for node in &cluster.nodes {
        for path in
            ["/pods", "/metrics", "/containerLogs/default/x/y", "/exec/default/x/y?command=id", "/stats/summary"]
        {
            expect_refusal(&get(&format!("{}:10250", node.address), path)?, LOG_IN).context(path)?;
        }
    }
    Ok(())
}

pub(crate) fn a_pod_reaches_nothing_with_its_own_token(cluster: &Cluster) -> Result<()> {
    let token = format!("--token={}", cluster.kubectl(&["create", "token", "default"])?.trim());
    let (server, node) = (&cluster.nodes[0], &cluster.nodes[1]);
    let api = format!("{}:{SERVER}", server.address);
    for words in [["get", "secrets"], ["get", "pods"], ["get", "nodes"], ["delete", "nodes/x"]] {
        expect_refusal(&as_stranger(cluster, &api, &[&token], &words)?, "Forbidden")?;
    }
    let kubelet = format!("{}:10250", node.address);
    for path in ["/pods", "/containerLogs/default/x/y"] {
        expect_refusal(&as_stranger(cluster, &kubelet, &[&token], &["get", "--raw", path])?, "Forbidden")?;
    }
    let pod = &cluster.tools()?[1];
    // The agent's health, the name server's, and the runtime's streams are the node's own.
    for port in [10248, 9153] {
        let heard = knock(cluster, Place::Pod(pod), "TCP", (node.address, port).into())?;
        ensure!(heard == Knock::Refused, "a pod reaches port {port} of its node: {heard:?}");
    }
    let heard = knock(cluster, Place::Pod(pod), "TCP", (Ipv4Addr::LOCALHOST, 10248).into())?;
    ensure!(heard == Knock::Refused, "a pod's loopback is its node's: {heard:?}");
    Ok(())
}

/// Whoever has taken over a node has its credential.
pub(crate) fn a_node_reads_and_writes_what_is_its_own(cluster: &Cluster) -> Result<()> {
    let (own, other) = (&cluster.nodes[1].name, &cluster.nodes[2].name);
    let file = cluster.node_folder(own).join("kubelet.kubeconfig");
    let as_node = |words: &[&str]| {
        let credential = format!("--kubeconfig={}", file.display());
        let arguments = [&[credential.as_str()], words].concat();
        command::run(&mut cluster.kubectl_command(&arguments), Duration::from_secs(20))
    };
    ensure!(as_node(&["get", "node", own])?.success, "it does not even see itself");
    let role = "node-role.kubernetes.io/control-plane=";
    for refused in [
        vec!["get", "secrets", "--all-namespaces"],
        vec!["get", "configmaps", "--namespace=kube-system"],
        vec!["label", "node", own, role],
        vec!["label", "node", other, "a=b"],
        vec!["taint", "nodes", own, "a=b:NoSchedule"],
        vec!["delete", "node", other],
        vec!["create", "token", "replicaset-controller", "--namespace=kube-system"],
        vec!["create", "clusterrolebinding", "x", "--clusterrole=cluster-admin", "--group=system:nodes"],
    ] {
        let outcome = as_node(&refused)?;
        if outcome.success {
            bail!("a node may {refused:?}: {}", outcome.stdout);
        }
        expect_all(&outcome.stderr.to_lowercase(), &["forbidden"]).with_context(|| format!("{refused:?}"))?;
    }
    Ok(())
}
