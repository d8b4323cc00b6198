//! What the network counts about itself, under kube-proxy's names where it has one: served as `/metrics`.
//!
//! Reconciler, collector and CNI server leave their figures here; what the kernel counts is read when somebody asks.
//! Names and labels are stable: `dashboards/leme-network.json` is drawn from them.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use leme_cni::{Command, Reply};
use leme_datapath::{Collected, CounterRow, MapFill, Report};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets, linear_buckets},
        info::Info,
    },
    registry::Registry,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct IpFamily {
    ip_family: &'static str,
}

/// Upstream labels what a proxy of one family does; this one is of IPv4.
const IPV4: IpFamily = IpFamily { ip_family: "IPv4" };

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Dropped {
    reason: String,
    direction: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Direction {
    direction: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Map {
    map: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    verb: &'static str,
    /// 0 is success, the rest are the CNI specification's error codes.
    code: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Found {
    id: String,
    severity: String,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;
/// Seconds and other fractions.
type Real = Gauge<f64, AtomicU64>;

pub struct Metrics {
    registry: Registry,
    syncs: Histograms<IpFamily>,
    programming: Histograms<IpFamily>,
    last_sync: Family<IpFamily, Real>,
    kernel_delay: Histogram,
    failures: Counter,
    operations: Counter,
    services: Gauge,
    connections: Gauge,
    capacity: Gauge,
    collected: Counter,
    forwarded: [Family<Direction, Counter>; 2],
    dropped: [Family<Dropped, Counter>; 2],
    entries: Family<Map, Gauge>,
    room: Family<Map, Gauge>,
    requests: Family<Request, Counter>,
    request_durations: Histograms<Verb>,
    addresses_used: Gauge,
    addresses: Gauge,
    memory: Gauge,
    findings: Family<Found, Gauge>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// What the kernel says about itself when it is asked.
#[derive(Debug, Default)]
pub struct Measured {
    pub counters: Vec<CounterRow>,
    pub maps: Vec<MapFill>,
    /// Addresses of pods in use, and how many there are.
    pub addresses: (usize, usize),
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::default(),
            syncs: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
            programming: Family::new_with_constructor(|| Histogram::new(programming_buckets())),
            last_sync: Family::default(),
            kernel_delay: Histogram::new(exponential_buckets(0.000_25, 2.0, 18)),
            failures: Counter::default(),
            operations: Counter::default(),
            services: Gauge::default(),
            connections: Gauge::default(),
            capacity: Gauge::default(),
            collected: Counter::default(),
            forwarded: Default::default(),
            dropped: Default::default(),
            entries: Family::default(),
            room: Family::default(),
            requests: Family::default(),
            request_durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
            addresses_used: Gauge::default(),
            addresses: Gauge::default(),
            memory: Gauge::default(),
            findings: Family::default(),
        };
        let mut registry = Registry::default();
        metrics.register_work(&mut registry);
        metrics.register_kernel(&mut registry);
        Self { registry, ..metrics }
    }
}

/// Upstream's: quarters of a second, seconds to one minute, five to two, thirty to five.
fn programming_buckets() -> impl Iterator<Item = f64> {
    linear_buckets(0.25, 0.25, 2)
        .chain(linear_buckets(1.0, 1.0, 59))
        .chain(linear_buckets(60.0, 5.0, 12))
        .chain(linear_buckets(120.0, 30.0, 7))
}

impl Metrics {
    /// What the agent does.
    fn register_work(&self, registry: &mut Registry) {
        registry.register(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "How long it took to bring the kernel's tables up to date",
            self.syncs.clone(),
        );
        registry.register(
            "kubeproxy_network_programming_duration_seconds",
            "From the change of a pod or Service, as the EndpointSlice tells its time, to the kernel's tables",
            self.programming.clone(),
        );
        registry.register(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "When the kernel's tables were last brought up to date",
            self.last_sync.clone(),
        );
        registry.register(
            "leme_event_to_kernel_duration_seconds",
            "From the arrival of a change from the API server to the kernel's tables",
            self.kernel_delay.clone(),
        );
        let failures = "Attempts to bring the kernel's tables up to date that failed and were repeated";
        registry.register("leme_reconcile_failures", failures, self.failures.clone());
        registry.register("leme_map_operations", "Writes to the kernel's tables", self.operations.clone());
        registry.register("leme_services", "Services known", self.services.clone());
        let requests = "Requests of the CNI plugin; code 0 is success";
        registry.register("leme_cni_requests", requests, self.requests.clone());
        registry.register(
            "leme_cni_request_duration_seconds",
            "How long requests of the CNI plugin took",
            self.request_durations.clone(),
        );
        registry.register("leme_pod_addresses_used", "Addresses that pods have", self.addresses_used.clone());
        registry.register("leme_pod_addresses", "Addresses that pods can have", self.addresses.clone());
        registry.register("process_resident_memory_bytes", "Resident memory size in bytes", self.memory.clone());
        registry.register("leme_findings", "What is wrong on this node; see leme status", self.findings.clone());
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("leme_build", "The agent's version", build);
    }

    /// What the kernel does.
    fn register_kernel(&self, registry: &mut Registry) {
        let [packets, bytes] = &self.forwarded;
        registry.register("leme_forwarded_packets", "Packets forwarded, as the pods see them", packets.clone());
        registry.register("leme_forwarded_bytes", "Bytes forwarded, as the pods see them", bytes.clone());
        let [packets, bytes] = &self.dropped;
        registry.register("leme_dropped_packets", "Packets dropped, by reason", packets.clone());
        registry.register("leme_dropped_bytes", "Bytes dropped, by reason", bytes.clone());
        registry.register("leme_map_entries", "Entries of the kernel's tables", self.entries.clone());
        registry.register("leme_map_capacity", "Room in the kernel's tables", self.room.clone());
        registry.register("leme_connections", "Connections that are alive", self.connections.clone());
        registry.register("leme_connections_capacity", "Room for connections", self.capacity.clone());
        let collected = "Connections forgotten because they had been silent for too long";
        registry.register("leme_connections_collected", collected, self.collected.clone());
    }

    pub fn synced(&self, report: Report, took: Duration) {
        self.syncs.get_or_create(&IPV4).observe(took.as_secs_f64());
        self.operations.inc_by(report.operations as u64);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_sync.get_or_create(&IPV4).set(now.as_secs_f64());
    }

    /// A change from the API is in the kernel: how long ago it arrived.
    pub fn arrived(&self, since: Duration) {
        self.kernel_delay.observe(since.as_secs_f64());
    }

    /// A change of a pod or Service is in the kernel: how long ago it happened.
    pub fn programmed(&self, since: Duration) {
        self.programming.get_or_create(&IPV4).observe(since.as_secs_f64());
    }

    pub fn failed(&self) {
        self.failures.inc();
    }

    pub fn known(&self, services: usize) {
        self.services.set(services as i64);
    }

    pub fn connections(&self, collected: Collected) {
        self.connections.set(collected.live as i64);
        self.capacity.set(collected.capacity as i64);
        self.collected.inc_by(collected.removed as u64);
    }

    pub fn cni(&self, command: Command, reply: &Reply, took: Duration) {
        let code = if let Reply::Failed(failure) = reply { failure.code } else { 0 };
        let verb = verb(command);
        self.requests.get_or_create(&Request { verb, code }).inc();
        self.request_durations.get_or_create(&Verb { verb }).observe(took.as_secs_f64());
    }

    /// What is wrong at this moment, and nothing else: ids and severities.
    pub fn found<'a>(&self, findings: impl Iterator<Item = (&'a str, &'a str)>) {
        self.findings.clear();
        for (id, severity) in findings {
            let labels = Found { id: id.to_owned(), severity: severity.to_owned() };
            self.findings.get_or_create(&labels).inc();
        }
    }

    /// Everything as OpenMetrics text.
    pub fn render(&self, measured: &Measured) -> String {
        self.take(measured);
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn take(&self, measured: &Measured) {
        for row in &measured.counters {
            let direction = row.direction.clone();
            let figures = [row.packets, row.bytes];
            for (which, figure) in figures.into_iter().enumerate() {
                // The kernel counts; an agent that starts again goes on with its figures.
                if row.reason == "forwarded" {
                    let labels = Direction { direction: direction.clone() };
                    self.forwarded[which].get_or_create(&labels).inner().store(figure, Relaxed);
                } else {
                    let labels = Dropped { reason: row.reason.clone(), direction: direction.clone() };
                    self.dropped[which].get_or_create(&labels).inner().store(figure, Relaxed);
                }
            }
        }
        for fill in &measured.maps {
            self.entries.get_or_create(&Map { map: fill.map }).set(fill.entries as i64);
            self.room.get_or_create(&Map { map: fill.map }).set(i64::from(fill.capacity));
        }
        self.addresses_used.set(measured.addresses.0 as i64);
        self.addresses.set(measured.addresses.1 as i64);
        self.memory.set(resident());
    }
}

fn verb(command: Command) -> &'static str {
    match command {
        Command::Add => "ADD",
        Command::Del => "DEL",
        Command::Check => "CHECK",
        Command::Status => "STATUS",
        Command::Gc => "GC",
    }
}

/// Bytes of this process in memory.
fn resident() -> i64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages: Option<i64> = pages.and_then(|text| text.split(' ').nth(1)?.parse().ok());
    pages.unwrap_or(0) * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096)
}

#[cfg(test)]
mod tests;
