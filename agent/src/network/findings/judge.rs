//! From what was seen to what is wrong: pure.

use std::collections::BTreeSet;

use leme_datapath::{Chain, Foreign, MapFill};

use super::{Finding, Severity};

/// A device towards the outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Nic {
    pub name: String,
    /// The stricter of the device's own setting and that for all: 1 is strict.
    pub rp_filter: u8,
}

/// Everything that was looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    pub nics: Vec<Nic>,
    /// Devices with addresses of their own that lead out of the node, NICs or not.
    pub uplinks: BTreeSet<String>,
    pub foreign: BTreeSet<Foreign>,
    /// Attachments of ours that were gone.
    pub restored: BTreeSet<String>,
    /// Devices of ours that were not allowed to forward.
    pub forwarding: BTreeSet<String>,
    pub chains: BTreeSet<Chain>,
    /// Other networks' programs that run here.
    pub processes: BTreeSet<String>,
    /// Network configurations that the runtime prefers to ours.
    pub configurations: Vec<String>,
    /// Other VXLAN devices on our port.
    pub tunnels: BTreeSet<String>,
    /// What the kernel lacks, and what that means.
    pub lacks: Vec<(&'static str, &'static str)>,
    pub fill: Vec<MapFill>,
}

/// From this fill on the promise that no live connection is lost is in danger.
const FULL_PERCENT: usize = 80;

pub(super) fn judge(observed: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(strict_filters(observed));
    findings.extend(observed.foreign.iter().map(foreign));
    findings.extend(observed.restored.iter().map(|what| {
        warning(
            "program-detached",
            format!("somebody detached {what}; it is attached again"),
            "find who did it: another network's agent, or a clean-up script that removes all BPF programs",
        )
    }));
    findings.extend(observed.forwarding.iter().map(|device| {
        warning(
            "forwarding-off",
            format!("forwarding was switched off for {device}, through which pods reach the outside; it is on again"),
            "find what sets net.ipv4.ip_forward or net.ipv4.conf.*.forwarding to 0, often a file in /etc/sysctl.d",
        )
    }));
    findings.extend(leftovers(&observed.chains));
    findings.extend(observed.processes.iter().map(|name| {
        error(
            "foreign-network-agent",
            format!("{name} runs on this node"),
            "two networks cannot serve the same pods and Services: remove its DaemonSet, then what it left behind",
        )
    }));
    findings.extend(observed.configurations.first().map(|file| {
        error(
            "cni-config-shadowed",
            format!("the container runtime gives new pods the network of {file}, which comes before Leme's"),
            "remove that file, and the plugin that writes it",
        )
    }));
    findings.extend(observed.tunnels.iter().map(|device| {
        warning(
            "foreign-vxlan",
            format!("{device} is another VXLAN device on UDP port 4789"),
            "remove it, or move it to another port: tunnel packets may end up in it",
        )
    }));
    findings.extend(observed.fill.iter().filter(|fill| is_filling(fill)).map(filling));
    findings.extend(observed.lacks.iter().map(|(feature, meaning)| Finding {
        id: format!("kernel-lacks-{feature}"),
        severity: Severity::Info,
        what: format!("this kernel lacks {feature}: {meaning}"),
        advice: "nothing has to be done; a newer kernel has it".into(),
    }));
    findings
}

fn warning(id: &str, what: String, advice: &str) -> Finding {
    Finding { id: id.into(), severity: Severity::Warning, what, advice: advice.into() }
}

fn error(id: &str, what: String, advice: &str) -> Finding {
    Finding { severity: Severity::Error, ..warning(id, what, advice) }
}

/// With one way out, every answer goes back where its question came from, and a strict filter changes nothing: pods'
/// packets do not pass it, and what comes from other nodes' pods has its route through the tunnel. With several it
/// drops what arrives by one and is answered by another, tunnel packets included.
fn strict_filters(observed: &Observed) -> Vec<Finding> {
    if observed.uplinks.len() < 2 {
        return Vec::new();
    }
    let all = observed.uplinks.iter().cloned().collect::<Vec<_>>().join(", ");
    let strict = observed.nics.iter().filter(|nic| nic.rp_filter == 1);
    let told = strict.map(|Nic { name, .. }| Finding {
        id: "strict-rp-filter".into(),
        severity: Severity::Warning,
        what: format!("{name} drops packets whose answer would leave by another device, and this node has several: {all}"),
        advice: format!(
            "set net.ipv4.conf.all.rp_filter and net.ipv4.conf.{name}.rp_filter to 2 (loose), in /etc/sysctl.d to keep it"
        ),
    });
    told.collect()
}

fn foreign(Foreign { device, hook, program }: &Foreign) -> Finding {
    let (id, advice) = match hook.as_str() {
        "XDP" => ("foreign-xdp", format!("if it does not belong there: `ip link set dev {device} xdp off`")),
        _ => ("foreign-tc", format!("if it does not belong there: `bpftool net show dev {device}` names its link")),
    };
    let what =
        format!("{hook} program {program} on {device} comes before Leme: what it drops or redirects is never seen");
    warning(id, what, &advice)
}

/// Chains by their owner; those that the kubelet makes too are not among them.
fn owner(chain: &Chain) -> Option<&'static str> {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| chain.name.starts_with(prefix));
    if chain.home == "nftables" && chain.table == "kube-proxy" {
        return Some("kube-proxy");
    }
    let known: [(&str, &[&str]); 5] = [
        ("kube-proxy", &["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-NODE-PORT"]),
        ("Cilium", &["CILIUM_"]),
        ("Calico", &["cali-"]),
        ("flannel", &["FLANNEL-"]),
        ("kube-router", &["KUBE-ROUTER-", "KUBE-NWPLCY-"]),
    ];
    known.into_iter().find(|(_, prefixes)| starts(prefixes)).map(|(owner, _)| owner)
}

fn leftovers(chains: &BTreeSet<Chain>) -> Vec<Finding> {
    let homes: BTreeSet<(&str, String)> = chains
        .iter()
        .filter_map(|chain| Some((owner(chain)?, format!("{} table {}", chain.home, chain.table))))
        .collect();
    let told = homes.into_iter().map(|(owner, home)| {
        let (id, advice) = match owner {
            "kube-proxy" => (
                "kube-proxy-rules",
                "stop kube-proxy (its DaemonSet) and run `kube-proxy --cleanup`, or restart the node",
            ),
            _ => ("foreign-network-rules", "remove that network, and restart the node to be rid of its rules"),
        };
        warning(
            id,
            format!("rules of {owner} are in {home}; they act on packets that Leme leaves to the kernel"),
            advice,
        )
    });
    told.collect()
}

fn is_filling(fill: &MapFill) -> bool {
    fill.entries * 100 > fill.capacity as usize * FULL_PERCENT
}

fn filling(fill: &MapFill) -> Finding {
    let MapFill { map, .. } = fill;
    let advice = match *map {
        "conntrack" | "nat" => {
            "look for a flood with `leme bpf conntrack`; the room follows the machine's memory: past it the oldest go first"
        }
        "fragments" | "sender_origin" => "nothing has to be done: the oldest entries go first",
        _ => "the node serves more than it was made for: fewer Services or endpoints, or a larger table",
    };
    let severity = if matches!(*map, "fragments" | "sender_origin") { Severity::Info } else { Severity::Warning };
    // Without the exact figure, which changes all the time: the metric has it.
    let what = format!("the table {map} is more than {FULL_PERCENT} % full");
    Finding { id: "map-filling".into(), severity, what, advice: advice.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(observed: &Observed) -> Vec<String> {
        judge(observed).into_iter().map(|finding| finding.id).collect()
    }

    fn chain(home: &'static str, table: &str, name: &str) -> Chain {
        Chain { home, table: table.into(), name: name.into() }
    }

    #[test]
    fn a_quiet_node_has_no_findings() {
        let nic = Nic { name: "eth0".into(), rp_filter: 1 };
        let fill = vec![MapFill { map: "conntrack", entries: 80, capacity: 100 }];
        let chains = BTreeSet::from([chain("iptables", "nat", "DOCKER"), chain("nftables", "filter", "KUBE-FIREWALL")]);
        let uplinks = BTreeSet::from(["eth0".to_owned()]);
        assert!(ids(&Observed { nics: vec![nic], uplinks, fill, chains, ..Observed::default() }).is_empty());
    }

    #[test]
    fn a_strict_filter_is_wrong_where_there_are_several_ways_out() {
        let nic = |name: &str, rp_filter| Nic { name: name.into(), rp_filter };
        let uplinks = BTreeSet::from(["eth0".to_owned(), "eth1".to_owned()]);
        let nics = vec![nic("eth0", 1), nic("eth1", 2)];
        let found = judge(&Observed { nics, uplinks, ..Observed::default() });
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("eth0, eth1") && found[0].advice.contains("conf.eth0.rp_filter"), "{found:?}");
    }

    #[test]
    fn other_networks_rules_are_told_by_owner_and_place() {
        let chains = BTreeSet::from([
            chain("iptables", "nat", "KUBE-SERVICES"),
            chain("iptables", "nat", "KUBE-SVC-ABC"),
            chain("iptables", "filter", "cali-FORWARD"),
            chain("nftables", "kube-proxy", "services"),
        ]);
        let found = judge(&Observed { chains, ..Observed::default() });
        let ids: Vec<_> = found.iter().map(|finding| finding.id.as_str()).collect();
        assert_eq!(ids, ["foreign-network-rules", "kube-proxy-rules", "kube-proxy-rules"]);
        assert!(found[1].what.contains("iptables table nat") && found[2].what.contains("nftables table kube-proxy"));
    }

    #[test]
    fn each_thing_that_was_seen_is_told() {
        let program = |hook: &str| Foreign { device: "eth0".into(), hook: hook.into(), program: "x (id 7)".into() };
        let one = |text: &str| BTreeSet::from([text.to_owned()]);
        let observed = Observed {
            foreign: BTreeSet::from([program("XDP"), program("tc ingress")]),
            restored: one("connect4 on the node's cgroup"),
            forwarding: one("leme-vxlan"),
            processes: one("kube-proxy"),
            configurations: vec!["05-cilium.conflist".into(), "06-other.conf".into()],
            tunnels: one("flannel.1"),
            lacks: vec![("tcx", "programs are attached as classic filters")],
            fill: vec![MapFill { map: "nat", entries: 81, capacity: 100 }],
            ..Observed::default()
        };
        let expected = [
            "foreign-xdp",
            "foreign-tc",
            "program-detached",
            "forwarding-off",
            "foreign-network-agent",
            "cni-config-shadowed",
            "foreign-vxlan",
            "map-filling",
            "kernel-lacks-tcx",
        ];
        assert_eq!(ids(&observed), expected);
        for finding in judge(&observed) {
            assert!(!finding.what.ends_with('.') && finding.advice.len() > 20, "{finding:?}");
        }
    }
}
