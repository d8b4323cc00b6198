//! `leme join`: this machine becomes a worker of a cluster. Whom to trust it learns from `cluster-info`; its certificate
//! the agent asks for itself.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use ipnetwork::Ipv4Network;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{Api, Client};
use leme_control_plane::pki::write_private;
use serde::Deserialize;

use super::discovery::{self, Found, Pins};
use super::init::socket;
use super::token::Token;
use super::{BOOTSTRAP, Host, KUBELET, PKI, node_name, preflight, services};
use crate::cluster::steps::Steps;
use crate::output::{bold, say};

const IDENTITY_LIMIT: Duration = Duration::from_secs(60);
const NODE_LIMIT: Duration = Duration::from_secs(180);

#[derive(Args)]
#[command(after_help = "Examples:
  leme join 192.0.2.10:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash sha256:…
  leme token create --print-join-command      prints that command on a control-plane node")]
pub(crate) struct Options {
    /// The API server, HOST:PORT
    #[arg(value_name = "HOST:PORT")]
    server: String,
    /// A token of the cluster: leme token create
    #[arg(long)]
    token: Token,
    /// The cluster's authority has one of these keys, sha256:…
    #[arg(long, value_delimiter = ',', value_name = "HASH", value_parser = hash,
        required_unless_present = "discovery_token_unsafe_skip_ca_verification")]
    discovery_token_ca_cert_hash: Vec<String>,
    /// Believe whoever knows the token: anybody who has it can then pretend to be the cluster
    #[arg(long, conflicts_with = "discovery_token_ca_cert_hash")]
    discovery_token_unsafe_skip_ca_verification: bool,
    /// Name of this node [default: this host's name]
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    node_name: Option<String>,
    /// Address of this node [default: that of the way to the server]
    #[arg(long, value_name = "ADDRESS")]
    node_ip: Option<IpAddr>,
    /// The container runtime's socket [default: /run/containerd/containerd.sock]
    #[arg(long, value_name = "SOCKET")]
    cri_socket: Option<PathBuf>,
    /// cgroup below which pods run [default: /leme/ and the node's name]
    #[arg(long, value_name = "PATH")]
    cgroup_root: Option<String>,
    /// Go on although these checks fail; all: whichever do
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    ignore_preflight_errors: Vec<String>,
}

fn hash(text: &str) -> Result<String, String> {
    let hexadecimal = text.strip_prefix("sha256:").unwrap_or_default();
    if hexadecimal.len() == 64 && hexadecimal.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_owned());
    }
    Err("expected sha256: and 64 hexadecimal digits".to_owned())
}

pub(crate) async fn run(options: Options) -> Result<()> {
    super::require_root("join")?;
    let before = Host::load()?;
    let pins = match options.discovery_token_unsafe_skip_ca_verification {
        true => Pins::TokenAlone,
        false => Pins::Hashes(options.discovery_token_ca_cert_hash.clone()),
    };
    let found = discovery::discover(&options.server, &options.token, &pins).await?;
    let client = super::client(&found.kubeconfig(&options.token)).await?;
    let wanted = describe(&options, &found, networking(&client).await?)?;
    if let Some(before) = before.as_ref().filter(|before| !before.wants_the_same(&wanted)) {
        bail!(
            "this machine is {} ({}) of {} already: take it out first with leme reset",
            before.role(),
            before.node_name,
            before.server
        );
    }
    if before.is_none() {
        expect_free_name(&client, &wanted.node_name).await?;
    }
    let ignored: BTreeSet<_> = options.ignore_preflight_errors.iter().map(|name| name.to_lowercase()).collect();
    preflight::check(&wanted, before.is_some(), &ignored).await?;
    make(before.unwrap_or(wanted), &found, &options.token).await
}

fn describe(options: &Options, found: &Found, networking: Networking) -> Result<Host> {
    let address = options.node_ip.map_or_else(|| way_to(&options.server), Ok)?;
    preflight::expect_own(address)?;
    let name = options.node_name.clone().map_or_else(super::host_name, Ok)?;
    Ok(Host {
        control_plane: None,
        node_name: node_name(&name)
            .map_err(|why| anyhow!("this host's name {name:?} cannot be a node's: {why}; say --node-name"))?,
        address,
        server: found.server.clone(),
        pod_cidr: networking.pod_subnet,
        service_cidr: networking.service_subnet,
        cri_socket: socket(options.cri_socket.clone()),
        cgroup_root: options.cgroup_root.clone().unwrap_or_else(|| super::cgroup_of(&name)),
        made: BTreeSet::new(),
        found: BTreeSet::new(),
        mounted_bpffs: false,
    })
}

/// The source address towards the server; connecting a datagram socket sends nothing.
fn way_to(server: &str) -> Result<IpAddr> {
    let socket = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0)))?;
    socket.connect(server).with_context(|| format!("there is no way to {server}"))?;
    Ok(socket.local_addr()?.ip())
}

#[derive(Deserialize)]
struct ClusterConfiguration {
    networking: Networking,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Networking {
    pod_subnet: Ipv4Network,
    service_subnet: Ipv4Network,
}

/// What kubeadm's configuration says about the cluster's networks. The first thing that the token is good for.
async fn networking(client: &Client) -> Result<Networking> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let map = match api.get("kubeadm-config").await {
        Err(kube::Error::Api(answer)) if answer.code == 401 => {
            bail!(
                "the cluster refuses the token: it has expired or is not for authentication; make one: leme token create"
            )
        }
        outcome => outcome.context("cannot read kubeadm-config from the cluster")?,
    };
    let text = map.data.as_ref().and_then(|data| data.get("ClusterConfiguration"));
    let text = text.context("kubeadm-config of the cluster holds no ClusterConfiguration")?;
    let read: ClusterConfiguration =
        serde_norway::from_str(text).context("cannot read kubeadm-config of the cluster")?;
    Ok(read.networking)
}

/// A name that a living node has is its own; one that is not Ready may be this machine's, made anew.
async fn expect_free_name(client: &Client, name: &str) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let node = api.get_opt(name).await.context("cannot look whether the node's name is free")?;
    if node.is_some_and(|node| super::not_ready(&node).is_none()) {
        bail!(
            "the cluster has a node {name} already, and it is Ready: choose another --node-name, or delete that node first"
        );
    }
    Ok(())
}

async fn make(mut host: Host, found: &Found, token: &Token) -> Result<()> {
    let steps = Steps::begin();
    host.make_directories()?;
    host.mount_bpffs()?;
    let authority = Path::new(PKI).join("ca.crt");
    fs::write(&authority, &found.authority).with_context(|| format!("cannot write {}", authority.display()))?;
    if !Path::new(KUBELET).exists() {
        write_private(Path::new(BOOTSTRAP), &found.kubeconfig(token))?;
    }
    steps.done("The cluster is the one that was meant");
    services::start()?;
    super::until(IDENTITY_LIMIT, &steps, "Waiting for this node's certificate", "agent", async || {
        if Path::new(KUBELET).exists() { Ok(()) } else { bail!("the cluster has not signed it yet") }
    })
    .await?;
    // The token has done what it was for.
    let _ = fs::remove_file(BOOTSTRAP);
    steps.done("Certificate signed");
    let client = super::client_of(KUBELET).await?;
    super::until(NODE_LIMIT, &steps, "Waiting for this node", "agent", async || {
        super::expect_ready(&client, &host.node_name).await
    })
    .await?;
    steps.done("Node ready");
    let seconds = steps.finish();
    say(format_args!("This machine is node {} of {} after {seconds:.1} s.", bold(&host.node_name), host.server));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_says_its_kind_and_is_whole() {
        assert!(hash(&format!("sha256:{}", "0a".repeat(32))).is_ok());
        for bad in ["", "sha256:00", &"0a".repeat(32), &format!("sha256:{}", "0g".repeat(32))] {
            assert!(hash(bad).is_err(), "{bad}");
        }
    }
}
