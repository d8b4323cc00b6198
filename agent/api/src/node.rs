//! What the API must know of the node it speaks for: the one seam between HTTP and the parts that run pods.
//!
//! The agent implements it; tests have a fake. It answers from memory wherever it can: a log that is followed asks
//! for its pod several times a second.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

/// An action of the runtime that failed, with its own words: people search for them.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NodeError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

impl NodeError {
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}

/// Which streams of a process a client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// Container ids are the runtime's own, without `containerd://`.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// The node's name, as in `metadata.name`.
    fn name(&self) -> &str;

    /// The pods of this node, each with the status this node knows now (`status.containerStatuses` and the like are
    /// where container ids and states are read from).
    fn pods(&self) -> Vec<Arc<Pod>>;

    /// One of [`Node::pods`].
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let meta = |pod: &Pod| (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        self.pods().into_iter().find(|pod| meta(pod) == (Some(namespace.into()), Some(name.into())))
    }

    /// The file the runtime writes this container's output to (CRI `ContainerStatus.log_path`).
    async fn log_path(&self, container_id: &str) -> Result<PathBuf, NodeError>;

    /// CRI `Exec`: the address of the runtime's stream for a new process, good for one use.
    async fn exec(&self, container_id: &str, command: Vec<String>, streams: Streams) -> Result<String, NodeError>;

    /// CRI `Attach`: the same for the container's own process.
    async fn attach(&self, container_id: &str, streams: Streams) -> Result<String, NodeError>;

    /// A file that stands for the pod's network namespace (`/proc/<pid>/ns/net`, `/var/run/netns/cni-…`); none when
    /// the pod uses the node's own.
    async fn network_namespace(&self, pod: &Pod) -> Result<Option<PathBuf>, NodeError>;

    /// What the node and its containers use now; what is not measured is left out.
    async fn stats(&self) -> Result<Stats, NodeError>;

    /// The agent's own metrics, appended to `/metrics` in Prometheus' text format (complete lines, no `# EOF`).
    fn encode_metrics(&self, _out: &mut String) {}
}

/// One measurement of processor and memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub time: Timestamp,
    /// Cumulative, in nanoseconds of one core.
    pub cpu_core_nanoseconds: Option<u64>,
    /// Memory that cannot be reclaimed at once, in bytes.
    pub memory_working_set: Option<u64>,
    pub memory_usage: Option<u64>,
    pub memory_rss: Option<u64>,
    pub memory_available: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub node_started: Timestamp,
    pub node: Usage,
    pub pods: Vec<PodStats>,
}

#[derive(Clone, Debug, Default)]
pub struct PodStats {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub started: Timestamp,
    /// The pod's own cgroup, where it is read; otherwise the sum of its containers is given.
    pub usage: Option<Usage>,
    pub containers: Vec<ContainerStats>,
}

#[derive(Clone, Debug, Default)]
pub struct ContainerStats {
    pub name: String,
    pub started: Timestamp,
    pub usage: Usage,
}
