//! The sandbox a pod asks for: names, namespaces, cgroup, name resolution. Pure, from the pod and the node's config.

use std::collections::HashMap;
use std::path::PathBuf;

use k8s_cri::v1::*;
use k8s_openapi::api::core::v1 as core;

use super::{labels, resources, security};
use crate::Config;

pub fn name(pod: &core::Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &core::Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

pub fn uid(pod: &core::Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn is_host_network(pod: &core::Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// `<namespace>_<name>_<uid>`, where kubectl plug-ins and log shippers look.
pub fn log_directory(config: &Config, pod: &core::Pod) -> PathBuf {
    config.pod_log_dir.join(format!("{}_{}_{}", namespace(pod), name(pod), uid(pod)))
}

/// Below every hierarchy's mount point.
pub fn cgroup(config: &Config, pod: &core::Pod) -> String {
    let class = match resources::qos(pod) {
        resources::Qos::Guaranteed => "",
        resources::Qos::Burstable => "/burstable",
        resources::Qos::BestEffort => "/besteffort",
    };
    format!("{}/kubepods{class}/pod{}", config.cgroup_root.trim_end_matches('/'), uid(pod))
}

pub fn identity(pod: &core::Pod) -> HashMap<String, String> {
    HashMap::from([
        (labels::POD_NAME.into(), name(pod).into()),
        (labels::POD_NAMESPACE.into(), namespace(pod).into()),
        (labels::POD_UID.into(), uid(pod).into()),
    ])
}

pub fn config(config: &Config, pod: &core::Pod, attempt: u32, host_resolv_conf: &str) -> PodSandboxConfig {
    let mut labels = identity(pod);
    labels.extend(pod.metadata.labels.clone().into_iter().flatten());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name(pod).into(),
            uid: uid(pod).into(),
            namespace: namespace(pod).into(),
            attempt,
        }),
        hostname: if is_host_network(pod) { String::new() } else { hostname(config, pod).0 },
        log_directory: log_directory(config, pod).to_string_lossy().into_owned(),
        dns_config: Some(dns(config, pod, host_resolv_conf)),
        port_mappings: port_mappings(pod),
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup(config, pod),
            security_context: Some(security::of_sandbox(pod)),
            sysctls: sysctls(pod),
            ..Default::default()
        }),
        windows: None,
    }
}

/// The host name, and the domain that makes it fully qualified where a subdomain is set.
pub fn hostname(config: &Config, pod: &core::Pod) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    if let Some(whole) = spec.and_then(|spec| spec.hostname_override.as_deref()) {
        return (whole.into(), None);
    }
    let own = spec.and_then(|spec| spec.hostname.as_deref()).filter(|name| !name.is_empty());
    let short = own.unwrap_or(name(pod)).chars().take(63).collect::<String>();
    let short = short.trim_end_matches(['-', '.']).to_owned();
    let subdomain = spec.and_then(|spec| spec.subdomain.as_deref()).filter(|name| !name.is_empty());
    let domain = subdomain.map(|sub| format!("{sub}.{}.svc.{}", namespace(pod), config.cluster_domain));
    match (spec.and_then(|spec| spec.set_hostname_as_fqdn), domain) {
        (Some(true), Some(domain)) => (format!("{short}.{domain}"), None),
        (_, domain) => (short, domain),
    }
}

fn sysctls(pod: &core::Pod) -> HashMap<String, String> {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let sysctls = context.and_then(|context| context.sysctls.as_ref());
    sysctls.into_iter().flatten().map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone())).collect()
}

fn port_mappings(pod: &core::Pod) -> Vec<PortMapping> {
    if is_host_network(pod) {
        return Vec::new();
    }
    let containers = super::plan::containers(pod).flat_map(|(_, container)| container.ports.iter().flatten());
    let mapping = |port: &core::ContainerPort| PortMapping {
        protocol: match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        } as i32,
        container_port: port.container_port,
        host_port: port.host_port.unwrap_or(0),
        host_ip: port.host_ip.clone().unwrap_or_default(),
    };
    containers.map(mapping).collect()
}

/// The resolver's configuration by `dnsPolicy`, with `dnsConfig` on top.
pub fn dns(config: &Config, pod: &core::Pod, host_resolv_conf: &str) -> DnsConfig {
    let spec = pod.spec.as_ref();
    let host = parse_resolv_conf(host_resolv_conf);
    let cluster = || DnsConfig {
        servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
        searches: cluster_searches(config, namespace(pod)).chain(host.searches.clone()).collect(),
        options: vec!["ndots:5".into()],
    };
    let policy = spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let mut dns = match policy {
        "None" => DnsConfig::default(),
        "ClusterFirstWithHostNet" => cluster(),
        "ClusterFirst" if !is_host_network(pod) && !config.cluster_dns.is_empty() => cluster(),
        _ => host.clone(),
    };
    if let Some(more) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        append(&mut dns.servers, more.nameservers.iter().flatten().cloned());
        append(&mut dns.searches, more.searches.iter().flatten().cloned());
        for option in more.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            dns.options.retain(|other| other.split(':').next() != Some(&name));
            dns.options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    dns
}

fn cluster_searches(config: &Config, namespace: &str) -> impl Iterator<Item = String> {
    let domain = &config.cluster_domain;
    [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()].into_iter()
}

fn append(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words.next()),
            // The last one counts, as for the C library.
            Some("search") => dns.searches = words.filter(|domain| domain != ".").collect(),
            Some("options") => dns.options = words.collect(),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HOST: &str = "# mine\nnameserver 192.0.2.1\nsearch example.org .\noptions timeout:1\n";

    fn node() -> Config {
        Config::new("n1", "192.0.2.7".parse().unwrap(), PathBuf::new())
    }

    fn pod(spec: serde_json::Value) -> core::Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    #[test]
    fn each_policy_gives_its_resolver() {
        let search = ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.org"];
        for (spec, servers, searches, options) in [
            (json!({}), "10.96.0.10", search.as_slice(), "ndots:5"),
            (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), "192.0.2.1", &["example.org"], "timeout:1"),
            (json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}), "10.96.0.10", &search, "ndots:5"),
            (json!({"dnsPolicy": "Default"}), "192.0.2.1", &["example.org"], "timeout:1"),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a.b"],
                       "options": [{"name": "ndots", "value": "2"}]}}),
                "1.1.1.1",
                &["a.b"],
                "ndots:2",
            ),
        ] {
            let dns = dns(&node(), &pod(spec.clone()), HOST);
            assert_eq!(dns.servers, [servers], "{spec}");
            assert_eq!(dns.searches, searches, "{spec}");
            assert_eq!(dns.options, [options], "{spec}");
        }
    }

    #[test]
    fn a_subdomain_qualifies_the_host_name() {
        assert_eq!(hostname(&node(), &pod(json!({}))), ("web-0".into(), None));
        let domain = Some("web.ns.svc.cluster.local".to_owned());
        assert_eq!(hostname(&node(), &pod(json!({"hostname": "h", "subdomain": "web"}))), ("h".into(), domain));
        let whole = hostname(&node(), &pod(json!({"subdomain": "web", "setHostnameAsFQDN": true})));
        assert_eq!(whole, ("web-0.web.ns.svc.cluster.local".into(), None));
    }
}
