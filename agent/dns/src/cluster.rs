//! Keeps the zone equal to the cluster: two watches, each object reduced to what answers need and then dropped.
//!
//! Spawned by `run`. The zone counts as synced when both first lists are complete, and stays so whatever happens to the
//! API server afterwards. A relist removes what it leaves out only at its end: no name disappears in between.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tracing::{info, warn};

use crate::{
    health::Metrics,
    zone::{Key, Zone},
};

/// Objects per page of a list: what is in memory at once in its full size.
const PAGE: u32 = 250;

#[expect(
    clippy::large_enum_variant,
    reason = "looked at and dropped at once; a box would cost an allocation per event"
)]
enum Seen {
    Service(Event<Service>),
    Slice(Event<EndpointSlice>),
}

pub async fn follow(client: Client, zone: Arc<RwLock<Zone>>, metrics: Arc<Metrics>) {
    let config = || watcher::Config::default().page_size(PAGE);
    let services = watcher(Api::<Service>::all(client.clone()), config()).default_backoff().map_ok(Seen::Service);
    let slices = watcher(Api::<EndpointSlice>::all(client), config()).default_backoff().map_ok(Seen::Slice);
    let mut events = stream::select(services.boxed(), slices.boxed());
    let (mut known_services, mut known_slices) = (Listing::default(), Listing::default());
    let mut broken = false;
    while let Some(event) = events.next().await {
        let seen = match event {
            Ok(seen) => seen,
            Err(error) => {
                if !std::mem::replace(&mut broken, true) {
                    warn!(%error, "a watch is broken: answering from memory and trying again");
                }
                continue;
            }
        };
        // Each attempt begins with Init, before it has reached anybody.
        let begins = matches!(seen, Seen::Service(Event::Init) | Seen::Slice(Event::Init));
        if !begins && std::mem::take(&mut broken) {
            info!("the watch works again");
        }
        let mut zone = zone.write().unwrap_or_else(PoisonError::into_inner);
        match seen {
            Seen::Service(event) => known_services.apply(event, &mut zone, Zone::upsert_service, Zone::delete_service),
            Seen::Slice(event) => known_slices.apply(event, &mut zone, Zone::upsert_slice, Zone::delete_slice),
        }
        if known_services.synced && known_slices.synced && metrics.mark_synced() {
            info!("the cluster's names are known");
        }
    }
}

#[derive(Default)]
struct Listing {
    known: HashSet<Key>,
    unseen: HashSet<Key>,
    synced: bool,
}

impl Listing {
    fn apply<K: Resource>(
        &mut self,
        event: Event<K>,
        zone: &mut Zone,
        upsert: impl Fn(&mut Zone, &K),
        delete: impl Fn(&mut Zone, &Key),
    ) {
        match event {
            Event::Init => self.unseen = self.known.clone(),
            Event::InitApply(object) | Event::Apply(object) => {
                let key = key(&object);
                self.unseen.remove(&key);
                self.known.insert(key);
                upsert(zone, &object);
            }
            Event::Delete(object) => {
                let key = key(&object);
                self.known.remove(&key);
                delete(zone, &key);
            }
            Event::InitDone => {
                self.synced = true;
                for gone in self.unseen.drain() {
                    self.known.remove(&gone);
                    delete(zone, &gone);
                }
            }
        }
    }
}

fn key<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    Key::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}
