//! Local clusters: several nodes on one machine without a container engine around them.
//!
//! A node is a network namespace with its own containerd, agent and NIC, a mount namespace whose `/run` is its own, a
//! host name and a cgroup. `up` makes what is missing, `down` removes everything, `node stop|start` plays failures;
//! all of them work on half-made and half-broken state, since each step only looks at what is there.
//!
//! No `ip`, `tc` or `mount` is called and no packet filter rule is written.

pub(crate) mod down;
pub(crate) mod image;
pub(crate) mod kubeconfig;
pub(crate) mod node;
pub(crate) mod status;
pub(crate) mod supervisor;
pub(crate) mod up;

pub(crate) mod cgroup;
mod claim;
mod containerd;
mod etcd;
mod file;
mod machine;
mod mirror;
mod namespace;
pub(crate) mod nic;
pub(crate) mod process;
mod ready;
pub(crate) mod steps;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use ipnetwork::Ipv4Network;
use leme_control_plane::pki::write_private;
use leme_control_plane::resources::node::may_label_itself;
use serde::{Deserialize, Serialize};

use claim::Claim;
pub(crate) use namespace::is_mount;

const NAME: &str = "leme";
const STATE_DIR: &str = "/var/lib/leme/clusters";

/// Which cluster, and where local clusters are kept.
#[derive(Args, Clone)]
pub(crate) struct Which {
    /// The cluster's name
    #[arg(long, default_value = NAME, value_parser = valid_name)]
    pub(crate) name: String,
    /// Where local clusters are kept
    #[arg(long, default_value = STATE_DIR, env = "LEME_STATE_DIR")]
    pub(crate) state_dir: PathBuf,
}

impl Which {
    /// Absolute: it says whose the nodes are, whatever directory the next `leme` is started in.
    pub(crate) fn folder(&self) -> PathBuf {
        let folder = self.state_dir.join(&self.name);
        std::path::absolute(&folder).unwrap_or(folder)
    }

    pub(crate) fn is_default(&self) -> bool {
        self.name == NAME
    }

    /// What to add to other commands so that they find this cluster.
    pub(crate) fn arguments(&self) -> String {
        let name = (self.name != NAME).then(|| format!(" --name {}", self.name));
        let named = std::env::var_os("LEME_STATE_DIR").is_some() || self.state_dir == Path::new(STATE_DIR);
        let folder = (!named).then(|| format!(" --state-dir {}", self.state_dir.display()));
        name.into_iter().chain(folder).collect()
    }

    /// The cluster as it was made, or a sentence that there is none.
    pub(crate) fn load(&self) -> Result<Cluster> {
        match Cluster::load(&self.folder())? {
            Some(cluster) => Ok(cluster),
            None => {
                let here = self.state_dir.display();
                let elsewhere = claim::owner(&self.name).map(|folder| claim::state_dir(&folder));
                let hint = elsewhere.map_or(format!("make one with `leme up{}`", self.arguments()), |option| {
                    format!("perhaps you meant {option}")
                });
                bail!("there is no cluster {} in {here}; {hint}", self.name)
            }
        }
    }

    /// The cluster, if the machine's nodes of that name are its own.
    pub(crate) fn load_own(&self) -> Result<Cluster> {
        let cluster = self.load()?;
        match claim::owner(&self.name).filter(|folder| *folder != cluster.folder) {
            Some(folder) => bail!("the nodes of that name belong to the cluster in {}", folder.display()),
            None => Ok(cluster),
        }
    }

    /// The same, kept from others who would change it.
    pub(crate) fn hold(&self) -> Result<(Claim, Cluster)> {
        let claim = Claim::hold(&self.name)?;
        let cluster = self.load()?;
        claim.expect_owner(&cluster.folder)?;
        Ok((claim, cluster))
    }
}

/// Host names of nodes are link names too, of which the kernel allows 15 bytes.
const LONGEST_NAME: usize = 11;

/// A cluster's name as people may choose it.
fn valid_name(name: &str) -> Result<String, String> {
    let fits = !name.is_empty() && name.len() <= LONGEST_NAME;
    let label = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !fits || !label || name.starts_with('-') || name.ends_with('-') {
        return Err(format!("a cluster's name is 1 to {LONGEST_NAME} lower-case letters, digits and inner hyphens"));
    }
    Ok(name.to_owned())
}

/// A URL as people may choose it.
fn valid_url(text: &str) -> Result<String, String> {
    let rest = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    match rest {
        Some(rest) if !rest.is_empty() => Ok(text.to_owned()),
        _ => Err("expected a URL, like http://127.0.0.1:2379".to_owned()),
    }
}

/// Where local clusters are kept, for commands that are about any cluster and know ours.
#[derive(Args)]
pub(crate) struct StateDir {
    /// Where local clusters are kept
    #[arg(long, default_value = "/var/lib/leme/clusters", env = "LEME_STATE_DIR")]
    state_dir: PathBuf,
}

impl StateDir {
    /// The local cluster behind a kubeconfig context, for those who may look.
    pub(crate) fn cluster_of(&self, context: &str) -> Result<Option<Cluster>> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(None);
        }
        let name = context.strip_prefix("leme-").unwrap_or(context);
        Ok(Cluster::load(&self.state_dir.join(name))?.filter(|cluster| cluster.context() == context))
    }
}

/// A local cluster as it was made: written before anything else, so that whatever exists can be found and removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    #[serde(skip)]
    pub(crate) folder: PathBuf,
    /// The nodes' own network; the machine is its first address.
    pub(crate) subnet: Ipv4Network,
    pub(crate) pod_subnet: Ipv4Network,
    pub(crate) service_subnet: Ipv4Network,
    pub(crate) nodes: Vec<Node>,
    /// Registry host → URL of a mirror.
    pub(crate) mirrors: BTreeMap<String, String>,
    /// Empty: the embedded store.
    pub(crate) etcd_endpoints: Vec<String>,
    #[serde(default)]
    pub(crate) etcd_files: etcd::Files,
    /// What this cluster made on the machine outside of its own directory.
    pub(crate) traces: Traces,
}

/// Things on the machine that were not there before and are removed with the cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Traces {
    pub(crate) mounted_bpffs: bool,
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) kubeconfig: Option<kubeconfig::Trace>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) control_plane: bool,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

impl Node {
    /// What the node's agent gives it, and what only an administrator may: the cluster's server refuses the latter from an
    /// agent, since such labels draw pods.
    pub(crate) fn labels(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let role = self.control_plane.then(|| ("node-role.kubernetes.io/control-plane".to_owned(), String::new()));
        self.labels.clone().into_iter().chain(role).partition(|(key, _)| may_label_itself(key))
    }
}

/// The machine's BPF file system, and where each node pins below it.
const BPFFS: &str = "/sys/fs/bpf";

impl Cluster {
    pub(crate) fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("cluster.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let cluster: Self = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Some(Self { folder: folder.to_owned(), ..cluster }))
    }

    pub(crate) fn save(&self) -> Result<()> {
        // It remembers the person's kubeconfig, keys and all.
        write_private(&self.folder.join("cluster.json"), &serde_json::to_string_pretty(self)?)
    }

    /// The machine's address in the nodes' network.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.subnet.nth(1).expect("a subnet of several addresses")
    }

    pub(crate) fn control_plane(&self) -> &Node {
        self.nodes.iter().find(|node| node.control_plane).expect("the first node runs the control plane")
    }

    pub(crate) fn server_url(&self) -> String {
        format!("https://{}:6443", self.control_plane().address)
    }

    pub(crate) fn server_dir(&self) -> PathBuf {
        self.folder.join("server")
    }

    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    pub(crate) fn node_dir(&self, node: &Node) -> PathBuf {
        self.folder.join("nodes").join(&node.name)
    }

    /// The binaries as of the last `up`, so that a rebuilt or removed one changes nothing under running nodes.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// Pins of the program that joins the nodes.
    pub(crate) fn lan_pins(&self) -> PathBuf {
        Path::new(BPFFS).join("leme").join(format!("{}-lan", self.name))
    }

    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        let names = || self.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.nodes.iter().find(|node| node.name == name);
        found.with_context(|| format!("cluster {} has no node {name}; it has {}", self.name, names()))
    }

    /// The context's name in kubeconfig files.
    pub(crate) fn context(&self) -> String {
        if self.name == NAME { NAME.to_owned() } else { format!("leme-{}", self.name) }
    }
}

impl Node {
    /// Below every cgroup hierarchy's root.
    pub(crate) fn cgroup(&self) -> String {
        format!("leme/{}", self.name)
    }

    pub(crate) fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join("leme").join(&self.name)
    }
}

/// Writes a file whole or not at all.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// One clear sentence instead of a dozen permission errors.
pub(crate) fn require_root(what: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("{what} needs root (network namespaces, eBPF); run this with sudo");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_must_fit_into_a_link_name() {
        assert!(valid_name("leme").is_ok());
        for bad in ["", "Leme", "-a", "a-", "twelve-bytes", "a_b", "a/b", ".."] {
            assert!(valid_name(bad).is_err(), "{bad}");
        }
    }
}
