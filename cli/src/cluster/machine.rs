//! A node as a machine: switched on, switched off. `up`, `down` and `node stop|start` are made of these two.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use leme_control_plane::pki::{self, Authority, KubeconfigNames};
use leme_datapath::Lan;
use nix::sys::signal::Signal;

use super::namespace::{Namespaces, View};
use super::{Cluster, Node, cgroup, containerd, nic, process, write_whole};

impl Cluster {
    pub(crate) fn namespaces(&self, node: &Node) -> Namespaces {
        Namespaces::of(&node.name, self.node_dir(node).join("ns"))
    }

    pub(crate) fn supervisor_pid_file(&self, node: &Node) -> PathBuf {
        self.node_dir(node).join("pids/supervisor.pid")
    }

    /// The node's supervisor, if it runs.
    pub(crate) fn supervisor(&self, node: &Node) -> Option<nix::unistd::Pid> {
        process::running(&self.supervisor_pid_file(node), "leme")
    }
}

/// A node that is only half there, after a reboot or somebody's hand, is switched off wholly first.
pub(crate) async fn clear(cluster: &Cluster, node: &Node) -> Result<()> {
    if cluster.namespaces(node).exist() { Ok(()) } else { stop(cluster, node).await }
}

/// Files a node needs before it is switched on: identity, containerd's configuration, name servers.
pub(crate) fn prepare(cluster: &Cluster, node: &Node, authority: &Authority) -> Result<()> {
    let folder = cluster.node_dir(node);
    for sub in ["run/containerd", "run/leme", "log/pods", "cni/cache", "kubelet", "pids", "pki"] {
        fs::create_dir_all(folder.join(sub))
            .with_context(|| format!("cannot create {}", folder.join(sub).display()))?;
    }
    containerd::configure(cluster, node)?;
    write_whole(&folder.join("resolv.conf"), &containerd::resolv_conf())?;
    if !folder.join("pki/kubelet.key").exists() {
        issue_identity(cluster, node, authority)?;
    }
    Ok(())
}

fn issue_identity(cluster: &Cluster, node: &Node, authority: &Authority) -> Result<()> {
    let folder = cluster.node_dir(node);
    let user = format!("system:node:{}", node.name);
    let client = authority.issue_client(&user, Some("system:nodes"))?;
    let names = KubeconfigNames { cluster: &cluster.name, user: &user, context: &user };
    let text = pki::kubeconfig(&cluster.server_url(), &authority.certificate, &client, &names);
    pki::write_private(&folder.join("kubelet.kubeconfig"), &text)?;
    let serving =
        authority.issue_serving(&user, Some("system:nodes"), &[node.name.clone(), node.address.to_string()])?;
    write_whole(&folder.join("pki/ca.crt"), &authority.certificate)?;
    write_whole(&folder.join("pki/kubelet.crt"), &serving.certificate)?;
    pki::write_private(&folder.join("pki/kubelet.key"), &serving.key)
}

/// Switches the node on; what is on stays as it is. Returns folders made on the machine.
pub(crate) async fn start(cluster: &Cluster, node: &Node) -> Result<Vec<PathBuf>> {
    let folder = cluster.node_dir(node);
    let namespaces = cluster.namespaces(node);
    let mut made = Vec::new();
    if !namespaces.exist() {
        let [run, cni, volumes] = ["run", "cni/cache", "kubelet"].map(|sub| folder.join(sub));
        made = namespaces.create(&View { host_name: &node.name, run: &run, cni: &cni, volumes: &volumes })?;
    }
    nic::ensure(cluster, node, &namespaces).await?;
    match cluster.supervisor(node) {
        // It may not know of mirrors that were added since.
        Some(pid) => process::signal(pid, Signal::SIGHUP),
        None => supervise(cluster, node)?,
    }
    Ok(made)
}

fn supervise(cluster: &Cluster, node: &Node) -> Result<()> {
    let path = cluster.node_dir(node).join("log/supervisor.log");
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(cluster.binary("leme"));
    command.args(["supervise", "--node", &node.name, "--folder"]).arg(&cluster.folder);
    command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: setsid is async-signal-safe and touches nothing of the parent's.
    unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into)) };
    let mut child = command.spawn().context("cannot start the node's supervisor")?;
    let ready = process::wait_until(Duration::from_secs(5), || cluster.supervisor(node).is_some());
    if !ready || child.try_wait()?.is_some() {
        let text = fs::read_to_string(&path).unwrap_or_default();
        bail!("the supervisor of {} did not start: {}", node.name, text.lines().last().unwrap_or("it said nothing"));
    }
    Ok(())
}

/// Switches the node off, like pulling its plug: every process is gone at once, files stay. Off is off.
/// Goes on after failures and reports them together.
pub(crate) async fn stop(cluster: &Cluster, node: &Node) -> Result<()> {
    let mut failures = Vec::new();
    let mut note = |outcome: Result<()>| failures.extend(outcome.err().map(|error| format!("{error:#}")));
    if let Some(pid) = cluster.supervisor(node) {
        // It kills the node's processes at once and reaps them; what it does not manage is done below.
        process::signal(pid, Signal::SIGTERM);
        if !process::wait_until(Duration::from_secs(5), || !process::alive(pid)) {
            process::signal(pid, Signal::SIGKILL);
        }
    }
    note(cgroup::kill_all(&node.cgroup()));
    note(nic::remove(node).await);
    if cluster.lan_pins().exists() {
        note(Lan::open(&cluster.lan_pins()).and_then(|mut lan| lan.detach(node.address)).map_err(Into::into));
    }
    note(cluster.namespaces(node).remove());
    note(remove_pins(node));
    note(cgroup::remove(&node.cgroup()));
    // What a machine keeps in memory is gone after it was off.
    let _ = fs::remove_dir_all(cluster.node_dir(node).join("run"));
    let _ = fs::remove_dir_all(cluster.node_dir(node).join("pids"));
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("; ")) }
}

fn remove_pins(node: &Node) -> Result<()> {
    match fs::remove_dir_all(node.pins()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", node.pins().display()))
        }
        _ => Ok(()),
    }
}
