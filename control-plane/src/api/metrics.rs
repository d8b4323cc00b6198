//! What the server counts about itself, under upstream's names.

use std::{sync::atomic::AtomicI64, time::Duration};

use http::{Method, StatusCode};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{App, path::Target};
use crate::{audit, resources::Resource};

/// Seconds; upstream's buckets, thinned out.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 15.0, 60.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VerbLabels {
    verb: String,
    group: String,
    resource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

type Histograms = Family<VerbLabels, Histogram, fn() -> Histogram>;

pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Histograms,
    objects: Family<ResourceLabels, Gauge>,
    watchers: Family<ResourceLabels, Gauge>,
    pub audit: audit::Counters,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let durations: Histograms = Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let metrics = Self {
            requests: Family::default(),
            objects: Family::default(),
            watchers: Family::default(),
            audit: audit::Counters::default(),
            durations: durations.clone(),
            registry: Registry::default(),
        };
        registry.register("apiserver_request", "Requests by verb, resource and code", metrics.requests.clone());
        registry.register("apiserver_request_duration_seconds", "How long answers took", durations);
        registry.register("apiserver_storage_objects", "Stored objects by kind", metrics.objects.clone());
        registry.register("apiserver_longrunning_requests", "Open watches by kind", metrics.watchers.clone());
        registry.register("apiserver_audit_event", "Events that the audit policy wanted", metrics.audit.events.clone());
        let plugin = registry.sub_registry_with_label(("plugin".into(), "log".into()));
        plugin.register("apiserver_audit_error", "Events that could not be written", metrics.audit.lost.clone());
        Self { registry, ..metrics }
    }
}

/// What is known of a request before it is answered.
pub fn label(method: &Method, target: Option<&Target>) -> RequestLabels {
    let Some(target) = target else {
        return RequestLabels {
            verb: method.as_str().to_owned(),
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
            scope: "",
            code: String::new(),
        };
    };
    let scope = match (target.name.is_empty(), target.namespace.is_empty()) {
        (false, _) => "resource",
        (true, false) => "namespace",
        (true, true) => "cluster",
    };
    RequestLabels {
        verb: target.verb.to_ascii_uppercase(),
        group: target.group.clone(),
        version: target.version.clone(),
        resource: target.plural.clone(),
        subresource: target.subresource.clone(),
        scope,
        code: String::new(),
    }
}

impl Metrics {
    pub fn observe(&self, mut labels: RequestLabels, code: StatusCode, took: Duration) {
        // Paths that nothing serves would let anybody fill the memory with labels.
        if code == StatusCode::NOT_FOUND {
            labels = RequestLabels {
                resource: String::new(),
                subresource: String::new(),
                group: String::new(),
                version: String::new(),
                ..labels
            };
        }
        labels.code = code.as_str().to_owned();
        if labels.verb != "WATCH" {
            let verb = VerbLabels {
                verb: labels.verb.clone(),
                group: labels.group.clone(),
                resource: labels.resource.clone(),
            };
            self.durations.get_or_create(&verb).observe(took.as_secs_f64());
        }
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts one watcher for as long as it is held.
    pub fn watcher(&self, resource: &Resource) -> WatcherGuard {
        let gauge = self.watchers.get_or_create(&ResourceLabels { resource: resource.qualified() }).clone();
        gauge.inc();
        WatcherGuard(gauge)
    }

    pub fn render(&self, app: &App) -> String {
        for kind in app.registry.kinds() {
            let labels = ResourceLabels { resource: kind.resource.qualified() };
            self.objects.get_or_create(&labels).set(kind.cache.snapshot().objects.len() as i64);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

pub struct WatcherGuard(Gauge<i64, AtomicI64>);

impl Drop for WatcherGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
