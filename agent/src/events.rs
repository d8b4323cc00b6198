//! Events about pods and the node: repeated ones are counted on the first instead of written anew, as upstream does.
//!
//! Anybody calls `Recorder::event`; it never waits and never fails. One task writes, and drops what the API will not
//! take: an event is a courtesy.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tracing::debug;

const COMPONENT: &str = "kubelet";
/// How many distinct events are remembered for counting.
const REMEMBERED: usize = 4096;
const ATTEMPTS: u32 = 5;
/// Upstream's bound on one object's events: 25 at once, then one in five minutes.
const BURST: f64 = 25.0;
const REFILL: f64 = 1.0 / 300.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Normal,
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    field_path: Option<String>,
    kind: Kind,
    reason: String,
    message: String,
}

struct Report {
    about: ObjectReference,
    kind: Kind,
    reason: String,
    message: String,
    at: Timestamp,
}

#[derive(Clone)]
pub struct Recorder {
    reports: mpsc::Sender<Report>,
}

impl Recorder {
    /// The task ends when the last recorder is dropped.
    pub fn start(client: Client, node: String) -> Self {
        let (reports, inbox) = mpsc::channel(REMEMBERED);
        let writer = Writer { client, node, written: HashMap::new(), budgets: HashMap::new() };
        tokio::spawn(writer.run(inbox));
        Self { reports }
    }

    pub fn event(&self, about: ObjectReference, kind: Kind, reason: &str, message: impl Into<String>) {
        let report = Report { about, kind, reason: reason.into(), message: message.into(), at: Timestamp::now() };
        // Refused while the process ends, and when the API has been away for thousands of events.
        let _ = self.reports.try_send(report);
    }

    pub fn pod(&self, pod: &Pod, kind: Kind, reason: &str, message: impl Into<String>) {
        self.event(reference(pod), kind, reason, message);
    }

    /// About one container: `fieldPath` says which.
    pub fn container(&self, pod: &Pod, container: &str, kind: Kind, reason: &str, message: impl Into<String>) {
        let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        let list = if init.into_iter().any(|other| other.name == container) { "initContainers" } else { "containers" };
        let field_path = Some(format!("spec.{list}{{{container}}}"));
        self.event(ObjectReference { field_path, ..reference(pod) }, kind, reason, message);
    }
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: None,
    }
}

struct Writer {
    client: Client,
    node: String,
    written: HashMap<Key, (String, i32)>,
    budgets: HashMap<String, (f64, Instant)>,
}

impl Writer {
    async fn run(mut self, mut inbox: mpsc::Receiver<Report>) {
        while let Some(report) = inbox.recv().await {
            if self.may_write(&report) {
                self.write(report).await;
            }
        }
    }

    fn may_write(&mut self, report: &Report) -> bool {
        if self.budgets.len() > REMEMBERED {
            self.budgets.clear();
        }
        let object = format!("{:?}/{:?}", report.about.uid, report.reason);
        let (tokens, refilled) = self.budgets.entry(object).or_insert((BURST, Instant::now()));
        *tokens = (*tokens + refilled.elapsed().as_secs_f64() * REFILL).min(BURST);
        *refilled = Instant::now();
        let may = *tokens >= 1.0;
        if may {
            *tokens -= 1.0;
        }
        may
    }

    async fn write(&mut self, report: Report) {
        let mut pause = Duration::from_millis(200);
        for _ in 0..ATTEMPTS {
            match self.try_write(&report).await {
                Ok(()) => return,
                Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                    debug!(reason = report.reason, error = status.message, "the API refuses an event");
                    return;
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause *= 2;
        }
    }

    async fn try_write(&mut self, report: &Report) -> Result<(), kube::Error> {
        let namespace =
            report.about.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let key = Key {
            uid: report.about.uid.clone().unwrap_or_default(),
            field_path: report.about.field_path.clone(),
            kind: report.kind,
            reason: report.reason.clone(),
            message: report.message.clone(),
        };
        if let Some((name, count)) = self.written.get_mut(&key) {
            let patch = serde_json::json!({"count": *count + 1, "lastTimestamp": seconds(report.at)});
            match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {
                    *count += 1;
                    return Ok(());
                }
                // Expired: written anew below.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let event = self.event(report, namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        if self.written.len() >= REMEMBERED {
            self.written.clear();
        }
        self.written.insert(key, (name, 1));
        Ok(())
    }

    fn event(&self, report: &Report, namespace: &str) -> Event {
        let about = report.about.name.as_deref().unwrap_or_default();
        let at = seconds(report.at);
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{about}.{:x}", report.at.as_nanosecond())),
                namespace: Some(namespace.into()),
                ..Default::default()
            },
            involved_object: report.about.clone(),
            type_: Some(format!("{:?}", report.kind)),
            reason: Some(report.reason.clone()),
            message: Some(report.message.clone()),
            source: Some(EventSource { component: Some(COMPONENT.into()), host: Some(self.node.clone()) }),
            reporting_component: Some(COMPONENT.into()),
            reporting_instance: Some(self.node.clone()),
            first_timestamp: Some(at.clone()),
            last_timestamp: Some(at),
            count: Some(1),
            ..Default::default()
        }
    }
}

/// The API keeps whole seconds.
pub fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).expect("a timestamp without its fraction is one too"))
}
