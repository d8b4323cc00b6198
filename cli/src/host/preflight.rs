//! What a machine must be before anything on it is changed: one line per check, and what to do about each failure.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use anyhow::{Result, bail};
use ipnetwork::Ipv4Network;
use leme_agent::runtime::Cri;

use super::{ADMIN, CNI_CONF, Host, KUBELET, RECORD, SERVER};
use crate::cluster::nic;
use crate::output::{bold, green, red};

const MEGABYTE: u64 = 1 << 20;

/// What a check found: kubeadm's name for it where it has one.
struct Check {
    name: String,
    verdict: Verdict,
}

enum Verdict {
    Fine(String),
    Warning(String),
    Failure(String),
}

use Verdict::{Failure, Fine, Warning};

/// Prints a line per check; fails when one failed that is not among `ignored` (or `all`).
/// `again`: an earlier command got further than this, so what is its own is no finding.
pub(crate) async fn check(host: &Host, again: bool, ignored: &BTreeSet<String>) -> Result<()> {
    let mut checks = vec![kernel(), cgroup(), plugin(), memory(), swap(), container_runtime(&host.cri_socket).await];
    checks.extend(ranges(host).await);
    checks.push(other_networks());
    if !again {
        checks.extend(ports(host));
        checks.push(leftovers());
    }
    let mut failed = 0;
    for Check { name, verdict } in checks {
        let is_ignored = ignored.contains("all") || ignored.contains(&name.to_lowercase());
        match verdict {
            Fine(text) => eprintln!("{} {name}: {text}", green("✓")),
            Warning(text) => eprintln!("{} {name}: {text}", bold("!")),
            Failure(text) if is_ignored => eprintln!("{} {name} (ignored): {text}", bold("!")),
            Failure(text) => {
                failed += 1;
                eprintln!("{} {name}: {text}", red("✗"));
            }
        }
    }
    if failed > 0 {
        bail!(
            "{failed} of the checks failed and nothing was changed; --ignore-preflight-errors NAME,… goes on all the same"
        );
    }
    Ok(())
}

fn named(name: &str, verdict: Verdict) -> Check {
    Check { name: name.to_owned(), verdict }
}

fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or_default());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    named(
        "SystemVerification",
        match version >= (5, 10) {
            false => Failure(format!("kernel {release} is too old: 5.10 or newer is needed")),
            true => match leme_datapath::kernel_lacks().as_slice() {
                [] => Fine(format!("kernel {release}")),
                lacks => Warning(format!(
                    "kernel {release} works, but lacks {}",
                    lacks.iter().map(|(what, meaning)| format!("{what}: {meaning}")).collect::<Vec<_>>().join("; ")
                )),
            },
        },
    )
}

fn cgroup() -> Check {
    named(
        "CgroupV2",
        match crate::cluster::cgroup::unified() {
            Ok(path) => Fine(format!("mounted at {}", path.display())),
            Err(error) => Failure(format!("{error:#}")),
        },
    )
}

fn plugin() -> Check {
    let path = std::env::current_exe().map(|this| this.with_file_name("leme-cni")).unwrap_or_default();
    named(
        "NetworkPlugin",
        match path.is_file() {
            true => Fine(path.display().to_string()),
            false => Failure(format!("{} is missing: leme-cni belongs beside leme", path.display())),
        },
    )
}

fn memory() -> Check {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse::<u64>().ok());
    let total = total.unwrap_or_default() * 1024 / MEGABYTE;
    named(
        "Mem",
        match total {
            0..=399 => Failure(format!("{total} MiB of memory are too few: at least 400 are needed")),
            400..=900 => Warning(format!("{total} MiB of memory leave little for pods")),
            _ => Fine(format!("{total} MiB")),
        },
    )
}

fn swap() -> Check {
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    named(
        "Swap",
        match text.lines().nth(1).and_then(|line| line.split_whitespace().next()) {
            None => Fine("off".into()),
            Some(device) => {
                Warning(format!("{device} is in use: pods may be slow without being seen so; swapoff -a turns it off"))
            }
        },
    )
}

async fn container_runtime(socket: &Path) -> Check {
    named(
        "CRI",
        match Cri::new(socket).version().await {
            Ok(version) => Fine(format!("{} {}", version.runtime_name, version.runtime_version)),
            Err(error) => Failure(format!(
                "no container runtime answers at {} ({error}): install and start containerd (on Debian: apt install \
             containerd), with its cri plugin on, or name another --cri-socket",
                socket.display()
            )),
        },
    )
}

/// The ranges apart from each other and from the machine's networks.
async fn ranges(host: &Host) -> Vec<Check> {
    let mut found = Vec::new();
    let (pods, services) = (host.pod_cidr, host.service_cidr);
    let mut fail = |text: String| found.push(named("Networks", Failure(text)));
    if pods.overlaps(services) {
        fail(format!("the ranges of pods, {pods}, and of Services, {services}, overlap"));
    }
    if services.prefix() > 27 {
        fail(format!("the range of Services, {services}, is too small: /27 or larger"));
    }
    if host.control_plane.is_some() && pods.prefix() > 24 {
        fail(format!("the range of pods, {pods}, is too small: each node takes a /24 of it"));
    }
    for (what, range, flag) in [("pods", pods, "--pod-network-cidr"), ("Services", services, "--service-cidr")] {
        if let Some(other) = met(range).await {
            fail(format!(
                "the range of {what}, {range}, meets this machine's {other}: choose another with {flag} at init"
            ));
        }
    }
    if found.is_empty() {
        found.push(named("Networks", Fine(format!("pods {pods}, Services {services}"))));
    }
    found
}

/// A network of this machine within the range, or around it.
async fn met(range: Ipv4Network) -> Option<String> {
    let address = nix::ifaddrs::getifaddrs().ok()?.find_map(|interface| {
        if interface.interface_name.starts_with("leme") {
            return None;
        }
        let ip = interface.address?.as_sockaddr_in()?.ip();
        let mask = interface.netmask?.as_sockaddr_in()?.ip();
        let network = Ipv4Network::with_netmask(ip, mask).ok()?;
        network.overlaps(range).then(|| format!("address {network} on {}", interface.interface_name))
    });
    if address.is_some() {
        return address;
    }
    // A route of an earlier run is our own device's.
    let ours = nix::net::if_::if_nametoindex(leme_datapath::VXLAN).is_ok();
    (!ours && !nic::is_free(range).await.unwrap_or(true)).then(|| "routes (see ip route)".to_owned())
}

fn other_networks() -> Check {
    let entries = fs::read_dir(CNI_CONF).into_iter().flatten().flatten();
    let others: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".conf") || name.ends_with(".conflist"))
        .filter(|name| !name.contains("leme"))
        .collect();
    named(
        "CNI",
        match others.as_slice() {
            [] => Fine("no other network is configured".into()),
            _ => Warning(format!(
                "{CNI_CONF} has {}: containerd takes the first file by name; move others away",
                others.join(", ")
            )),
        },
    )
}

fn ports(host: &Host) -> Vec<Check> {
    let any = |port| SocketAddr::new([0, 0, 0, 0].into(), port);
    let mut tcp =
        vec![any(10250), any(10256), SocketAddr::new([127, 0, 0, 1].into(), 10248), SocketAddr::new(host.address, 53)];
    tcp.extend(host.control_plane.as_ref().map(|control_plane| any(control_plane.port)));
    let mut found: Vec<_> =
        tcp.into_iter().map(|address| port(address, TcpListener::bind(address).map(drop))).collect();
    for address in [any(4789), SocketAddr::new(host.address, 53)] {
        found.push(port(address, UdpSocket::bind(address).map(drop)));
    }
    found.retain(|check| !matches!(check.verdict, Fine(_)));
    if found.is_empty() {
        found.push(named("Ports", Fine("all that are needed are free".into())));
    }
    found
}

fn port(address: SocketAddr, bound: std::io::Result<()>) -> Check {
    named(
        &format!("Port-{}", address.port()),
        match bound {
            Ok(()) => Fine("free".into()),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                Failure(format!("{address} is in use: see who listens with ss -lntup and stop it"))
            }
            Err(error) => Failure(format!("cannot listen on {address}: {error}")),
        },
    )
}

fn leftovers() -> Check {
    let state = Path::new(SERVER).join("state.db");
    let found: Vec<_> = [
        Path::new(KUBELET),
        Path::new(ADMIN),
        Path::new("/etc/kubernetes/manifests/kube-apiserver.yaml"),
        state.as_path(),
        Path::new(RECORD),
    ]
    .into_iter()
    .filter(|path| path.exists())
    .map(|path| path.display().to_string())
    .collect();
    named(
        "FileAvailable",
        match found.as_slice() {
            [] => Fine("nothing is left of an earlier cluster".into()),
            _ => Failure(format!(
                "an earlier cluster left {}: remove it with leme reset, or kubeadm reset",
                found.join(", ")
            )),
        },
    )
}

/// An address that this machine has.
pub(crate) fn expect_own(address: IpAddr) -> Result<()> {
    if let Err(error) = UdpSocket::bind((address, 0)) {
        bail!("{address} is not an address of this machine ({error})");
    }
    Ok(())
}
