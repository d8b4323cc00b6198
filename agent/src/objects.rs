//! The config maps and secrets that pods of this node mention, read by name (all a node is allowed) and kept for a
//! while, so that pods that share one ask once and go on working while the API is away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};

/// Unused entries are forgotten after this long.
const KEEP: Duration = Duration::from_secs(900);

type Key = (String, String);

/// `Ok(None)` is "the API says there is none".
type Found<T> = Result<Option<Arc<T>>, kube::Error>;

struct Entry<T> {
    object: Option<Arc<T>>,
    read: Instant,
    used: Instant,
}

struct Kind<T>(Mutex<HashMap<Key, Entry<T>>>);

impl<T> Default for Kind<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

#[derive(Clone)]
pub struct Objects {
    client: Client,
    config_maps: Arc<Kind<ConfigMap>>,
    secrets: Arc<Kind<Secret>>,
}

impl Objects {
    pub fn new(client: Client) -> Self {
        Self { client, config_maps: Arc::default(), secrets: Arc::default() }
    }

    pub async fn config_map(&self, namespace: &str, name: &str, max_age: Duration) -> Found<ConfigMap> {
        let api = Api::namespaced(self.client.clone(), namespace);
        self.config_maps.get(api, (namespace.into(), name.into()), max_age).await
    }

    pub async fn secret(&self, namespace: &str, name: &str, max_age: Duration) -> Found<Secret> {
        let api = Api::namespaced(self.client.clone(), namespace);
        self.secrets.get(api, (namespace.into(), name.into()), max_age).await
    }
}

impl<T: Clone + serde::de::DeserializeOwned + std::fmt::Debug> Kind<T> {
    async fn get(&self, api: Api<T>, key: Key, max_age: Duration) -> Found<T> {
        if let Some(object) = self.recall(&key, Some(max_age)) {
            return Ok(object);
        }
        match api.get_opt(&key.1).await {
            Ok(object) => {
                let object = object.map(Arc::new);
                self.remember(key, object.clone());
                Ok(object)
            }
            // What was true the last time is better than nothing while nobody answers.
            Err(error) if !matches!(error, kube::Error::Api(_)) => self.recall(&key, None).ok_or(error),
            Err(error) => Err(error),
        }
    }

    fn recall(&self, key: &Key, max_age: Option<Duration>) -> Option<Option<Arc<T>>> {
        let mut entries = self.0.lock().expect("no holder panics");
        let entry = entries.get_mut(key)?;
        entry.used = Instant::now();
        max_age.is_none_or(|age| entry.read.elapsed() < age).then(|| entry.object.clone())
    }

    fn remember(&self, key: Key, object: Option<Arc<T>>) {
        let now = Instant::now();
        let mut entries = self.0.lock().expect("no holder panics");
        entries.retain(|_, entry| entry.used.elapsed() < KEEP);
        entries.insert(key, Entry { object, read: now, used: now });
    }
}
