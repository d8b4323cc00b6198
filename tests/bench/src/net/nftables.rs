//! The same Services as rules in the structure that kube-proxy documents for its nftables mode: one verdict map from
//! address, protocol and port to the Service's chain, which draws a number for the endpoint's chain, which translates.

use std::fmt::Write;

use anyhow::Result;

use super::namespace::Namespace;
use super::objects::{NAMESPACE, Port, Service};
use super::world::CLUSTER_RANGE;

pub(crate) const TOOL: &str = "nft";

/// Services per transaction. kube-proxy writes all in one, where the kernel walks the whole transaction for each
/// Service's anonymous map: ten thousand Services with ten endpoints hold a processor for minutes, and the machine with it.
pub(crate) const BATCH: usize = 1_000;

/// Transaction by transaction.
pub(crate) fn load(net: &Namespace, transactions: &[String]) -> Result<()> {
    transactions.iter().try_for_each(|rules| net.run(TOOL, &["-f", "-"], rules))
}

/// The table, whole. `nodes` are the addresses on which NodePorts answer.
pub(crate) fn rules(services: &[Service], nodes: &[std::net::Ipv4Addr]) -> Vec<String> {
    let mut base = format!("{BASE}add rule ip kube-proxy services {NODE_PORT_RULE}\n");
    for address in nodes {
        let _ = writeln!(base, "add element ip kube-proxy nodeport-ips {{ {address} }}");
    }
    std::iter::once(base).chain(services.chunks(BATCH).map(transaction)).collect()
}

fn transaction(services: &[Service]) -> String {
    let mut text = String::new();
    for service in services {
        let _ = writeln!(text, "add element ip kube-proxy cluster-ips {{ {} }}", service.address);
        for port in &service.ports {
            write_port(service, port, &mut text);
        }
    }
    text
}

/// The chains of one Service, written anew.
pub(crate) fn chains_of(service: &Service) -> String {
    let mut text = String::new();
    for port in &service.ports {
        write_chains(service, port, &mut text);
    }
    text
}

fn write_port(service: &Service, port: &Port, text: &mut String) {
    write_chains(service, port, text);
    let (name, address, number, proto) =
        (chain("service", service, port), service.address, port.port, port.protocol.lower());
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "add element ip kube-proxy service-ips {{ {address} . {proto} . {number} comment \"{}\" : goto {name} }}",
        title(service, port)
    );
    if let Some(number) = port.node_port {
        let external = chain("external", service, port);
        let _ = writeln!(
            text,
            "add chain ip kube-proxy {external}\nadd rule ip kube-proxy {external} jump mark-for-masquerade\nadd rule ip \
             kube-proxy {external} goto {name}\nadd element ip kube-proxy service-nodeports {{ {proto} . {number} \
             comment \"{}\" : goto {external} }}",
            title(service, port)
        );
    }
}

fn write_chains(service: &Service, port: &Port, text: &mut String) {
    let (name, address, number, proto) =
        (chain("service", service, port), service.address, port.port, port.protocol.lower());
    let mut goes = Vec::new();
    for (n, (endpoint, _)) in port.endpoints.iter().enumerate() {
        let target = format!("{}__{}/{}", chain("endpoint", service, port), endpoint.ip(), endpoint.port());
        let _ = writeln!(
            text,
            "add chain ip kube-proxy {target}\nflush chain ip kube-proxy {target}\nadd rule ip kube-proxy {target} ip \
             saddr {} jump mark-for-masquerade\nadd rule ip kube-proxy {target} meta l4proto {proto} dnat to {endpoint}",
            endpoint.ip()
        );
        goes.push(format!("{n} : goto {target}"));
    }
    let _ = writeln!(
        text,
        "add chain ip kube-proxy {name}\nflush chain ip kube-proxy {name}\nadd rule ip kube-proxy {name} ip daddr \
         {address} {proto} dport {number} ip saddr != {CLUSTER_RANGE} jump mark-for-masquerade\nadd rule ip kube-proxy \
         {name} numgen random mod {} vmap {{ {} }}",
        goes.len(),
        goes.join(", ")
    );
}

fn title(service: &Service, port: &Port) -> String {
    format!("{NAMESPACE}/{}:{}", service.name, port.name)
}

fn chain(kind: &str, service: &Service, port: &Port) -> String {
    format!("{kind}-{NAMESPACE}/{}/{}/{}", service.name, port.protocol.lower(), port.name)
}

const BASE: &str = "\
add table ip kube-proxy
add set ip kube-proxy cluster-ips { type ipv4_addr; }
add set ip kube-proxy nodeport-ips { type ipv4_addr; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
add map ip kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
add map ip kube-proxy firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict; }
add chain ip kube-proxy mark-for-masquerade
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add chain ip kube-proxy masquerading
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
add chain ip kube-proxy services
add chain ip kube-proxy firewall-check
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add chain ip kube-proxy service-endpoints-check
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add chain ip kube-proxy nodeport-endpoints-check
add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add chain ip kube-proxy cluster-ips-check
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject
add chain ip kube-proxy filter-prerouting { type filter hook prerouting priority -110; }
add rule ip kube-proxy filter-prerouting ct state new jump firewall-check
add chain ip kube-proxy filter-input { type filter hook input priority -110; }
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add chain ip kube-proxy filter-forward { type filter hook forward priority -110; }
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add chain ip kube-proxy filter-output { type filter hook output priority -110; }
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump firewall-check
add chain ip kube-proxy filter-output-post-dnat { type filter hook output priority -90; }
add rule ip kube-proxy filter-output-post-dnat ct state new jump cluster-ips-check
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100; }
add rule ip kube-proxy nat-prerouting jump services
add chain ip kube-proxy nat-output { type nat hook output priority -100; }
add rule ip kube-proxy nat-output jump services
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100; }
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
";

const NODE_PORT_RULE: &str = "ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::net::objects::services;

    #[test]
    fn every_chain_that_is_gone_to_exists_before() {
        let mut known = BTreeSet::new();
        for line in rules(&services(5, 3), &[]).concat().lines() {
            if let Some(rest) = line.strip_prefix("add chain ip kube-proxy ") {
                known.insert(rest.split(' ').next().unwrap().to_owned());
            }
            for part in line.split("goto ").skip(1) {
                let chain = part.split([' ', ',']).next().unwrap();
                assert!(known.contains(chain), "{chain}");
            }
        }
    }

    #[test]
    fn a_service_draws_among_its_endpoints() {
        let text = chains_of(&services(5, 3)[1]);
        assert!(
            text.contains("numgen random mod 3 vmap { 0 : goto endpoint-bench/service-1/tcp/http__10.129.0.3/8080, ")
        );
    }
}
