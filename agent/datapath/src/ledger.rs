//! What the Service maps hold, and how to get from there to a plan: ids, generations, and the difference as batches.
//!
//! `datapath` is its only user. It never calls the kernel: adoption hands it the maps' contents, and the operations it
//! returns are carried out by `apply`.

use crate::{ObjectKey, plan::ServicePlan};
use leme_abi::{
    Addr, Backend, FrontendKey, MemberKey, Origin, Port, Protocol, RouteKey, Scope, Service, SlotKey, SourceKey,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Map operations in the order in which they must happen: what a packet may look up exists before anything leads to
/// it, and one write per Service flips it. What nothing leads to any more goes later.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    pub backends: Vec<(u32, Backend)>,
    pub slots: Vec<(SlotKey, u32)>,
    pub sources: Vec<(SourceKey, u32)>,
    pub members: Vec<(MemberKey, u32)>,
    pub services: Vec<(u32, Service)>,
    pub frontends: Vec<(FrontendKey, u32)>,
    pub gone_frontends: Vec<FrontendKey>,
    /// Clients that remember these choose anew.
    pub gone_members: Vec<MemberKey>,
    /// Someone who served over UDP does so no more: connected sockets may have it.
    pub deserted: bool,
    /// No longer let in.
    pub gone_sources: Vec<SourceKey>,
    pub retired: Retired,
}

/// Entries that a packet being processed at this moment may still look up.
#[derive(Debug, Default)]
pub(crate) struct Retired {
    pub services: Vec<u32>,
    pub slots: Vec<SlotKey>,
    pub backends: Vec<u32>,
    /// Sources of Services that are gone or are for everybody now.
    pub sources: Vec<SourceKey>,
}

impl Retired {
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.services.len() + self.slots.len() + self.backends.len() + self.sources.len()
    }
}

impl Operations {
    pub(crate) fn len(&self) -> usize {
        let reached = self.backends.len() + self.slots.len() + self.sources.len() + self.members.len();
        let gone = self.gone_frontends.len() + self.gone_sources.len() + self.gone_members.len();
        reached + self.services.len() + self.frontends.len() + gone + self.retired.len()
    }
}

/// One id of `services`.
#[derive(Clone, Debug, Default)]
struct Entry {
    value: Service,
    frontends: BTreeSet<FrontendKey>,
    sources: BTreeSet<RouteKey>,
    /// In the order of the slots.
    backends: Vec<u32>,
    draining: BTreeSet<(Addr, Port)>,
    /// Its part of `members`, by backend.
    members: BTreeMap<u32, u32>,
    /// A Service has claimed it; adopted ones wait for theirs.
    owned: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: HashMap<u32, Entry>,
    /// Who leads where, over all entries.
    frontends: HashMap<FrontendKey, u32>,
    /// Entries of each Service.
    owned: HashMap<ObjectKey, Vec<u32>>,
    backend_ids: HashMap<Backend, u32>,
    /// Backend and number of slots that lead to it.
    backends: HashMap<u32, (Backend, u32)>,
    next_service: u32,
    next_backend: u32,
    slots: usize,
    members: usize,
}

/// Ids are not used again until the counter wraps, 4 billion later. An earlier agent may have used some beyond the
/// largest one found, which connections may still remember: skip those too.
const SKIP: u32 = 65_536;

/// Contents of the maps.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub frontends: Vec<(FrontendKey, u32)>,
    pub services: Vec<(u32, Service)>,
    pub slots: Vec<(SlotKey, u32)>,
    pub backends: Vec<(u32, Backend)>,
    pub sources: Vec<(SourceKey, u32)>,
    pub members: Vec<(MemberKey, u32)>,
}

impl Ledger {
    /// Takes over what an earlier agent wrote. Anything half-written by it is retired.
    pub(crate) fn adopt(found: Found) -> (Self, Operations) {
        let mut ledger = Self { next_service: 1, next_backend: 1, ..Self::default() };
        let mut operations = Operations::default();
        ledger.backends = found.backends.iter().map(|(id, backend)| (*id, (*backend, 0))).collect();
        ledger.entries =
            found.services.iter().map(|(id, value)| (*id, Entry { value: *value, ..Entry::default() })).collect();
        for (key, id) in found.frontends {
            match ledger.entries.get_mut(&id) {
                Some(entry) => {
                    entry.frontends.insert(key);
                    ledger.frontends.insert(key, id);
                }
                None => operations.gone_frontends.push(key),
            }
        }
        ledger.adopt_slots(found.slots, &mut operations);
        for (key, _) in found.sources {
            match ledger.entries.get_mut(&key.service) {
                Some(entry) => drop(entry.sources.insert(range(&key))),
                None => operations.retired.sources.push(key),
            }
        }
        for (key, value) in found.members {
            match ledger.entries.get_mut(&key.service) {
                Some(entry) => {
                    entry.members.insert(key.backend, value);
                    ledger.members += 1;
                }
                None => operations.gone_members.push(key),
            }
        }
        ledger.backends.retain(|id, (_, users)| {
            if *users == 0 {
                operations.retired.backends.push(*id);
            }
            *users > 0
        });
        ledger.backend_ids = ledger.backends.iter().map(|(id, (backend, _))| (*backend, *id)).collect();
        let skip = |ids: Option<u32>| ids.map_or(1, |largest| largest.wrapping_add(SKIP));
        ledger.next_service = skip(found.services.iter().map(|(id, _)| *id).max());
        ledger.next_backend = skip(found.backends.iter().map(|(id, _)| *id).max());
        (ledger, operations)
    }

    fn adopt_slots(&mut self, mut slots: Vec<(SlotKey, u32)>, operations: &mut Operations) {
        slots.sort_unstable();
        for (key, backend) in slots {
            let entry = self.entries.get_mut(&key.service);
            let current = entry.filter(|entry| key.generation == entry.value.generation && key.n < entry.value.count);
            match (current, self.backends.get_mut(&backend)) {
                (Some(entry), Some((_, users))) => {
                    entry.backends.push(backend);
                    *users += 1;
                    self.slots += 1;
                }
                _ => operations.retired.slots.push(key),
            }
        }
    }

    /// What must change for a Service to be as planned. An empty plan removes it.
    pub(crate) fn change(&mut self, key: &ObjectKey, plans: &[ServicePlan], operations: &mut Operations) {
        let mut before: BTreeSet<u32> = self.owned.remove(key).unwrap_or_default().into_iter().collect();
        let mut now = Vec::with_capacity(plans.len());
        for plan in plans {
            let id = self.find_entry(plan, &mut before);
            self.change_entry(id, plan, operations);
            now.push(id);
        }
        self.change_members(&now, plans, operations);
        before.into_iter().for_each(|id| self.remove_entry(id, operations));
        if !now.is_empty() {
            self.owned.insert(key.clone(), now);
        }
    }

    /// Frontends that were let go and that somebody else wants, too, are theirs from now on.
    pub(crate) fn hand_over(&mut self, operations: &mut Operations) {
        for key in std::mem::take(&mut operations.gone_frontends) {
            match self.entries.iter().find(|(_, entry)| entry.frontends.contains(&key)) {
                Some((id, _)) => {
                    self.frontends.insert(key, *id);
                    operations.frontends.push((key, *id));
                }
                None => operations.gone_frontends.push(key),
            }
        }
    }

    /// Removes what no Service claimed: only after a complete list.
    pub(crate) fn prune(&mut self, keep: impl Fn(&ObjectKey) -> bool, operations: &mut Operations) {
        let gone: Vec<ObjectKey> = self.owned.keys().filter(|key| !keep(key)).cloned().collect();
        gone.iter().for_each(|key| self.change(key, &[], operations));
        let orphans: Vec<u32> = self.entries.iter().filter(|(_, e)| !e.owned).map(|(id, _)| *id).collect();
        orphans.into_iter().for_each(|id| self.remove_entry(id, operations));
    }

    /// The entry that serves one of the plan's frontends already, its own or an adopted one; else a new one.
    fn find_entry(&mut self, plan: &ServicePlan, before: &mut BTreeSet<u32>) -> u32 {
        let serving = plan.frontends.iter().filter_map(|key| self.frontends.get(key).copied());
        let candidates: Vec<u32> = serving.collect();
        if let Some(id) = candidates.iter().find(|id| before.contains(id)) {
            before.remove(id);
            return *id;
        }
        if let Some(id) = candidates.iter().find(|id| self.entries.get(id).is_some_and(|entry| !entry.owned)) {
            return *id;
        }
        let id = self.next_service;
        self.next_service = id.wrapping_add(1).max(1);
        id
    }

    fn change_entry(&mut self, id: u32, plan: &ServicePlan, operations: &mut Operations) {
        let new = !self.entries.contains_key(&id);
        let mut entry = self.entries.remove(&id).unwrap_or_default();
        let wanted = Service { flags: plan.flags, affinity: plan.affinity, ..entry.value };
        let current: BTreeSet<Backend> =
            entry.backends.iter().filter_map(|b| self.backends.get(b)).map(|b| b.0).collect();
        let before = udp_places(&current, &entry.draining);
        operations.deserted |= !before.is_subset(&udp_places(&plan.backends, &plan.draining));
        entry.draining.clone_from(&plan.draining);
        if current != plan.backends {
            let old = std::mem::take(&mut entry.backends);
            operations.retired.slots.extend((0..entry.value.count).map(|n| slot(id, entry.value.generation, n)));
            entry.value = Service {
                generation: entry.value.generation.wrapping_add(1),
                count: plan.backends.len() as u32,
                ..wanted
            };
            entry.backends = plan.backends.iter().map(|backend| self.use_backend(backend, operations)).collect();
            let slots = entry.backends.iter().enumerate();
            operations.slots.extend(slots.map(|(n, b)| (slot(id, entry.value.generation, n as u32), *b)));
            self.slots = self.slots + entry.backends.len() - old.len();
            operations.services.push((id, entry.value));
            old.into_iter().for_each(|backend| self.release_backend(backend, operations));
        } else if new || entry.value != wanted {
            entry.value = wanted;
            operations.services.push((id, wanted));
        }
        self.change_frontends(id, &mut entry, plan, operations);
        change_sources(id, &mut entry, plan, operations);
        entry.owned = true;
        self.entries.insert(id, entry);
    }

    fn change_frontends(&mut self, id: u32, entry: &mut Entry, plan: &ServicePlan, operations: &mut Operations) {
        for key in entry.frontends.difference(&plan.frontends) {
            if self.frontends.get(key) == Some(&id) {
                self.frontends.remove(key);
                operations.gone_frontends.push(*key);
            }
        }
        for key in &plan.frontends {
            if self.frontends.insert(*key, id) != Some(id) {
                operations.frontends.push((*key, id));
                operations.gone_frontends.retain(|gone| gone != key);
            }
        }
        entry.frontends.clone_from(&plan.frontends);
    }

    /// Whom affinity may lead to. The entries of one port remember their clients under the lowest of their ids.
    fn change_members(&mut self, ids: &[u32], plans: &[ServicePlan], operations: &mut Operations) {
        for (id, plan) in ids.iter().zip(plans) {
            let Some(entry) = self.entries.get_mut(id) else { continue };
            let mut members = BTreeMap::new();
            if plan.affinity > 0 {
                let of_port = ids.iter().zip(plans).filter(|(_, other)| other.port == plan.port);
                let group = of_port.map(|(id, _)| *id).min().unwrap_or(*id);
                members.insert(MemberKey::group(*id).backend, group);
                members.extend(entry.backends.iter().map(|backend| (*backend, 1)));
            }
            let key = |backend: &u32| MemberKey { service: *id, backend: *backend };
            let new = members.iter().filter(|(backend, value)| entry.members.get(backend) != Some(value));
            operations.members.extend(new.map(|(backend, value)| (key(backend), *value)));
            let gone = entry.members.keys().filter(|backend| !members.contains_key(backend));
            operations.gone_members.extend(gone.map(key));
            self.members = self.members + members.len() - entry.members.len();
            entry.members = members;
        }
    }

    fn remove_entry(&mut self, id: u32, operations: &mut Operations) {
        let Some(entry) = self.entries.remove(&id) else { return };
        for key in &entry.frontends {
            if self.frontends.get(key) == Some(&id) {
                self.frontends.remove(key);
                operations.gone_frontends.push(*key);
            }
        }
        operations
            .gone_members
            .extend(entry.members.keys().map(|backend| MemberKey { service: id, backend: *backend }));
        self.members -= entry.members.len();
        operations.deserted |= entry.frontends.iter().any(|key| key.proto == Protocol::UDP);
        operations.retired.services.push(id);
        operations.retired.sources.extend(entry.sources.iter().map(|range| source(id, range)));
        operations.retired.slots.extend((0..entry.value.count).map(|n| slot(id, entry.value.generation, n)));
        self.slots -= entry.backends.len();
        entry.backends.into_iter().for_each(|backend| self.release_backend(backend, operations));
    }

    fn use_backend(&mut self, backend: &Backend, operations: &mut Operations) -> u32 {
        let id = *self.backend_ids.entry(*backend).or_insert_with(|| {
            let id = self.next_backend;
            self.next_backend = id.wrapping_add(1).max(1);
            operations.backends.push((id, *backend));
            self.backends.insert(id, (*backend, 0));
            id
        });
        if let Some((_, users)) = self.backends.get_mut(&id) {
            *users += 1;
        }
        id
    }

    fn release_backend(&mut self, id: u32, operations: &mut Operations) {
        let Some((backend, users)) = self.backends.get_mut(&id) else { return };
        *users -= 1;
        if *users == 0 {
            let backend = *backend;
            self.backends.remove(&id);
            self.backend_ids.remove(&backend);
            operations.retired.backends.push(id);
        }
    }

    /// Entries in frontends, services, slots, backends, source ranges and members.
    pub(crate) fn sizes(&self) -> [usize; 6] {
        let sources = self.entries.values().map(|entry| entry.sources.len()).sum();
        [self.frontends.len(), self.entries.len(), self.slots, self.backends.len(), sources, self.members]
    }

    /// Whether a source is let in: again, perhaps, since it was retired.
    pub(crate) fn admits(&self, key: &SourceKey) -> bool {
        self.entries.get(&key.service).is_some_and(|entry| entry.sources.contains(&range(key)))
    }

    /// Whether what a UDP socket asked for still leads to the backend it got, or that one is at least finishing its work.
    pub(crate) fn leads(&self, origin: &Origin) -> bool {
        let key =
            |addr| FrontendKey { addr, port: origin.frontend_port, proto: Protocol::UDP, scope: Scope::Cluster as u8 };
        let id = self.frontends.get(&key(origin.frontend)).or_else(|| self.frontends.get(&key(Addr::ANY)));
        let Some(entry) = id.and_then(|id| self.entries.get(id)) else { return false };
        let place = (origin.backend, origin.backend_port);
        let mut backends = entry.backends.iter().filter_map(|id| self.backends.get(id));
        entry.draining.contains(&place) || backends.any(|(backend, _)| (backend.addr, backend.port) == place)
    }

    pub(crate) fn uses(&self, service: u32, backend: u32) -> bool {
        self.entries.get(&service).is_some_and(|entry| entry.backends.contains(&backend))
    }

    /// Whether a Service leads new connections to an address.
    pub(crate) fn serves(&self, key: &ObjectKey, addr: leme_abi::Addr) -> bool {
        let entries = self.owned.get(key).into_iter().flatten().filter_map(|id| self.entries.get(id));
        let mut backends = entries.flat_map(|entry| &entry.backends).filter_map(|id| self.backends.get(id));
        backends.any(|(backend, _)| backend.addr == addr)
    }
}

/// Whoever is no longer let in is kept out at once; a guard that falls as a whole falls with the flag, and its ranges stay
/// for packets that still see the flag.
fn change_sources(id: u32, entry: &mut Entry, plan: &ServicePlan, operations: &mut Operations) {
    let gone = entry.sources.difference(&plan.sources).map(|range| source(id, range));
    match plan.sources.is_empty() {
        true => operations.retired.sources.extend(gone),
        false => operations.gone_sources.extend(gone),
    }
    operations.sources.extend(plan.sources.difference(&entry.sources).map(|range| (source(id, range), 1)));
    entry.sources.clone_from(&plan.sources);
}

/// Where UDP sockets of a Service may be connected to.
fn udp_places(backends: &BTreeSet<Backend>, draining: &BTreeSet<(Addr, Port)>) -> BTreeSet<(Addr, Port)> {
    let serving = backends.iter().filter(|backend| backend.proto == Protocol::UDP);
    serving.map(|backend| (backend.addr, backend.port)).chain(draining.iter().copied()).collect()
}

/// A range as the key of its Service: behind the bits of the id.
fn source(service: u32, range: &RouteKey) -> SourceKey {
    SourceKey { prefix: 32 + range.prefix, service, addr: range.addr }
}

fn range(key: &SourceKey) -> RouteKey {
    RouteKey { prefix: key.prefix.saturating_sub(32), addr: key.addr }
}

fn slot(service: u32, generation: u32, n: u32) -> SlotKey {
    SlotKey { service, generation, n }
}

#[cfg(test)]
mod tests;
