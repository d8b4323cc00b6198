//! Real machines: `init` makes this host the first of a cluster, `join` a member of one, `reset` takes it out again, and
//! `token` lets others in. Paths, ports and words are kubeadm's.
//!
//! What a host is stands in one file, `/var/lib/leme/host.json`, which is written before anything is made: so a command
//! that was killed can be given again, and `reset` knows what there is to remove.

pub(crate) mod init;
pub(crate) mod join;
pub(crate) mod reset;
pub(crate) mod supervisor;
pub(crate) mod token;

mod discovery;
mod preflight;
mod services;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnetwork::Ipv4Network;
use k8s_openapi::api::core::v1::Node;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use leme_control_plane::pki::write_private;
use serde::{Deserialize, Serialize};

use crate::cluster::steps::Steps;

const KUBERNETES: &str = "/etc/kubernetes";
const PKI: &str = "/etc/kubernetes/pki";
const ADMIN: &str = "/etc/kubernetes/admin.conf";
const KUBELET: &str = "/etc/kubernetes/kubelet.conf";
const BOOTSTRAP: &str = "/etc/kubernetes/bootstrap-kubelet.conf";
const STATE: &str = "/var/lib/leme";
const RECORD: &str = "/var/lib/leme/host.json";
const SERVER: &str = "/var/lib/leme/server";
const PODS: &str = "/var/lib/kubelet";
const RUN: &str = "/run/leme";
const LOGS: &str = "/var/log/leme";
const POD_LOGS: &str = "/var/log/pods";
const CNI_CONF: &str = "/etc/cni/net.d";
const CNI_BIN: &str = "/opt/cni/bin";
const BPFFS: &str = "/sys/fs/bpf";
const CRI_SOCKET: &str = "/run/containerd/containerd.sock";

/// What this machine is in its cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Host {
    /// `None`: a worker.
    control_plane: Option<ControlPlane>,
    node_name: String,
    address: IpAddr,
    /// `https://…` of the API server.
    server: String,
    pod_cidr: Ipv4Network,
    service_cidr: Ipv4Network,
    cri_socket: PathBuf,
    cgroup_root: String,
    /// Directories that were not there before, parents first.
    #[serde(default)]
    made: BTreeSet<PathBuf>,
    /// Certificates and keys that were there before: their owner's, whatever becomes of the node.
    #[serde(default)]
    found: BTreeSet<PathBuf>,
    #[serde(default)]
    mounted_bpffs: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ControlPlane {
    port: u16,
    extra_names: Vec<String>,
}

impl Host {
    fn load() -> Result<Option<Self>> {
        match fs::read_to_string(RECORD) {
            Ok(text) => serde_json::from_str(&text).map(Some).with_context(|| format!("{RECORD} is damaged")),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {RECORD}")),
        }
    }

    fn save(&self) -> Result<()> {
        write_private(Path::new(RECORD), &serde_json::to_string_pretty(self)?)
    }

    /// Makes the directories that both commands need; which of them are new is on disk before the first is made, but for
    /// the record's own.
    fn make_directories(&mut self) -> Result<()> {
        let wanted = [STATE, PKI, PODS, RUN, LOGS, POD_LOGS, CNI_CONF, CNI_BIN].map(Path::new);
        let missing = wanted.iter().flat_map(|folder| folder.ancestors()).filter(|folder| !folder.exists());
        self.made.extend(missing.map(Path::to_path_buf));
        if !Path::new(RECORD).exists() {
            self.found = fs::read_dir(PKI).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        }
        fs::create_dir_all(STATE).with_context(|| format!("cannot create {STATE}"))?;
        self.save()?;
        for folder in wanted {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(())
    }

    fn mount_bpffs(&mut self) -> Result<()> {
        if crate::cluster::is_mount(Path::new(BPFFS)) {
            return Ok(());
        }
        self.mounted_bpffs = true;
        self.save()?;
        nix::mount::mount(Some("bpf"), BPFFS, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)
            .context("cannot mount the BPF file system")
    }

    /// Whether an earlier, perhaps unfinished, command wanted the same.
    fn wants_the_same(&self, other: &Self) -> bool {
        let bare =
            |host: &Self| Self { made: BTreeSet::new(), found: BTreeSet::new(), mounted_bpffs: false, ..host.clone() };
        bare(self) == bare(other)
    }

    /// What holds the pods, as the cgroup file system names it.
    fn pods_cgroup(&self) -> String {
        format!("{}/kubepods", self.cgroup_root.trim_matches('/'))
    }

    fn role(&self) -> &'static str {
        if self.control_plane.is_some() { "a control-plane node" } else { "a worker" }
    }
}

fn require_root(what: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("leme {what} changes this machine and needs root; run it with sudo");
    }
    Ok(())
}

/// Where a local cluster's node of that name would have its own: two nodes of one machine never share it.
fn cgroup_of(node: &str) -> String {
    format!("/leme/{node}")
}

/// This host's name as a node's.
fn host_name() -> Result<String> {
    Ok(nix::unistd::gethostname()?.to_string_lossy().to_lowercase())
}

/// RFC 1123, as the API wants a node's name.
fn node_name(text: &str) -> Result<String, String> {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let label = |label: &str| {
        label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && edge(label.bytes().next())
            && edge(label.bytes().last())
    };
    if text.len() <= 253 && text.split('.').all(label) {
        return Ok(text.to_owned());
    }
    Err("a node's name has small letters, digits, '-' and '.', and begins and ends with a letter or digit".to_owned())
}

async fn client(text: &str) -> Result<Client> {
    let config =
        kube::Config::from_custom_kubeconfig(Kubeconfig::from_yaml(text)?, &KubeConfigOptions::default()).await;
    Ok(Client::try_from(config?)?)
}

async fn client_of(file: &str) -> Result<Client> {
    client(&fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?).await
}

const PAUSE: Duration = Duration::from_millis(100);
const ATTEMPT: Duration = Duration::from_secs(5);

/// Looks again until it is as wanted, and says what is missing when time is up.
async fn until(
    limit: Duration,
    steps: &Steps,
    what: &str,
    log: &str,
    check: impl AsyncFn() -> Result<()>,
) -> Result<()> {
    let began = Instant::now();
    steps.doing(what);
    loop {
        let outcome = tokio::time::timeout(ATTEMPT, check()).await.context("no answer within 5 s").flatten();
        let Err(error) = outcome else { return Ok(()) };
        if began.elapsed() > limit {
            let context = format!("{what} takes longer than {} s; see {LOGS}/{log}.log", limit.as_secs());
            return Err(error.context(context));
        }
        steps.waiting(what, &format!("{error:#}"));
        tokio::time::sleep(PAUSE).await;
    }
}

async fn expect_ready(client: &Client, name: &str) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let node = api.get_opt(name).await?.with_context(|| format!("node {name} has not registered"))?;
    match not_ready(&node) {
        None => Ok(()),
        Some(why) => bail!("node {name} is not Ready: {why}"),
    }
}

/// `None` when it is Ready.
fn not_ready(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let Some(ready) = conditions.iter().find(|condition| condition.type_ == "Ready") else {
        return Some("it has said nothing yet".into());
    };
    (ready.status != "True").then(|| ready.message.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_as_the_api_wants_it() {
        for good in ["a", "node-1", "node-1.example.com"] {
            assert!(node_name(good).is_ok(), "{good}");
        }
        for bad in ["", "Node", "-a", "a-", "a..b", "a_b", "a b"] {
            assert!(node_name(bad).is_err(), "{bad}");
        }
    }
}
