//! Looks at the node: settings, rules, processes, files. Reads only.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    super::{Config, cni_config},
    judge::{Nic, Observed},
};

/// Programs that serve pods or Services, as the kernel cuts their names.
const NETWORKS: [&str; 10] = [
    "kube-proxy",
    "cilium-agent",
    "calico-node",
    "flanneld",
    "kube-router",
    "antrea-agent",
    "ovnkube",
    "weaver",
    "aws-k8s-agent",
    "k3s-agent",
];

/// Where to look, beside what is the same on all machines.
pub(super) struct Places {
    cni_conf_dir: PathBuf,
}

impl Places {
    pub(super) fn new(config: &Config) -> Self {
        Self { cni_conf_dir: config.cni_conf_dir.clone() }
    }
}

/// Everything that neither the datapath nor its kernel programs know. Blocks for some milliseconds.
pub(super) fn node(places: &Places, nics: &[u32]) -> io::Result<Observed> {
    let names = nics.iter().filter_map(|nic| device_name(*nic));
    Ok(Observed {
        nics: names.map(|name| Nic { rp_filter: rp_filter(&name), name }).collect(),
        uplinks: uplinks(),
        chains: leme_datapath::chains()?,
        processes: processes(Path::new("/proc"))?,
        configurations: configurations(&places.cni_conf_dir),
        lacks: leme_datapath::kernel_lacks(),
        ..Observed::default()
    })
}

fn device_name(ifindex: u32) -> Option<String> {
    Some(nix::net::if_::if_indextoname(ifindex).ok()?.to_string_lossy().into_owned())
}

/// The stricter of both counts (Documentation/networking/ip-sysctl.rst): strict is 1, loose 2, and the larger wins.
fn rp_filter(device: &str) -> u8 {
    let setting = |name: &str| -> u8 {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    setting("all").max(setting(device))
}

/// Devices that routes of IPv4 lead out of, apart from our own and those of pods.
fn uplinks() -> BTreeSet<String> {
    let routes = fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    uplinks_of(&routes)
}

/// A device counts by a route that leads to more than one address: pods have one each.
fn uplinks_of(routes: &str) -> BTreeSet<String> {
    let fields = routes.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let wide = fields.filter(|fields| fields.get(7).is_some_and(|mask| *mask != "FFFFFFFF"));
    let names = wide.filter_map(|fields| fields.first().map(|name| name.to_string()));
    names.filter(|name| !name.starts_with("leme") && !is_bridge(name)).collect()
}

/// Of containers or virtual machines: not a way out.
fn is_bridge(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).join("bridge").exists()
}

/// Other networks' programs in this network namespace.
fn processes(proc: &Path) -> io::Result<BTreeSet<String>> {
    let ours = fs::read_link(proc.join("self/ns/net"))?;
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(proc)?.flatten() {
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
        let name = name.trim();
        if NETWORKS.contains(&name) && fs::read_link(entry.path().join("ns/net")).is_ok_and(|theirs| theirs == ours) {
            found.insert(name.to_owned());
        }
    }
    Ok(found)
}

/// Files that the runtime takes before ours: it sorts by name.
fn configurations(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let is_configuration = |name: &String| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
    let mut before: Vec<String> =
        names.filter(is_configuration).filter(|name| name.as_str() < cni_config::FILE).collect();
    before.sort();
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_configuration_by_name_is_the_runtimes() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["10-leme.conflist", "05-cilium.conflist", "00-readme.txt", "99-bridge.conf", "06-x.json"] {
            fs::write(dir.path().join(name), "{}").unwrap();
        }
        assert_eq!(configurations(dir.path()), ["05-cilium.conflist", "06-x.json"]);
        assert!(configurations(&dir.path().join("absent")).is_empty());
    }

    #[test]
    fn ways_out_are_read_from_the_routing_table() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            uplink0\t00000000\t0100590A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            uplink1\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            leme-vxlan\t0000F40A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            leme0123456789a\t0201F40A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n";
        assert_eq!(uplinks_of(table), BTreeSet::from(["uplink0".to_owned(), "uplink1".to_owned()]));
    }

    #[test]
    fn no_other_network_serves_where_the_tests_run() {
        assert!(processes(Path::new("/proc")).unwrap().is_empty());
    }
}
