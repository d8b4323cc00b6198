//! Numbers, in the shapes people's tools read: `/stats/summary`, `/metrics/resource` and `/metrics`.
//!
//! Only what the node measures is given: an absent number is left out, never zero.

use std::fmt::Write;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::answer::Refusal;
use crate::node::{Node, Stats, Usage};

const TEXT: [(http::HeaderName, &str); 1] = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];

pub(crate) async fn summary(State(node): State<Arc<dyn Node>>) -> Result<Json<Value>, Refusal> {
    let stats = node.stats().await?;
    Ok(Json(describe(node.name(), &stats)))
}

fn describe(name: &str, stats: &Stats) -> Value {
    let pods: Vec<_> = stats
        .pods
        .iter()
        .map(|pod| {
            let containers: Vec<_> = pod
                .containers
                .iter()
                .map(|container| {
                    let mut value = used(&container.usage);
                    value["name"] = json!(container.name);
                    value["startTime"] = json!(container.started);
                    value
                })
                .collect();
            let mut value = pod.usage.as_ref().map_or_else(|| json!({}), used);
            value["podRef"] = json!({"name": pod.name, "namespace": pod.namespace, "uid": pod.uid});
            value["startTime"] = json!(pod.started);
            value["containers"] = json!(containers);
            value
        })
        .collect();
    let mut node = used(&stats.node);
    node["nodeName"] = json!(name);
    node["startTime"] = json!(stats.node_started);
    json!({"node": node, "pods": pods})
}

fn used(usage: &Usage) -> Value {
    let mut value = json!({});
    if let Some(nanoseconds) = usage.cpu_core_nanoseconds {
        value["cpu"] = json!({"time": usage.time, "usageCoreNanoSeconds": nanoseconds});
    }
    let memory: serde_json::Map<_, _> = [
        ("availableBytes", usage.memory_available),
        ("usageBytes", usage.memory_usage),
        ("workingSetBytes", usage.memory_working_set),
        ("rssBytes", usage.memory_rss),
    ]
    .into_iter()
    .filter_map(|(name, bytes)| Some((name.to_owned(), json!(bytes?))))
    .collect();
    if !memory.is_empty() {
        value["memory"] = Value::Object(memory);
        value["memory"]["time"] = json!(usage.time);
    }
    value
}

/// The metrics server's source.
pub(crate) async fn resource_metrics(State(node): State<Arc<dyn Node>>) -> Response {
    let stats = node.stats().await;
    let mut text = Metrics::default();
    text.family("resource_scrape_error", "gauge", "1 if there was an error while getting metrics, 0 otherwise");
    text.sample("resource_scrape_error", &[], if stats.is_err() { 1.0 } else { 0.0 }, None);
    if let Ok(stats) = stats {
        resource_samples(&mut text, &stats);
    }
    (TEXT, text.0).into_response()
}

fn resource_samples(text: &mut Metrics, stats: &Stats) {
    let nodes = || [(vec![], stats.node)].into_iter();
    let pods = || {
        stats
            .pods
            .iter()
            .filter_map(|pod| Some((vec![("namespace", &*pod.namespace), ("pod", &*pod.name)], pod.usage?)))
    };
    let containers = || {
        stats.pods.iter().flat_map(|pod| {
            pod.containers.iter().map(|container| {
                let labels = vec![("container", &*container.name), ("namespace", &*pod.namespace), ("pod", &*pod.name)];
                (labels, container.usage)
            })
        })
    };
    text.usage("node", nodes());
    text.usage("pod", pods());
    text.usage("container", containers());
    text.family("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds");
    for pod in &stats.pods {
        for container in &pod.containers {
            let labels = [("container", &*container.name), ("namespace", &*pod.namespace), ("pod", &*pod.name)];
            let started = container.started.as_millisecond() as f64 / 1e3;
            text.sample("container_start_time_seconds", &labels, started, None);
        }
    }
}

/// The kubelet's own.
pub(crate) async fn metrics(State(node): State<Arc<dyn Node>>) -> Response {
    let mut text = Metrics::default();
    text.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.");
    text.sample("kubelet_node_name", &[("node", node.name())], 1.0, None);
    let pods = node.pods();
    let states: Vec<_> = pods
        .iter()
        .filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref())
        .flatten()
        .filter_map(|status| status.state.as_ref())
        .collect();
    let running =
        pods.iter().filter(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running"));
    text.family("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox");
    text.sample("kubelet_running_pods", &[], running.count() as f64, None);
    text.family("kubelet_running_containers", "gauge", "Number of containers currently running");
    let exited = states.iter().filter(|state| state.terminated.is_some()).count();
    let alive = states.iter().filter(|state| state.running.is_some()).count();
    for (state, count) in [("exited", exited), ("running", alive)] {
        text.sample("kubelet_running_containers", &[("container_state", state)], count as f64, None);
    }
    if let Some(resident) = resident_bytes() {
        text.family("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.");
        text.sample("process_resident_memory_bytes", &[], resident as f64, None);
    }
    node.encode_metrics(&mut text.0);
    (TEXT, text.0).into_response()
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Prometheus' text format.
#[derive(Default)]
struct Metrics(String);

impl Metrics {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64, time: Option<Timestamp>) {
        self.0.push_str(name);
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
        if !labels.is_empty() {
            let _ = write!(self.0, "{{{}}}", labels.join(","));
        }
        let _ = write!(self.0, " {value}");
        if let Some(time) = time {
            let _ = write!(self.0, " {}", time.as_millisecond());
        }
        self.0.push('\n');
    }

    fn usage<'a>(&mut self, of: &str, rows: impl Iterator<Item = (Vec<(&'a str, &'a str)>, Usage)> + Clone) {
        let cpu = format!("{of}_cpu_usage_seconds_total");
        self.family(&cpu, "counter", &format!("Cumulative cpu time consumed by the {of} in core-seconds"));
        for (labels, usage) in rows.clone() {
            if let Some(nanoseconds) = usage.cpu_core_nanoseconds {
                self.sample(&cpu, &labels, nanoseconds as f64 / 1e9, Some(usage.time));
            }
        }
        let memory = format!("{of}_memory_working_set_bytes");
        self.family(&memory, "gauge", &format!("Current working set of the {of} in bytes"));
        for (labels, usage) in rows {
            if let Some(bytes) = usage.memory_working_set {
                self.sample(&memory, &labels, bytes as f64, Some(usage.time));
            }
        }
    }
}
