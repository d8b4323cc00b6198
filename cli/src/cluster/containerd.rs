//! A node's own containerd: its configuration, and where it pulls images from.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Cluster, Node, write_whole};

pub(crate) const SOCKET: &str = "/run/containerd/containerd.sock";
const PROGRAMS: [&str; 3] = ["containerd", "runc", "containerd-shim-runc-v2"];

/// The programs a node runs that are not ours.
pub(crate) fn check_programs() -> Result<()> {
    let missing: Vec<_> = PROGRAMS.into_iter().filter(|name| find(name).is_none()).collect();
    if !missing.is_empty() {
        bail!("{} not found on PATH; on Debian: apt install containerd runc", missing.join(" and "));
    }
    Ok(())
}

/// The first program of that name on PATH or in the system's directories.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Writes `containerd.toml` and the registry's hosts files.
pub(crate) fn configure(cluster: &Cluster, node: &Node) -> Result<()> {
    let folder = cluster.node_dir(node);
    for sub in ["containerd", "cni/net.d", "cni/bin", "certs.d"] {
        fs::create_dir_all(folder.join(sub))
            .with_context(|| format!("cannot create {}", folder.join(sub).display()))?;
    }
    write_whole(&folder.join("containerd.toml"), &configuration(&folder)?)?;
    for (host, url) in &cluster.mirrors {
        let hosts = folder.join("certs.d").join(host);
        fs::create_dir_all(&hosts)?;
        write_whole(&hosts.join("hosts.toml"), &hosts_file(host, url))?;
    }
    Ok(())
}

fn configuration(folder: &Path) -> Result<String> {
    let runc = find("runc").context("runc is not on PATH")?;
    let (folder, runc) = (folder.display(), runc.display());
    let (adjust, snapshotter) = (!may_lower_oom_score(), snapshotter(&folder.to_string()));
    Ok(format!(
        r#"version = 2
root = "{folder}/containerd"
state = "/run/containerd"
# `opt` would make a directory on the machine; the snapshotters only complain about its file system.
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{SOCKET}"

[plugins."io.containerd.nri.v1.nri"]
  disable = true

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = {adjust}
  netns_mounts_under_state_dir = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{folder}/cni/bin"
    conf_dir = "{folder}/cni/net.d"

  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{folder}/certs.d"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
        Root = "/run/containerd/runc"
        SystemdCgroup = false
"#
    ))
}

/// The mirror first; the registry itself where the mirror has nothing.
fn hosts_file(host: &str, url: &str) -> String {
    let server = if host == "docker.io" { "registry-1.docker.io" } else { host };
    format!("server = \"https://{server}\"\n\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n")
}

/// Without CAP_SYS_RESOURCE nobody may lower the score, and containers that ask for it must not fail.
fn may_lower_oom_score() -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|set| set & CAP_SYS_RESOURCE != 0)
}

/// Overlays cannot lie on overlays: inside a container the plain copy is what works.
fn snapshotter(folder: &str) -> &'static str {
    match nix::sys::statfs::statfs(folder) {
        Ok(stat) if stat.filesystem_type() == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC => "native",
        _ => "overlayfs",
    }
}

/// Name servers that a node can reach: not the machine's loopback.
pub(crate) fn resolv_conf() -> String {
    let readable = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];
    let text = readable.into_iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let reachable = |line: &&str| {
        let address = line.strip_prefix("nameserver").map(str::trim);
        address.is_none_or(|address| address.parse::<Ipv4Addr>().is_ok_and(|address| !address.is_loopback()))
    };
    text.lines().filter(reachable).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_comes_before_the_registry_it_stands_in_for() {
        let text = hosts_file("docker.io", "http://127.0.0.1:5000");
        assert!(text.starts_with("server = \"https://registry-1.docker.io\"\n"));
        assert!(text.contains("[host.\"http://127.0.0.1:5000\"]"));
    }
}
