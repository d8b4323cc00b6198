//! The served kinds over the store: consistent reads from the caches, compare-and-swap writes.
//!
//! Handlers, authorization, admission and the strategies read and write through here and nowhere else. A write returns
//! once it is durable *and* the cache shows it. HTTP is unknown here.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, future::try_join_all};
use leme_store::{
    Condition, Key, Operation, Outcome as Committed, Record, Revision, Store, Transaction,
    cache::{Cache, CacheEvent, Snapshot},
};
use serde_json::Value;

use super::{
    object::{Item, Shared, encode},
    status::{Failure, Outcome},
};
use crate::resources::{Companions, INTERNAL, Ranges, Resource, StorageView};

/// One row of the table and its cache.
pub struct Kind {
    pub resource: &'static Resource,
    pub cache: Arc<Cache<Item>>,
    store: Arc<dyn Store>,
}

impl Kind {
    /// `/registry/pods/default/nginx`
    pub fn key(&self, namespace: &str, name: &str) -> Key {
        key(self.resource, namespace, name)
    }

    /// Every key of the kind, or of the kind in one namespace, starts like this.
    pub fn prefix(&self, namespace: &str) -> String {
        match namespace {
            "" => format!("/registry/{}/", self.resource.storage),
            namespace => format!("/registry/{}/{namespace}/", self.resource.storage),
        }
    }

    /// The object as of now: no acknowledged write is missing.
    pub async fn get(&self, namespace: &str, name: &str) -> Outcome<Option<Shared>> {
        let snapshot = self.cache.current().await?;
        Ok(snapshot.objects.get(&*self.key(namespace, name)).cloned())
    }

    /// A view of the kind once the store has reached `revision`; the revision may belong to another kind's write.
    pub async fn reaches(&self, revision: Revision) -> Outcome<Snapshot<Item>> {
        loop {
            if self.store.revision().await? >= revision {
                return Ok(self.cache.current().await?);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for a change of the kind after `seen`; the revision at which it happened.
    pub async fn changed_after(&self, seen: Revision) -> Revision {
        let mut from = seen;
        loop {
            let Ok(mut watch) = self.cache.watch_from(from) else { return self.cache.revision() };
            while let Some(Ok(event)) = watch.next().await {
                match event {
                    CacheEvent::Bookmark(_) => {}
                    change => return change.revision(),
                }
            }
            from = self.cache.revision();
        }
    }

    /// The object as the cache has it; for decisions that may trail other servers' writes.
    pub fn peek(&self, namespace: &str, name: &str) -> Option<Shared> {
        self.cache.snapshot().objects.get(&*self.key(namespace, name)).cloned()
    }
}

fn key(resource: &Resource, namespace: &str, name: &str) -> Key {
    match namespace {
        "" => format!("/registry/{}/{name}", resource.storage).into(),
        namespace => format!("/registry/{}/{namespace}/{name}", resource.storage).into(),
    }
}

/// What a write is based on.
#[derive(Clone, Copy)]
pub enum Base<'a> {
    Absent,
    Item(&'a Item),
}

/// How a write ended that found no store in trouble.
pub enum Written {
    Done(Shared),
    /// Somebody was faster: look again.
    Raced,
    /// What the object wanted to take beside itself was taken in the meantime.
    CompanionTaken,
}

pub struct Registry {
    pub store: Arc<dyn Store>,
    ranges: Ranges,
    kinds: Vec<Arc<Kind>>,
    /// By plural; more than one where groups or versions share it.
    plurals: HashMap<&'static str, Vec<Arc<Kind>>>,
}

impl Registry {
    /// Starts one cache per kind.
    pub fn start(store: Arc<dyn Store>, table: &'static [Resource], ranges: Ranges) -> Self {
        let start = |resource: &'static Resource| {
            let prefix = format!("/registry/{}/", resource.storage);
            let cache = Cache::start(store.clone(), prefix, move |record| Item::decode(resource, record));
            Arc::new(Kind { resource, cache, store: store.clone() })
        };
        let kinds: Vec<_> = table.iter().chain(INTERNAL).filter(|r| !r.is_virtual()).map(start).collect();
        let mut plurals = HashMap::<_, Vec<_>>::new();
        for kind in &kinds {
            plurals.entry(kind.resource.plural).or_default().push(kind.clone());
        }
        Self { store, ranges, kinds, plurals }
    }

    /// Once every cache has its first list.
    pub async fn ready(&self) -> Outcome<()> {
        try_join_all(self.kinds.iter().map(|kind| kind.cache.current())).await?;
        Ok(())
    }

    pub fn kinds(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    pub fn kind(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.plurals.get(plural)?.iter().find(|k| k.resource.group == group && k.resource.version == version)
    }

    /// The first kind of this plural; `pods` or `deployments.apps`.
    pub fn by_plural(&self, plural: &str) -> Option<&Arc<Kind>> {
        let (plural, group) = plural.split_once('.').unwrap_or((plural, ""));
        self.plurals.get(plural)?.iter().find(|k| group.is_empty() || k.resource.group == group)
    }

    /// A kind that is always served.
    pub fn builtin(&self, plural: &str) -> &Arc<Kind> {
        self.by_plural(plural).expect("the table serves every kind that the server itself needs")
    }

    /// Writes an object if nothing changed since its base, together with its companions.
    pub async fn put(&self, kind: &Kind, base: Base<'_>, object: Value, companions: Companions) -> Outcome<Written> {
        let key = object_key(kind.resource, &object);
        let condition = match base {
            Base::Absent => Condition::Absent(key.clone()),
            Base::Item(item) => Condition::Unchanged(key.clone(), item.revision),
        };
        let value = encode(&kind.resource.strategy.stored(object));
        let lease = (kind.resource.lifetime > 0).then_some(kind.resource.lifetime);
        let put = Operation::Put { key: key.clone(), value: value.clone(), lease };
        match self.commit(condition, put, companions).await? {
            Ok(revision) => {
                let snapshot = kind.cache.wait_for(revision).await;
                let shared = snapshot.objects.get(&key).filter(|item| item.revision == revision).cloned();
                Ok(Written::Done(shared.unwrap_or_else(|| {
                    let record = Record { key, value, created: revision, modified: revision };
                    Arc::new(Item::decode(kind.resource, &record))
                })))
            }
            Err(race) => Ok(race),
        }
    }

    /// Removes an object if nothing changed since `item`; `Done` carries its last state at the deletion's revision.
    pub async fn remove(&self, kind: &Kind, item: &Item, companions: Companions) -> Outcome<Written> {
        let key = kind.key(&item.namespace, &item.name);
        let condition = Condition::Unchanged(key.clone(), item.revision);
        match self.commit(condition, Operation::Delete { key }, companions).await? {
            Ok(revision) => {
                kind.cache.wait_for(revision).await;
                Ok(Written::Done(Arc::new(item.at(kind.resource, revision))))
            }
            Err(race) => Ok(race),
        }
    }

    async fn commit(
        &self,
        condition: Condition,
        operation: Operation,
        companions: Companions,
    ) -> Outcome<Result<Revision, Written>> {
        let mut transaction = Transaction { conditions: vec![condition], operations: vec![operation] };
        let mut touched = Vec::new();
        for (plural, namespace, name, object) in companions.create {
            let kind = self.companion(&plural)?;
            let key = kind.key(&namespace, &name);
            transaction.conditions.push(Condition::Absent(key.clone()));
            transaction.operations.push(Operation::Put { key, value: encode(&object), lease: None });
            touched.push(kind.cache.clone());
        }
        for (plural, namespace, name) in companions.delete {
            let kind = self.companion(&plural)?;
            transaction.operations.push(Operation::Delete { key: kind.key(&namespace, &name) });
        }
        match self.store.commit(transaction).await? {
            Committed::Committed(revision) => {
                for cache in touched {
                    cache.wait_for(revision).await;
                }
                Ok(Ok(revision))
            }
            Committed::Conflict { current, .. } => {
                let companion = current.iter().skip(1).any(Option::is_some);
                Ok(Err(if companion { Written::CompanionTaken } else { Written::Raced }))
            }
        }
    }

    /// Writes an object as it is, unless one is there.
    pub async fn insert(&self, plural: &str, namespace: &str, name: &str, object: Value) -> Outcome<()> {
        let key = self.companion(plural)?.key(namespace, name);
        let conditions = vec![Condition::Absent(key.clone())];
        let operations = vec![Operation::Put { key, value: encode(&object), lease: None }];
        self.store.commit(Transaction { conditions, operations }).await?;
        Ok(())
    }

    /// Removes an object whatever it is, unless it has changed since `revision`.
    pub async fn discard(&self, key: Key, revision: Revision) -> Outcome<()> {
        let conditions = vec![Condition::Unchanged(key.clone(), revision)];
        let operations = vec![Operation::Delete { key }];
        self.store.commit(Transaction { conditions, operations }).await?;
        Ok(())
    }

    fn companion(&self, plural: &str) -> Outcome<&Arc<Kind>> {
        self.by_plural(plural).ok_or_else(|| Failure::internal(format!("no resource {plural}")))
    }

    /// The whole kind at one revision, no acknowledged write missing.
    pub async fn snapshot(&self, plural: &str) -> Outcome<Snapshot<Item>> {
        Ok(self.builtin(plural).cache.current().await?)
    }
}

/// The key of an object by its own name and namespace.
fn object_key(resource: &Resource, object: &Value) -> Key {
    let meta = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    key(resource, if resource.namespaced { meta("namespace") } else { "" }, meta("name"))
}

#[async_trait]
impl StorageView for Registry {
    async fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let kind = self.by_plural(plural)?;
        kind.get(namespace, name).await.ok().flatten().map(|item| item.value())
    }

    async fn list(&self, plural: &str) -> Vec<Value> {
        let Some(kind) = self.by_plural(plural) else { return Vec::new() };
        let Ok(snapshot) = kind.cache.current().await else { return Vec::new() };
        snapshot.objects.values().map(|item| item.value()).collect()
    }

    fn ranges(&self) -> Ranges {
        self.ranges.clone()
    }
}
