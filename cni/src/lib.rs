//! What the CNI plugin and the agent say to each other: one JSON request and one JSON reply over a unix socket.
//!
//! The plugin (`main.rs`) speaks the CNI specification to the container runtime and this to the agent; the agent's
//! `network::cni_server` is the other end. The types are neutral of the specification's versions: only the plugin knows
//! how 0.3.1 and 1.1.0 differ. Nothing here does IO.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

mod capabilities;
pub mod spec;

/// Where the agent listens unless the network configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/leme/cni.sock";
/// The plugin's name: the `type` in network configurations and the file's name in the CNI binary directory.
pub const PLUGIN: &str = "leme-cni";
/// A request or reply longer than this is refused (a GC names every container of the node).
pub const MAX_MESSAGE: usize = 4 << 20;

/// The verbs that reach the agent; VERSION is answered by the plugin alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
}

/// One container's interface, as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentId {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

/// The pod behind the container, from `CNI_ARGS`; empty where the runtime is not a Kubernetes one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// What the pod asks for besides an address: the `runtimeConfig` of the capabilities that the network declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
}

/// How fast the pod may receive (ingress) and send (egress): bits per second, and bits that may come at once. 0: no limit,
/// and the agent's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    #[serde(alias = "IngressRate")]
    pub ingress_rate: u64,
    #[serde(alias = "IngressBurst")]
    pub ingress_burst: u64,
    #[serde(alias = "EgressRate")]
    pub egress_rate: u64,
    #[serde(alias = "EgressBurst")]
    pub egress_burst: u64,
}

/// A port of the node that leads to the pod (`hostPort` in Kubernetes).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Transport,
    /// None: every address of the node.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

impl Transport {
    /// Protocol number of the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Plugin to agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    pub command: Command,
    /// The network's name in the configuration.
    pub network: String,
    /// Absent for STATUS and GC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentId>,
    /// Path of the container's network namespace; DEL may come without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    #[serde(default)]
    pub pod: PodRef,
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// CHECK: the addresses that the runtime remembers from ADD.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<Ipv4Addr>,
    /// GC: everything that is still in use; all else is to be released.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub valid: Vec<AttachmentId>,
}

/// What ADD made: enough to print a result of any version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub mtu: u32,
    pub host_ifname: String,
    pub host_mac: String,
    pub ifname: String,
    pub mac: String,
    pub netns: String,
}

/// Agent to plugin: nothing to say, an attachment, or what went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    Done,
    Attached(Attachment),
    Failed(Failure),
}

/// An error as the CNI specification has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct Failure {
    pub code: u32,
    pub msg: String,
    #[serde(default)]
    pub details: String,
}

impl Failure {
    pub fn new(code: u32, msg: impl Into<String>, details: impl ToString) -> Self {
        Self { code, msg: msg.into(), details: details.to_string() }
    }
}

/// Well-known error codes of the CNI specification, sections "Error" and "STATUS"; 100 and up are the plugin's own.
pub mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const UNKNOWN_CONTAINER: u32 = 3;
    pub const INVALID_ENVIRONMENT: u32 = 4;
    pub const IO_FAILURE: u32 = 5;
    pub const DECODE_FAILURE: u32 = 6;
    pub const INVALID_CONFIG: u32 = 7;
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: no ADD can be served.
    pub const PLUGIN_NOT_AVAILABLE: u32 = 50;
    /// STATUS: nor do all of the pods that are attached have their whole network.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// The agent could not make or change the interface.
    pub const ATTACH_FAILED: u32 = 100;
    /// No address is left in the node's pod CIDRs.
    pub const ADDRESSES_EXHAUSTED: u32 = 101;
    /// CHECK found the interface different from what ADD made.
    pub const CHECK_FAILED: u32 = 102;
}
