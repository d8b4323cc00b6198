//! What a machine needs to know before it belongs to the cluster, where kubeadm looks for it: `cluster-info` for
//! anybody (a controller signs it with every bootstrap token), `kubeadm-config` and `kubelet-config` for who has one.

use std::net::SocketAddr;

use base64::{Engine, prelude::BASE64_STANDARD};
pub use leme_controllers::bootstrap_token::signature;
use serde_json::{Value, json};

use crate::{Config, api::health::VERSION};

pub const CLUSTER_INFO: (&str, &str) = ("kube-public", "cluster-info");

/// A kubeconfig that knows the cluster and nobody in it.
pub fn cluster_info(config: &Config, authority: &str, port: u16) -> Value {
    let server = format!("https://{}", SocketAddr::new(config.advertise, port));
    let encoded = BASE64_STANDARD.encode(authority);
    json!({"metadata": {"name": CLUSTER_INFO.1}, "data": {"kubeconfig": format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {encoded}\n    server: {server}\n  \
         name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {{}}\nusers: null\n"
    )}})
}

/// `ClusterConfiguration`, of which a joining node reads the version, the networks and the endpoint.
pub fn kubeadm_config(config: &Config, port: u16) -> Value {
    let endpoint = SocketAddr::new(config.advertise, port);
    let Config { cluster_domain, pod_cidr, service_cidr, .. } = config;
    json!({"metadata": {"name": "kubeadm-config"}, "data": {"ClusterConfiguration": format!(
        "apiServer: {{}}\napiVersion: kubeadm.k8s.io/v1beta4\ncaCertificateValidityPeriod: 87600h0m0s\n\
         certificateValidityPeriod: 8760h0m0s\ncertificatesDir: /etc/kubernetes/pki\nclusterName: kubernetes\n\
         controlPlaneEndpoint: {endpoint}\ncontrollerManager: {{}}\ndns: {{}}\nencryptionAlgorithm: ECDSA-P256\n\
         etcd:\n  local:\n    dataDir: /var/lib/etcd\nimageRepository: registry.k8s.io\nkind: ClusterConfiguration\n\
         kubernetesVersion: {VERSION}\nnetworking:\n  dnsDomain: {cluster_domain}\n  podSubnet: {pod_cidr}\n  \
         serviceSubnet: {service_cidr}\nproxy: {{}}\nscheduler: {{}}\n"
    )}})
}

/// `KubeletConfiguration` for upstream's kubelets; they are to speak JSON.
pub fn kubelet_config(config: &Config) -> Value {
    let (domain, dns) = (&config.cluster_domain, config.dns_address());
    json!({"metadata": {"name": "kubelet-config"}, "data": {"kubelet": format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nauthentication:\n  anonymous:\n    enabled: false\n  webhook:\n    \
         cacheTTL: 0s\n    enabled: true\n  x509:\n    clientCAFile: /etc/kubernetes/pki/ca.crt\nauthorization:\n  mode: \
         Webhook\n  webhook:\n    cacheAuthorizedTTL: 0s\n    cacheUnauthorizedTTL: 0s\nclusterDNS:\n- {dns}\n\
         clusterDomain: {domain}\ncontentType: application/json\nkind: KubeletConfiguration\nrotateCertificates: true\n\
         staticPodPath: /etc/kubernetes/manifests\n"
    )}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_joining_machines_read_is_yaml_that_says_what_the_cluster_is() {
        let config = Config::new([192, 0, 2, 10].into(), "/nowhere");
        let read = |object: &Value, key: &str| -> Value {
            serde_norway::from_str(object["data"][key].as_str().unwrap()).unwrap()
        };
        let info = read(&cluster_info(&config, "PEM", 6443), "kubeconfig");
        assert_eq!(info["clusters"][0]["cluster"]["server"], "https://192.0.2.10:6443");
        assert_eq!(info["clusters"][0]["cluster"]["certificate-authority-data"], BASE64_STANDARD.encode("PEM"));
        let cluster = read(&kubeadm_config(&config, 6443), "ClusterConfiguration");
        assert_eq!(cluster["controlPlaneEndpoint"], "192.0.2.10:6443");
        assert_eq!(
            (&cluster["kubernetesVersion"], &cluster["networking"]["podSubnet"]),
            (&VERSION.into(), &"10.244.0.0/16".into())
        );
        let kubelet = read(&kubelet_config(&config), "kubelet");
        assert_eq!(
            (&kubelet["contentType"], &kubelet["clusterDNS"][0]),
            (&"application/json".into(), &"10.96.0.10".into())
        );
        assert_eq!(kubelet["authorization"]["mode"], "Webhook");
    }
}
