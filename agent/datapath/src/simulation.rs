//! A node whose kernel is ordinary maps: what scenarios run, one map operation at a time.
//!
//! After every operation it looks with the eyes of packets: whoever asks for a frontend, from whatever source, must see
//! it as it was or as it will be. A packet that has made some of its lookups before must find a whole Service, and where
//! only endpoints change the old ones or the new ones. Only tests call it; the same ledger works, in the same order, on
//! the kernel's maps.

use crate::{
    Change, NodeTables, ObjectKey, ServicePlan, Snapshot, Tables,
    ledger::{Found, Ledger, Operations, Retired, ServiceMaps},
    plan::{plan_nodes, plan_service},
};
use leme_abi::{Addr, Backend, FrontendKey, MemberKey, RouteKey, Service, SlotKey, SourceKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
};

/// The Service maps as they are at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Kernel {
    pub frontends: BTreeMap<FrontendKey, u32>,
    pub services: BTreeMap<u32, Service>,
    pub slots: BTreeMap<SlotKey, u32>,
    pub backends: BTreeMap<u32, Backend>,
    pub sources: BTreeSet<SourceKey>,
    pub members: BTreeMap<MemberKey, u32>,
}

/// What a packet finds out about a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    NoService,
    /// Something that leads nowhere: never to happen.
    Torn(&'static str),
    Denied,
    Service(u32, BTreeSet<Backend>),
}

impl Kernel {
    pub(crate) fn found(&self) -> Found {
        Found {
            frontends: self.frontends.clone().into_iter().collect(),
            services: self.services.clone().into_iter().collect(),
            slots: self.slots.clone().into_iter().collect(),
            backends: self.backends.clone().into_iter().collect(),
            sources: self.sources.iter().map(|key| (*key, 1)).collect(),
            members: self.members.clone().into_iter().collect(),
        }
    }

    pub(crate) fn see(&self, frontend: &FrontendKey, source: Addr) -> Seen {
        see([self; 4], frontend, source)
    }

    fn admits(&self, service: u32, source: Addr) -> bool {
        let covers = |key: &SourceKey| {
            key.service == service && prefix_of(&source, key.prefix - 32) == prefix_of(&key.addr, key.prefix - 32)
        };
        self.sources.iter().any(covers)
    }
}

fn prefix_of(addr: &Addr, bits: u32) -> u128 {
    let word = addr.0.iter().fold(0u128, |all, word| all << 32 | u128::from(u32::from_be(*word)));
    word & u128::MAX.checked_shl(128 - bits).unwrap_or(0)
}

/// A packet's four lookups, each at a moment of its own.
fn see([first, second, third, fourth]: [&Kernel; 4], frontend: &FrontendKey, source: Addr) -> Seen {
    let Some(id) = first.frontends.get(frontend) else { return Seen::NoService };
    let Some(service) = second.services.get(id) else { return Seen::Torn("a frontend leads to no service") };
    if service.flags & Service::GUARDED != 0 && !third.admits(*id, source) {
        return Seen::Denied;
    }
    let slot = |n| third.slots.get(&SlotKey { service: *id, generation: service.generation, n });
    let backends: Option<Vec<u32>> = (0..service.count).map(|n| slot(n).copied()).collect();
    let Some(backends) = backends else { return Seen::Torn("a slot is missing") };
    let backends: Option<BTreeSet<Backend>> = backends.iter().map(|id| fourth.backends.get(id).copied()).collect();
    backends.map_or(Seen::Torn("a backend is missing"), |backends| Seen::Service(service.flags, backends))
}

/// Carries operations out one entry at a time and remembers every moment.
pub(crate) struct Film {
    pub moments: Vec<Kernel>,
}

impl Film {
    pub(crate) fn start(kernel: Kernel) -> Self {
        Self { moments: vec![kernel] }
    }

    pub(crate) fn last(&self) -> &Kernel {
        self.moments.last().expect("it starts with one")
    }

    fn each<T>(&mut self, entries: &[T], change: impl Fn(&mut Kernel, &T)) -> Result<(), Infallible> {
        for entry in entries {
            let mut next = self.last().clone();
            change(&mut next, entry);
            self.moments.push(next);
        }
        Ok(())
    }

    /// # Panics
    /// With what a packet would have seen.
    pub(crate) fn check(&self) {
        let (before, after) = (&self.moments[0], self.last());
        let frontends: BTreeSet<_> = before.frontends.keys().chain(after.frontends.keys()).collect();
        let mut sources: BTreeSet<Addr> = before.sources.iter().chain(&after.sources).map(|key| key.addr).collect();
        sources.insert(Addr::from(Ipv4Addr::new(192, 0, 2, 254)));
        for (frontend, source) in frontends.into_iter().flat_map(|key| sources.iter().map(move |addr| (key, *addr))) {
            let (old, new) = (before.see(frontend, source), after.see(frontend, source));
            let stays = before.frontends.get(frontend) == after.frontends.get(frontend);
            for (i, early) in self.moments.iter().enumerate() {
                let seen = early.see(frontend, source);
                assert!(
                    seen == old || seen == new,
                    "{frontend:?} was {old:?}, becomes {new:?}, and after {i}: {seen:?}"
                );
                // What goes after a packet began is gone at the end; a step later is the tightest race.
                for late in [self.moments.get(i + 1).unwrap_or(after), after] {
                    let slow = [[early, late, late, late], [early, early, late, late], [early, early, early, late]];
                    for seen in slow.map(|moments| see(moments, frontend, source)) {
                        assert!(!matches!(seen, Seen::Torn(_)), "{frontend:?}, begun after {i}: {seen:?}");
                        assert!(!stays || seen == old || seen == new, "{frontend:?}, begun after {i}: {seen:?}");
                    }
                }
            }
        }
    }
}

impl ServiceMaps for Film {
    type Error = Infallible;

    fn put_backends(&mut self, entries: &[(u32, Backend)]) -> Result<(), Infallible> {
        self.each(entries, |kernel, (id, backend)| {
            kernel.backends.insert(*id, *backend);
        })
    }

    fn put_slots(&mut self, entries: &[(SlotKey, u32)]) -> Result<(), Infallible> {
        self.each(entries, |kernel, (key, backend)| {
            kernel.slots.insert(*key, *backend);
        })
    }

    fn put_sources(&mut self, entries: &[(SourceKey, u32)]) -> Result<(), Infallible> {
        self.each(entries, |kernel, (key, _)| {
            kernel.sources.insert(*key);
        })
    }

    fn put_members(&mut self, entries: &[(MemberKey, u32)]) -> Result<(), Infallible> {
        self.each(entries, |kernel, (key, value)| {
            kernel.members.insert(*key, *value);
        })
    }

    fn put_services(&mut self, entries: &[(u32, Service)]) -> Result<(), Infallible> {
        self.each(entries, |kernel, (id, service)| {
            kernel.services.insert(*id, *service);
        })
    }

    fn put_frontends(&mut self, entries: &[(FrontendKey, u32)]) -> Result<(), Infallible> {
        self.each(entries, |kernel, (key, id)| {
            kernel.frontends.insert(*key, *id);
        })
    }

    fn delete_backends(&mut self, keys: &[u32]) -> Result<(), Infallible> {
        self.each(keys, |kernel, id| {
            kernel.backends.remove(id);
        })
    }

    fn delete_slots(&mut self, keys: &[SlotKey]) -> Result<(), Infallible> {
        self.each(keys, |kernel, key| {
            kernel.slots.remove(key);
        })
    }

    fn delete_sources(&mut self, keys: &[SourceKey]) -> Result<(), Infallible> {
        self.each(keys, |kernel, key| {
            kernel.sources.remove(key);
        })
    }

    fn delete_members(&mut self, keys: &[MemberKey]) -> Result<(), Infallible> {
        self.each(keys, |kernel, key| {
            kernel.members.remove(key);
        })
    }

    fn delete_services(&mut self, keys: &[u32]) -> Result<(), Infallible> {
        self.each(keys, |kernel, id| {
            kernel.services.remove(id);
        })
    }

    fn delete_frontends(&mut self, keys: &[FrontendKey]) -> Result<(), Infallible> {
        self.each(keys, |kernel, key| {
            kernel.frontends.remove(key);
        })
    }
}

/// A node: what its agent knows, its ledger, its kernel.
pub struct Node {
    pub snapshot: Snapshot,
    ledger: Ledger,
    kernel: Kernel,
    nodes: NodeTables,
}

impl Node {
    pub fn new(snapshot: Snapshot) -> Self {
        let (ledger, _) = Ledger::adopt(Found::default());
        Self { snapshot, ledger, kernel: Kernel::default(), nodes: NodeTables::default() }
    }

    /// As `Datapath::reconcile`. Answers how many operations it took.
    ///
    /// # Panics
    /// If a packet would have seen anything but the old or the new state.
    pub fn reconcile(&mut self, changes: &BTreeSet<Change>) -> usize {
        let mut operations = Operations::default();
        for change in changes {
            match change {
                Change::Service(key) => {
                    self.ledger.change(key, &plan_service(&self.snapshot, key), &mut operations);
                }
                Change::Nodes => self.nodes = plan_nodes(&self.snapshot),
            }
        }
        self.apply(operations)
    }

    /// As `Datapath::reconcile_all`.
    pub fn reconcile_all(&mut self) -> usize {
        let count = self.reconcile(&self.snapshot.all_changes());
        let mut operations = Operations::default();
        self.ledger.prune(|key| self.snapshot.has_service(key), &mut operations);
        count + self.apply(operations)
    }

    /// A new agent that knows nothing yet finds what the last one left.
    pub fn restart(&mut self, snapshot: Snapshot) {
        self.snapshot = snapshot;
        let (ledger, leftovers) = Ledger::adopt(self.kernel.found());
        self.ledger = ledger;
        self.apply(leftovers);
    }

    fn apply(&mut self, operations: Operations) -> usize {
        let mut film = Film::start(std::mem::take(&mut self.kernel));
        let Ok(()) = operations.carry_out(&mut film);
        film.check();
        self.kernel = film.last().clone();
        self.bury(&operations.retired);
        operations.len()
    }

    fn bury(&mut self, retired: &Retired) {
        let mut film = Film::start(std::mem::take(&mut self.kernel));
        let Ok(()) = retired.bury(&mut film);
        for moment in &film.moments {
            let sees =
                |kernel: &Kernel| kernel.frontends.keys().map(|key| kernel.see(key, Addr::ANY)).collect::<Vec<_>>();
            assert_eq!(sees(moment), sees(&film.moments[0]), "what is buried is still seen");
        }
        self.kernel = film.last().clone();
    }

    /// The kernel's tables in the words of [`Tables`]; entries that no Service has claimed yet are at the end.
    pub fn tables(&self) -> String {
        let owners = self.ledger.owners();
        let checks = self.snapshot.health_checks().collect();
        let mut tables = Tables { nodes: self.nodes.clone(), checks, ..Tables::default() };
        let mut ids: Vec<&u32> = self.kernel.services.keys().collect();
        ids.sort_by_key(|id| owners.get(id).map(|(key, n)| ((*key).clone(), *n)));
        let unclaimed = ObjectKey::new("~", "unclaimed");
        for id in ids {
            let key = owners.get(id).map_or(&unclaimed, |(key, _)| *key);
            tables.services.entry(key.clone()).or_default().push(self.plan_of(*id));
        }
        tables.to_string()
    }

    fn plan_of(&self, id: u32) -> ServicePlan {
        let service = self.kernel.services[&id];
        let slot = |n| self.kernel.slots[&SlotKey { service: id, generation: service.generation, n }];
        let ranges = self.kernel.sources.iter().filter(|key| key.service == id);
        let frontends = self.kernel.frontends.iter().filter(|(_, other)| **other == id);
        ServicePlan {
            frontends: frontends.map(|(key, _)| *key).collect(),
            backends: (0..service.count).map(|n| self.kernel.backends[&slot(n)]).collect(),
            sources: ranges.map(|key| RouteKey { prefix: key.prefix - 32, addr: key.addr }).collect(),
            flags: service.flags,
            affinity: service.affinity,
            ..ServicePlan::default()
        }
    }

    /// Entries of the Service maps that nothing leads to.
    pub fn leaks(&self) -> usize {
        let ids: BTreeSet<u32> = self.kernel.frontends.values().copied().collect();
        let of = |id: &u32| ids.contains(id);
        let current = |key: &&SlotKey| {
            of(&key.service)
                && self
                    .kernel
                    .services
                    .get(&key.service)
                    .is_some_and(|s| s.generation == key.generation && key.n < s.count)
        };
        let used: BTreeSet<u32> = self.kernel.slots.iter().filter(|(key, _)| current(key)).map(|(_, id)| *id).collect();
        let slots = self.kernel.slots.len() - self.kernel.slots.keys().filter(current).count();
        let backends = self.kernel.backends.keys().filter(|id| !used.contains(id)).count();
        let services = self.kernel.services.keys().filter(|id| !of(id)).count();
        let members = self.kernel.members.keys().filter(|key| !of(&key.service)).count();
        slots + backends + services + members + self.kernel.sources.iter().filter(|key| !of(&key.service)).count()
    }

    /// Backends behind a frontend as somebody at an address sees it; none: not served to them.
    pub fn ask(&self, frontend: &FrontendKey, source: IpAddr) -> Option<Vec<IpAddr>> {
        match self.kernel.see(frontend, source.into()) {
            Seen::Service(_, backends) => Some(backends.iter().map(|backend| backend.addr.into()).collect()),
            _ => None,
        }
    }
}
