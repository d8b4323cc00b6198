//! The managed `/etc/hosts` of a pod's containers, in upstream's words.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use k8s_openapi::api::core::v1 as core;

use super::sandbox::{hostname, is_host_network, uid};
use crate::{Config, volumes};

const POD: &str = "# Kubernetes-managed hosts file.\n\
    127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    fe00::0\tip6-mcastprefix\n\
    fe00::1\tip6-allnodes\n\
    fe00::2\tip6-allrouters\n";
const HOST: &str = "# Kubernetes-managed hosts file (host network).\n";

pub fn path(config: &Config, pod: &core::Pod) -> PathBuf {
    volumes::pod_directory(config, uid(pod)).join("etc-hosts")
}

pub fn contents(config: &Config, pod: &core::Pod, ips: &[IpAddr], of_host: &str) -> String {
    let mut text = if is_host_network(pod) {
        format!("{HOST}{of_host}")
    } else {
        let (host, domain) = hostname(config, pod);
        let names = domain.map_or(host.clone(), |domain| format!("{host}.{domain}\t{host}"));
        ips.iter().fold(POD.to_owned(), |text, ip| text + &format!("{ip}\t{names}\n"))
    };
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        writeln!(text, "{}\t{names}", alias.ip).expect("writing to a string cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_finds_itself_and_its_aliases() {
        let pod = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": {
            "containers": [], "subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}}))
        .unwrap();
        let config = Config::new("n", "192.0.2.1".parse().unwrap(), PathBuf::new());
        let text = contents(&config, &pod, &["10.244.0.5".parse().unwrap()], "");
        assert!(text.contains("\n10.244.0.5\tweb.s.ns.svc.cluster.local\tweb\n"), "{text}");
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
    }
}
