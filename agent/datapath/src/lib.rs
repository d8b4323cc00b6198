//! The node's datapath seen from user space: loads, attaches and pins the eBPF programs, and keeps their maps equal to
//! what the cluster wants.
//!
//! Called by the agent's network reconciler (`Snapshot` → [`plan`] → [`Datapath::reconcile`]), by its CNI server
//! (endpoints) and by `leme up` ([`Lan`]). It is the only user of aya. It never watches the API, never forwards a
//! packet itself and never writes a packet filter rule.

mod attach;
mod bpf;
mod config;
mod connections;
mod datapath;
mod device;
mod dump;
mod error;
mod fill;
mod host_port;
mod inspect;
mod kernel;
mod lan;
mod ledger;
mod limits;
mod migration;
mod namespaces;
mod netfilter;
mod nics;
mod node_ports;
mod plan;
mod programs;
pub mod simulation;
mod snapshot;
mod sockets;
mod table;
mod text;

pub use attach::Attachment;
pub use config::{Config, Sizes, SocketLb, VXLAN};
pub use datapath::{Collected, Datapath, EndpointSpec, Report, remove_all};
pub use device::keep_overlay;
pub use dump::{
    AffinityRow, ConnectionRow, CounterRow, Dump, NodeAddressRow, Peers, RouteRow, ServiceRow, TranslationRow,
    affinity, connections, counters, dump, endpoints, node_addresses, routes, services, translations,
};
pub use error::{Error, Result};
pub use fill::MapFill;
pub use host_port::HostPort;
pub use inspect::{Foreign, Inspection, inspect};
pub use kernel::kernel_lacks;
pub use lan::Lan;
pub use leme_abi::Protocol;
pub use limits::{Limits, Rate};
pub use netfilter::{Chain, chains};
pub use nics::{Nic, find_nics};
pub use node_ports::NodePorts;
pub use plan::{NodeTables, RouteTo, ServicePlan, Tables, plan, plan_nodes, plan_service};
pub use snapshot::{Change, HealthCheck, ObjectKey, Snapshot};
pub use sockets::{ServiceSocket, Sockets};
