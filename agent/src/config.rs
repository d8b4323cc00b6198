//! What an agent must be told: filled by `cli` from flags, read by every part of the node, never changed after start.
//!
//! The defaults are the kubelet's, so that a node looks to people and tools the way they expect.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Taint;

pub use crate::node::Thresholds;
pub use crate::pods::image_gc::Limits;
use leme_datapath::{NodePorts, SocketLb};

/// The version of Kubernetes this node speaks, reported as `kubeletVersion`.
pub const KUBELET_VERSION: &str = "v1.36.2";

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    pub node_ip: IpAddr,
    pub kubeconfig: PathBuf,
    /// With what the agent asks for a certificate where there is no kubeconfig yet.
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Pods' volumes, hosts files and termination messages.
    pub root_dir: PathBuf,
    /// Sockets and pid files.
    pub run_dir: PathBuf,
    /// `<namespace>_<pod>_<uid>/<container>/<attempt>.log` below it.
    pub pod_log_dir: PathBuf,
    /// containerd's unix socket, without a scheme.
    pub container_runtime_endpoint: PathBuf,
    /// Absolute: pods live in `<cgroup_root>/kubepods/…` of every hierarchy.
    pub cgroup_root: String,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// What pods with `dnsPolicy: Default` get, and where the search list of the others ends.
    pub resolv_conf: PathBuf,
    pub max_pods: u32,
    /// Below these the node is under pressure, and they are kept from what its pods may ask for.
    pub eviction_hard: Thresholds,
    /// How full the images' disk may be.
    pub image_gc: Limits,
    pub node_labels: BTreeMap<String, String>,
    pub register_with_taints: Vec<Taint>,
    /// Only the network part: another kubelet runs the pods.
    pub network_only: bool,
    /// Another CNI plugin and another proxy serve this node's network.
    pub foreign_network: bool,
    /// Where the kubelet's API listens; without a certificate one is made for the run and signed by nobody.
    pub kubelet_address: SocketAddr,
    pub tls_cert_file: Option<PathBuf>,
    pub tls_private_key_file: Option<PathBuf>,
    /// Authority of the clients of the kubelet's API.
    pub client_ca_file: Option<PathBuf>,
    pub healthz_address: SocketAddr,
    /// Where load balancers look whether the node serves Services, as at kube-proxy.
    pub proxy_healthz_address: Option<SocketAddr>,
    /// On which addresses NodePorts answer, as kube-proxy's `--nodeport-addresses`.
    pub node_ports: NodePorts,
    /// Whose sockets get a backend when they name a Service.
    pub socket_lb: SocketLb,
    /// Room for at least so many connections.
    pub conntrack_min: u32,
    pub bpf_dir: PathBuf,
    /// The command line of the name server's process; empty: none is started.
    pub dns_command: Vec<String>,
    /// Where containerd looks for network configurations and plugins.
    pub cni_conf_dir: PathBuf,
    pub cni_bin_dir: PathBuf,
    /// The plugin to install into `cni_bin_dir`; none: it is there already.
    pub cni_plugin: Option<PathBuf>,
    /// The cluster's pod range, whose packets are never masqueraded.
    pub cluster_cidr: String,
    /// Outside ranges that see pods' own addresses.
    pub non_masquerade_cidrs: Vec<String>,
}

impl Config {
    pub fn new(node_name: impl Into<String>, node_ip: IpAddr, kubeconfig: PathBuf) -> Self {
        Self {
            node_name: node_name.into(),
            node_ip,
            kubeconfig,
            bootstrap_kubeconfig: None,
            root_dir: "/var/lib/kubelet".into(),
            run_dir: "/run/leme".into(),
            pod_log_dir: "/var/log/pods".into(),
            container_runtime_endpoint: "/run/containerd/containerd.sock".into(),
            cgroup_root: "/".into(),
            cluster_dns: vec![Ipv4Addr::new(10, 96, 0, 10).into()],
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            max_pods: 110,
            eviction_hard: Thresholds::default(),
            image_gc: Limits::default(),
            node_labels: BTreeMap::new(),
            register_with_taints: Vec::new(),
            network_only: false,
            foreign_network: false,
            kubelet_address: (Ipv4Addr::UNSPECIFIED, 10250).into(),
            tls_cert_file: None,
            tls_private_key_file: None,
            client_ca_file: None,
            healthz_address: (Ipv4Addr::LOCALHOST, 10248).into(),
            proxy_healthz_address: Some((Ipv4Addr::UNSPECIFIED, 10256).into()),
            node_ports: NodePorts::default(),
            socket_lb: SocketLb::default(),
            conntrack_min: 0,
            bpf_dir: "/sys/fs/bpf/leme".into(),
            dns_command: Vec::new(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dir: "/opt/cni/bin".into(),
            cni_plugin: None,
            cluster_cidr: "10.244.0.0/16".into(),
            non_masquerade_cidrs: Vec::new(),
        }
    }
}
