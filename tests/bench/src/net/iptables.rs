//! The same Services as rules in the structure that kube-proxy documents for its iptables mode: KUBE-SERVICES holds one
//! rule per Service port and leads to its KUBE-SVC chain, which chooses a KUBE-SEP chain by chance, which translates.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::Result;

use super::namespace::Namespace;
use super::objects::{NAMESPACE, Port, Service};
use super::world::CLUSTER_RANGE;

pub(crate) const TOOL: &str = "iptables-legacy-restore";

/// From nothing to all Services.
pub(crate) fn load(net: &Namespace, rules: &str) -> Result<()> {
    net.run(TOOL, &["--wait"], rules)
}

/// As kube-proxy writes one change: only the chains that differ, the rest stays.
pub(crate) fn change(net: &Namespace, rules: &str) -> Result<()> {
    net.run(TOOL, &["--wait", "--noflush"], rules)
}

/// Both tables, whole.
pub(crate) fn rules(services: &[Service]) -> String {
    let mut chains = String::new();
    let mut rules = String::new();
    let mut last = String::new();
    for service in services {
        for port in &service.ports {
            write_port(service, port, &mut chains, &mut rules, &mut last);
        }
    }
    format!("{FILTER}*nat\n{NAT_CHAINS}{chains}{NAT_RULES}{rules}{LAST_RULE}{last}COMMIT\n")
}

/// The chains of one Service, written anew.
pub(crate) fn chains_of(service: &Service) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    for port in &service.ports {
        write_chains(service, port, &mut chains, &mut rules);
    }
    format!("*nat\n{chains}{rules}COMMIT\n")
}

fn write_port(service: &Service, port: &Port, chains: &mut String, rules: &mut String, node_ports: &mut String) {
    let (name, svc) = (title(service, port), chain("SVC", service, port, ""));
    let (address, number, proto) = (service.address, port.port, port.protocol.lower());
    // Writing to a string cannot fail.
    let _ = writeln!(
        rules,
        "-A KUBE-SERVICES -d {address}/32 -p {proto} -m comment --comment \"{name} cluster IP\" -m {proto} --dport \
         {number} -j {svc}"
    );
    if let Some(number) = port.node_port {
        let ext = chain("EXT", service, port, "");
        let _ = writeln!(chains, ":{ext} - [0:0]");
        let _ = writeln!(
            node_ports,
            "-A KUBE-NODEPORTS -p {proto} -m comment --comment \"{name}\" -m {proto} --dport {number} -j {ext}"
        );
        let _ = writeln!(
            rules,
            "-A {ext} -m comment --comment \"masquerade traffic for {name} external destinations\" -j KUBE-MARK-MASQ"
        );
        let _ = writeln!(rules, "-A {ext} -j {svc}");
    }
    write_chains(service, port, chains, rules);
}

fn write_chains(service: &Service, port: &Port, chains: &mut String, rules: &mut String) {
    let (name, svc) = (title(service, port), chain("SVC", service, port, ""));
    let (address, number, proto) = (service.address, port.port, port.protocol.lower());
    let _ = writeln!(chains, ":{svc} - [0:0]");
    let _ = writeln!(
        rules,
        "-A {svc} ! -s {CLUSTER_RANGE} -d {address}/32 -p {proto} -m comment --comment \"{name} cluster IP\" -m {proto} \
         --dport {number} -j KUBE-MARK-MASQ"
    );
    for (n, (endpoint, _)) in port.endpoints.iter().enumerate() {
        let sep = chain("SEP", service, port, &endpoint.to_string());
        let chance = match port.endpoints.len() - n {
            1 => String::new(),
            left => format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64),
        };
        let _ = writeln!(chains, ":{sep} - [0:0]");
        let _ = writeln!(rules, "-A {svc} -m comment --comment \"{name} -> {endpoint}\"{chance} -j {sep}");
        let _ = writeln!(
            rules,
            "-A {sep} -s {}/32 -m comment --comment \"{name}\" -j KUBE-MARK-MASQ\n-A {sep} -p {proto} -m comment \
             --comment \"{name}\" -m {proto} -j DNAT --to-destination {endpoint}",
            endpoint.ip()
        );
    }
}

fn title(service: &Service, port: &Port) -> String {
    format!("{NAMESPACE}/{}:{}", service.name, port.name)
}

/// Sixteen characters of a hash, as long as kube-proxy's.
fn chain(kind: &str, service: &Service, port: &Port, endpoint: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (title(service, port), port.protocol.lower(), endpoint).hash(&mut hasher);
    format!("KUBE-{kind}-{:016X}", hasher.finish())
}

const FILTER: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

const NAT_CHAINS: &str = "\
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
";

const NAT_RULES: &str = "\
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
";

const LAST_RULE: &str = "\
-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" \
-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::net::objects::services;

    #[test]
    fn every_chain_that_is_jumped_to_is_declared_once() {
        let text = rules(&services(5, 3));
        for table in text.split("COMMIT\n").filter(|table| !table.is_empty()) {
            let declared: Vec<_> = table.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next()).collect();
            let known: BTreeSet<_> = declared.iter().copied().collect();
            assert_eq!(known.len(), declared.len());
            let wanted = table.lines().filter_map(|line| line.split(" -j ").nth(1)?.split(' ').next());
            for chain in wanted.filter(|chain| chain.starts_with("KUBE-")) {
                assert!(known.contains(chain), "{chain}");
            }
        }
    }

    #[test]
    fn endpoints_share_alike_and_the_last_takes_the_rest() {
        let text = rules(&services(5, 3));
        let chances = |service: &str| {
            let lines = text.lines().filter(|line| line.contains(&format!("{service}:http -> ")));
            lines.map(|line| line.split("--probability ").nth(1).map(|rest| rest[..6].to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(chances("service-1"), [Some("0.3333".to_owned()), Some("0.5000".to_owned()), None]);
        assert!(text.trim_end().lines().rev().nth(1).unwrap().starts_with("-A KUBE-NODEPORTS"));
    }

    #[test]
    fn a_change_names_only_its_own_chains() {
        let text = chains_of(&services(5, 3)[1]);
        assert_eq!(text.lines().filter(|line| line.starts_with(':')).count(), 4);
        assert!(!text.contains("-A KUBE-SERVICES"));
    }
}
