//! The CNI plugin as runtimes run it, against a real agent's server, in namespaces: real links, real programs, real maps.
//!
//! `node` is a node's namespace, `agent` the agent's CNI part as a process that can be killed, `plugin` runs the binary,
//! `pod` is a pod's namespace, `left` counts what exists. `cargo xtask test cni` runs the tests; they need root.

mod agent;
mod left;
mod node;
mod plugin;
mod pod;

pub use agent::{Agent, Moment};
pub use left::Left;
pub use node::{Node, on_node};
pub use plugin::{Answer, Call};
pub use pod::Pod;
