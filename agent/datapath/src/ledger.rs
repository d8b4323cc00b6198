//! What the Service maps hold, and how to get from there to a plan: ids, generations, and the difference as batches.
//!
//! `datapath` uses it on the kernel's maps, `simulation` on ordinary ones. It never calls the kernel: adoption hands it
//! the maps' contents, and whoever has the maps carries out the operations it returns, in the order written here.

use crate::{ObjectKey, plan::ServicePlan};
use leme_abi::{
    Addr, Backend, FrontendKey, MemberKey, Origin, Port, Protocol, RouteKey, Scope, Service, SlotKey, SourceKey,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Map operations. Whatever packet comes between two of them finds each frontend as it was or as it will be.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    pub backends: Vec<(u32, Backend)>,
    pub slots: Vec<(SlotKey, u32)>,
    pub sources: Vec<(SourceKey, u32)>,
    pub members: Vec<(MemberKey, u32)>,
    pub services: Vec<(u32, Service)>,
    pub frontends: BTreeMap<FrontendKey, u32>,
    pub gone_frontends: BTreeSet<FrontendKey>,
    /// Clients that remember these choose anew.
    pub gone_members: Vec<MemberKey>,
    /// Someone who served over UDP does so no more: connected sockets may have it.
    pub deserted: bool,
    /// Ids that nothing leads to yet.
    pub fresh: BTreeSet<u32>,
    pub retired: Retired,
}

/// Entries that a packet being processed at this moment may still look up.
#[derive(Debug, Default)]
pub(crate) struct Retired {
    pub services: Vec<u32>,
    pub slots: Vec<SlotKey>,
    pub backends: Vec<u32>,
    pub sources: Vec<SourceKey>,
}

/// The Service maps: the kernel's, or ordinary ones. Batches; absent is deleted.
pub(crate) trait ServiceMaps {
    type Error;
    fn put_backends(&mut self, entries: &[(u32, Backend)]) -> Result<(), Self::Error>;
    fn put_slots(&mut self, entries: &[(SlotKey, u32)]) -> Result<(), Self::Error>;
    fn put_sources(&mut self, entries: &[(SourceKey, u32)]) -> Result<(), Self::Error>;
    fn put_members(&mut self, entries: &[(MemberKey, u32)]) -> Result<(), Self::Error>;
    fn put_services(&mut self, entries: &[(u32, Service)]) -> Result<(), Self::Error>;
    fn put_frontends(&mut self, entries: &[(FrontendKey, u32)]) -> Result<(), Self::Error>;
    fn delete_backends(&mut self, keys: &[u32]) -> Result<(), Self::Error>;
    fn delete_slots(&mut self, keys: &[SlotKey]) -> Result<(), Self::Error>;
    fn delete_sources(&mut self, keys: &[SourceKey]) -> Result<(), Self::Error>;
    fn delete_members(&mut self, keys: &[MemberKey]) -> Result<(), Self::Error>;
    fn delete_services(&mut self, keys: &[u32]) -> Result<(), Self::Error>;
    fn delete_frontends(&mut self, keys: &[FrontendKey]) -> Result<(), Self::Error>;
}

impl Operations {
    /// What a packet may look up exists before anything leads to it. A frontend that moves does so before the id it
    /// leaves changes, and only ever to a fresh one; one that appears at an id that is in use waits until that has
    /// flipped. What nothing leads to any more stays for packets on their way: see [`Retired::bury`].
    pub(crate) fn carry_out<M: ServiceMaps>(&self, maps: &mut M) -> Result<(), M::Error> {
        let (fresh, flips): (Vec<_>, Vec<_>) =
            self.services.iter().copied().partition(|(id, _)| self.fresh.contains(id));
        let frontends = self.frontends.iter().map(|(key, id)| (*key, *id));
        let (moves, additions): (Vec<_>, Vec<_>) = frontends.partition(|(_, id)| self.fresh.contains(id));
        maps.put_backends(&self.backends)?;
        maps.put_slots(&self.slots)?;
        maps.put_sources(&self.sources)?;
        maps.put_members(&self.members)?;
        maps.put_services(&fresh)?;
        maps.put_frontends(&moves)?;
        maps.delete_frontends(&self.gone_frontends.iter().copied().collect::<Vec<_>>())?;
        maps.put_services(&flips)?;
        maps.put_frontends(&additions)?;
        maps.delete_members(&self.gone_members)
    }

    pub(crate) fn len(&self) -> usize {
        let reached = self.backends.len() + self.slots.len() + self.sources.len() + self.members.len();
        let gone = self.gone_frontends.len() + self.gone_members.len();
        reached + self.services.len() + self.frontends.len() + gone + self.retired.len()
    }
}

impl Retired {
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.services.len() + self.slots.len() + self.backends.len() + self.sources.len()
    }

    /// Once no packet can be looking any more.
    pub(crate) fn bury<M: ServiceMaps>(&self, maps: &mut M) -> Result<(), M::Error> {
        maps.delete_slots(&self.slots)?;
        maps.delete_services(&self.services)?;
        maps.delete_backends(&self.backends)?;
        maps.delete_sources(&self.sources)
    }
}

/// One id of `services`.
#[derive(Clone, Debug, Default)]
struct Entry {
    value: Service,
    /// Those it is to serve; another entry may be doing so.
    frontends: Vec<FrontendKey>,
    /// Never changes: who is let in by which id stays as it is.
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
    /// Two Services may claim one address. The later one has it, the others wait here.
    waiting: HashMap<FrontendKey, Vec<u32>>,
    /// Entries of each Service.
    owned: HashMap<ObjectKey, Vec<u32>>,
    backend_ids: HashMap<Backend, u32>,
    /// Backend and number of slots that lead to it.
    backends: HashMap<u32, (Backend, u32)>,
    next_service: u32,
    next_backend: u32,
    slots: usize,
    members: usize,
    sources: usize,
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
                    entry.frontends.push(key);
                    ledger.frontends.insert(key, id);
                }
                None => drop(operations.gone_frontends.insert(key)),
            }
        }
        ledger.adopt_slots(found.slots, &mut operations);
        for (key, _) in found.sources {
            match ledger.entries.get_mut(&key.service) {
                Some(entry) => ledger.sources += usize::from(entry.sources.insert(range(&key))),
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
        let groups = self.groups(plans, &before);
        let mut now = Vec::with_capacity(plans.len());
        for plan in plans {
            let id = self.find_entry(plan, &mut before);
            self.change_entry(id, plan, operations);
            now.push(id);
        }
        self.change_members(&now, plans, groups, operations);
        before.into_iter().for_each(|id| self.remove_entry(id, operations));
        if !now.is_empty() {
            self.owned.insert(key.clone(), now);
        }
    }

    /// Removes what no Service claimed: only after a complete list.
    pub(crate) fn prune(&mut self, keep: impl Fn(&ObjectKey) -> bool, operations: &mut Operations) {
        let gone: Vec<ObjectKey> = self.owned.keys().filter(|key| !keep(key)).cloned().collect();
        gone.iter().for_each(|key| self.change(key, &[], operations));
        let orphans: Vec<u32> = self.entries.iter().filter(|(_, e)| !e.owned).map(|(id, _)| *id).collect();
        orphans.into_iter().for_each(|id| self.remove_entry(id, operations));
    }

    /// The entry, the Service's own or an adopted one, that serves already whatever the plan takes over: one write
    /// flips it. Where frontends come together from several entries, another serves some, or it is to serve others than
    /// before, a fresh one takes over.
    fn find_entry(&mut self, plan: &ServicePlan, before: &mut BTreeSet<u32>) -> u32 {
        let taken = plan.frontends.iter().filter(|key| !self.has_lost(key, before) && self.may_take(plan.flags, key));
        let serving: BTreeSet<u32> = taken.filter_map(|key| self.frontends.get(key).copied()).collect();
        let guard_stays = |id: &&u32| self.entries.get(id).is_some_and(|entry| entry.sources == plan.sources);
        let only = serving.first().filter(|id| serving.len() == 1 && guard_stays(id)).copied();
        if let Some(id) = only.filter(|id| before.remove(id) || self.entries.get(id).is_some_and(|e| !e.owned)) {
            return id;
        }
        self.fresh_id()
    }

    fn fresh_id(&mut self) -> u32 {
        let id = self.next_service;
        self.next_service = id.wrapping_add(1).max(1);
        id
    }

    /// Whether one of these entries waits for a frontend that another Service's has.
    fn has_lost(&self, key: &FrontendKey, entries: &BTreeSet<u32>) -> bool {
        self.waiting.get(key).is_some_and(|waiting| waiting.iter().any(|id| entries.contains(id)))
    }

    /// A pod that got a port of the node keeps it, whichever Service wants it too.
    fn may_take(&self, flags: u32, key: &FrontendKey) -> bool {
        let is_pods = |id: &u32| self.entries.get(id).is_some_and(|entry| entry.value.flags & Service::HOST_PORT != 0);
        flags & Service::HOST_PORT != 0 || !self.frontends.get(key).is_some_and(is_pods)
    }

    fn change_entry(&mut self, id: u32, plan: &ServicePlan, operations: &mut Operations) {
        let known = self.entries.remove(&id);
        if known.is_none() {
            operations.fresh.insert(id);
        }
        let new = known.is_none();
        let mut entry = known.unwrap_or_default();
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
        if new {
            self.sources += plan.sources.len();
            operations.sources.extend(plan.sources.iter().map(|range| (source(id, range), 1)));
            entry.sources.clone_from(&plan.sources);
        }
        entry.owned = true;
        self.entries.insert(id, entry);
    }

    fn change_frontends(&mut self, id: u32, entry: &mut Entry, plan: &ServicePlan, operations: &mut Operations) {
        let before = std::mem::take(&mut entry.frontends);
        before.iter().filter(|key| !plan.frontends.contains(key)).for_each(|key| self.let_go(id, key, operations));
        for key in &plan.frontends {
            let waits = self.waiting.get(key).is_some_and(|waiting| waiting.contains(&id));
            match waits {
                true => {}
                false if self.may_take(plan.flags, key) => self.take(id, key, operations),
                false => self.waiting.entry(*key).or_default().push(id),
            }
        }
        entry.frontends = plan.frontends.iter().copied().collect();
    }

    fn take(&mut self, id: u32, key: &FrontendKey, operations: &mut Operations) {
        match self.frontends.insert(*key, id) {
            Some(holder) if holder == id => return,
            Some(holder) => self.waiting.entry(*key).or_default().push(holder),
            None => {}
        }
        operations.frontends.insert(*key, id);
        operations.gone_frontends.remove(key);
    }

    /// A frontend goes to whoever waits for it, or goes.
    fn let_go(&mut self, id: u32, key: &FrontendKey, operations: &mut Operations) {
        let next = self.waiting.get_mut(key).and_then(|waiting| {
            waiting.retain(|other| *other != id);
            waiting.last().copied()
        });
        if next.is_none() {
            self.waiting.remove(key);
        }
        if self.frontends.get(key) != Some(&id) {
            return;
        }
        match next {
            Some(next) => {
                self.waiting.entry(*key).or_default().retain(|other| *other != next);
                self.frontends.insert(*key, next);
                operations.frontends.insert(*key, next);
            }
            None => {
                self.frontends.remove(key);
                operations.frontends.remove(key);
                operations.gone_frontends.insert(*key);
            }
        }
    }

    /// Under which id the clients of each port are remembered so far, by the entries, the Service's own or adopted ones,
    /// that serve something of it now. No two ports share one.
    fn groups(&self, plans: &[ServicePlan], before: &BTreeSet<u32>) -> BTreeMap<(u16, u8), u32> {
        let mut groups = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for plan in plans.iter().filter(|plan| plan.affinity > 0) {
            let serving = plan.frontends.iter().filter_map(|key| self.frontends.get(key));
            let known = serving.filter_map(|id| self.entries.get_key_value(id));
            let own = known.filter(|(id, entry)| before.contains(id) || !entry.owned);
            let mut found = own.filter_map(|(id, entry)| entry.members.get(&MemberKey::group(*id).backend));
            if let (Some(group), false) = (found.next(), groups.contains_key(&plan.port))
                && taken.insert(*group)
            {
                groups.insert(plan.port, *group);
            }
        }
        groups
    }

    /// Whom affinity may lead to. The entries of one port remember their clients under one id: that of before, whichever
    /// entries there are now, or else the first of theirs. (Ids are not used twice, so it is nobody else's.)
    fn change_members(
        &mut self,
        ids: &[u32],
        plans: &[ServicePlan],
        mut groups: BTreeMap<(u16, u8), u32>,
        operations: &mut Operations,
    ) {
        for (id, plan) in ids.iter().zip(plans) {
            if !groups.contains_key(&plan.port) {
                let is_taken = groups.values().any(|group| group == id);
                groups.insert(plan.port, if is_taken { self.fresh_id() } else { *id });
            }
            let Some(entry) = self.entries.get_mut(id) else { continue };
            let mut members = BTreeMap::new();
            if plan.affinity > 0 {
                let group = groups[&plan.port];
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
        entry.frontends.iter().for_each(|key| self.let_go(id, key, operations));
        let members = entry.members.keys().map(|backend| MemberKey { service: id, backend: *backend });
        operations.gone_members.extend(members);
        self.members -= entry.members.len();
        operations.deserted |= entry.frontends.iter().any(|key| key.proto == Protocol::UDP);
        operations.retired.services.push(id);
        self.sources -= entry.sources.len();
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
        [self.frontends.len(), self.entries.len(), self.slots, self.backends.len(), self.sources, self.members]
    }

    /// Whose an id is.
    pub(crate) fn owners(&self) -> HashMap<u32, (&ObjectKey, usize)> {
        let entries = self.owned.iter();
        entries.flat_map(|(key, ids)| ids.iter().enumerate().map(move |(n, id)| (*id, (key, n)))).collect()
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
