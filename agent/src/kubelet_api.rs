//! The agent's side of the kubelet's API: answers `leme_node_api`'s questions from the pods' registry and the runtime.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_cri::v1;
use k8s_openapi::api::core::v1::Pod;
use leme_node_api::{ContainerStats, Node, NodeError, PodStats, Stats, Streams, Usage};

use crate::node::machine::meminfo;
use crate::pods::{Context, labels, sandbox};

pub struct KubeletApi {
    context: Arc<Context>,
    started: Timestamp,
}

impl KubeletApi {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, started: Timestamp::now() }
    }
}

#[async_trait]
impl Node for KubeletApi {
    fn name(&self) -> &str {
        &self.context.config.node_name
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.context.registry.all().into_iter().map(|view| view.pod).collect()
    }

    async fn log_path(&self, container_id: &str) -> Result<PathBuf, NodeError> {
        let known = self.context.registry.all().into_iter().find_map(|view| {
            let found = view.observed.containers.iter().find(|container| container.id == container_id)?;
            Some(PathBuf::from(&found.log_path))
        });
        match known {
            Some(path) => Ok(path),
            None => {
                let status = self.context.cri.container_status(container_id).await.map_err(NodeError::new)?;
                Ok(status.log_path.into())
            }
        }
    }

    async fn exec(&self, container_id: &str, command: Vec<String>, streams: Streams) -> Result<String, NodeError> {
        let Streams { stdin, stdout, stderr, tty } = streams;
        // A terminal has one output.
        let stderr = stderr && !tty;
        let request = v1::ExecRequest { container_id: container_id.into(), cmd: command, tty, stdin, stdout, stderr };
        self.context.cri.exec(request).await.map_err(NodeError::new)
    }

    async fn attach(&self, container_id: &str, streams: Streams) -> Result<String, NodeError> {
        let Streams { stdin, stdout, stderr, tty } = streams;
        let stderr = stderr && !tty;
        let request = v1::AttachRequest { container_id: container_id.into(), stdin, tty, stdout, stderr };
        self.context.cri.attach(request).await.map_err(NodeError::new)
    }

    async fn network_namespace(&self, pod: &Pod) -> Result<Option<PathBuf>, NodeError> {
        if sandbox::is_host_network(pod) {
            return Ok(None);
        }
        let view = self.context.registry.find(sandbox::namespace(pod), sandbox::name(pod), pod.metadata.uid.as_deref());
        let id = view.as_ref().and_then(|view| view.observed.sandbox()).map(|sandbox| sandbox.id.clone());
        let id = id.ok_or_else(|| NodeError::new("the pod has no running sandbox"))?;
        let status = self.context.cri.sandbox_status(&id, true).await.map_err(NodeError::new)?;
        let path = status.info.get("info").and_then(|info| namespace_path(info));
        path.map(Some).ok_or_else(|| NodeError::new("the runtime does not tell the sandbox's process"))
    }

    async fn stats(&self) -> Result<Stats, NodeError> {
        let containers = self.context.cri.container_stats().await.map_err(NodeError::new)?;
        Ok(Stats { node_started: self.started, node: node_usage(), pods: self.pod_stats(&containers) })
    }
}

/// What `crictl inspectp` shows: the sandbox's process, whose namespace outlives containers.
fn namespace_path(info: &str) -> Option<PathBuf> {
    let info: serde_json::Value = serde_json::from_str(info).ok()?;
    let pid = info["pid"].as_u64().filter(|&pid| pid > 0)?;
    Some(format!("/proc/{pid}/ns/net").into())
}

impl KubeletApi {
    fn pod_stats(&self, containers: &[v1::ContainerStats]) -> Vec<PodStats> {
        let of_pod = |pod: &Pod| PodStats {
            namespace: sandbox::namespace(pod).to_owned(),
            name: sandbox::name(pod).to_owned(),
            uid: sandbox::uid(pod).to_owned(),
            started: pod
                .status
                .as_ref()
                .and_then(|status| status.start_time.as_ref())
                .map(|time| time.0)
                .unwrap_or_default(),
            usage: None,
            containers: containers.iter().filter_map(|stats| container_stats(stats, pod)).collect(),
        };
        self.pods().iter().map(|pod| of_pod(pod)).collect()
    }
}

fn container_stats(stats: &v1::ContainerStats, pod: &Pod) -> Option<ContainerStats> {
    let attributes = stats.attributes.as_ref()?;
    (attributes.labels.get(labels::POD_UID)? == sandbox::uid(pod)).then_some(())?;
    let name = attributes.labels.get(labels::CONTAINER_NAME)?.clone();
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let mut running =
        statuses.filter(|status| status.name == name).filter_map(|status| status.state.as_ref()?.running.as_ref());
    let started = running.next().and_then(|running| running.started_at.as_ref()).map(|time| time.0).unwrap_or_default();
    let value = |value: &Option<v1::UInt64Value>| value.as_ref().map(|value| value.value);
    let (cpu, memory) = (stats.cpu.as_ref(), stats.memory.as_ref());
    let usage = Usage {
        time: cpu.and_then(|cpu| Timestamp::from_nanosecond(cpu.timestamp.into()).ok()).unwrap_or_default(),
        cpu_core_nanoseconds: cpu.and_then(|cpu| value(&cpu.usage_core_nano_seconds)),
        memory_working_set: memory.and_then(|memory| value(&memory.working_set_bytes)),
        memory_usage: memory.and_then(|memory| value(&memory.usage_bytes)),
        memory_rss: memory.and_then(|memory| value(&memory.rss_bytes)),
        memory_available: memory.and_then(|memory| value(&memory.available_bytes)),
    };
    Some(ContainerStats { name, started, usage })
}

/// Of the whole machine, from the kernel's own accounts.
fn node_usage() -> Usage {
    let (total, available) = (meminfo("MemTotal"), meminfo("MemAvailable"));
    let used = total.zip(available).map(|(total, available)| (total - available) as u64);
    Usage {
        time: Timestamp::now(),
        cpu_core_nanoseconds: busy_nanoseconds(),
        memory_working_set: used,
        memory_usage: total.zip(meminfo("MemFree")).map(|(total, free)| (total - free) as u64),
        memory_rss: meminfo("AnonPages").map(|bytes| bytes as u64),
        memory_available: available.map(|bytes| bytes as u64),
    }
}

/// The first line of `/proc/stat` in hundredths of a second: user, nice, system, idle, iowait, irq, softirq, steal.
fn busy_nanoseconds() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> =
        text.lines().next()?.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let busy = ticks.iter().take(8).enumerate().filter(|(index, _)| !matches!(index, 3 | 4)).map(|(_, ticks)| ticks);
    Some(busy.sum::<u64>() * 10_000_000)
}
