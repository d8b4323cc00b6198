//! Events on objects, as `kubectl describe` shows them. Repeats raise the count of the first.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Repeats are recognised among this many latest events of one component.
const REMEMBERED: usize = 4096;

#[derive(Clone)]
pub struct Recorder {
    client: Client,
    component: &'static str,
    seen: Arc<Mutex<HashMap<String, i32>>>,
}

#[derive(Clone, Copy)]
pub enum Kind {
    Normal,
    Warning,
}

impl Recorder {
    pub fn new(client: Client, component: &'static str) -> Self {
        Self { client, component, seen: Arc::default() }
    }

    /// Writes in the background: an event is news, nothing waits for it.
    pub fn record<K>(&self, object: &K, kind: Kind, reason: &str, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        let event = self.event(object, kind, reason, message.into());
        let recorder = self.clone();
        tokio::spawn(async move {
            if let Err(error) = recorder.write(event).await {
                tracing::debug!(component = recorder.component, "event not recorded: {error}");
            }
        });
    }

    fn event<K: Resource<DynamicType = ()>>(&self, object: &K, kind: Kind, reason: &str, message: String) -> Event {
        let regarding = reference(object);
        let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".into());
        let now = Time(Timestamp::now());
        Event {
            metadata: ObjectMeta {
                name: Some(event_name(&regarding, reason, &message)),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: regarding,
            reason: Some(reason.into()),
            message: Some(message),
            type_: Some(match kind {
                Kind::Normal => "Normal".into(),
                Kind::Warning => "Warning".into(),
            }),
            source: Some(EventSource { component: Some(self.component.into()), host: None }),
            reporting_component: Some(self.component.into()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        }
    }

    async fn write(&self, event: Event) -> kube::Result<()> {
        let name = event.name_any();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &event.namespace().unwrap_or_default());
        let count = self.count(&name);
        if count > 1 {
            let patch = json!({"count": count, "lastTimestamp": event.last_timestamp});
            if api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.is_ok() {
                return Ok(());
            }
        }
        api.create(&PostParams::default(), &event).await.map(drop)
    }

    fn count(&self, name: &str) -> i32 {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= REMEMBERED {
            seen.clear();
        }
        let count = seen.entry(name.to_owned()).or_insert(0);
        *count += 1;
        *count
    }
}

fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: Some(object.name_any()),
        namespace: object.namespace(),
        uid: object.uid(),
        resource_version: object.resource_version(),
        field_path: None,
    }
}

/// Upstream appends a time; a digest of what is said makes repeats find their first.
fn event_name(regarding: &ObjectReference, reason: &str, message: &str) -> String {
    let mut digest = Sha256::new();
    for part in [regarding.uid.as_deref().unwrap_or_default(), reason, message] {
        digest.update(part);
        digest.update([0]);
    }
    let digest = digest.finalize();
    let suffix: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{}.{suffix}", regarding.name.as_deref().unwrap_or_default())
}
