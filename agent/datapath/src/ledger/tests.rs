//! The ledger against a kernel made of ordinary maps, which carries out one operation at a time.

use super::{Found, Ledger, Operations};
use crate::{ObjectKey, plan::ServicePlan};
use leme_abi::{Addr, Backend, FrontendKey, MemberKey, Port, Service, SlotKey, SourceKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

#[derive(Clone, Debug, Default, PartialEq)]
struct Kernel {
    frontends: BTreeMap<FrontendKey, u32>,
    services: BTreeMap<u32, Service>,
    slots: BTreeMap<SlotKey, u32>,
    backends: BTreeMap<u32, Backend>,
    sources: BTreeSet<SourceKey>,
    members: BTreeMap<MemberKey, u32>,
}

impl Kernel {
    /// Every packet that arrives between two operations finds a whole Service.
    fn carry_out(&mut self, operations: &Operations) {
        for (id, backend) in &operations.backends {
            self.backends.insert(*id, *backend);
            self.check();
        }
        for (key, backend) in &operations.slots {
            self.slots.insert(*key, *backend);
            self.check();
        }
        for (key, _) in &operations.sources {
            self.sources.insert(*key);
        }
        self.members.extend(operations.members.iter().copied());
        for (id, service) in &operations.services {
            self.services.insert(*id, *service);
            self.check();
        }
        for (key, id) in &operations.frontends {
            self.frontends.insert(*key, *id);
            self.check();
        }
        for key in &operations.gone_frontends {
            self.frontends.remove(key);
            self.check();
        }
        for key in &operations.gone_sources {
            self.sources.remove(key);
        }
        self.members.retain(|key, _| !operations.gone_members.contains(key));
        self.check_members();
    }

    fn bury(&mut self, operations: &Operations) {
        let retired = &operations.retired;
        self.slots.retain(|key, _| !retired.slots.contains(key));
        self.services.retain(|id, _| !retired.services.contains(id));
        self.backends.retain(|id, _| !retired.backends.contains(id));
        self.sources.retain(|key| !retired.sources.contains(key));
        self.check();
    }

    fn check(&self) {
        for id in self.frontends.values() {
            let service = self.services.get(id).expect("a frontend leads to a service");
            for n in 0..service.count {
                let backend = self.slots.get(&SlotKey { service: *id, generation: service.generation, n });
                assert!(self.backends.contains_key(backend.expect("every slot is there")), "every backend is there");
            }
        }
    }

    /// Where there is affinity it may lead to each current backend, and nowhere else.
    fn check_members(&self) {
        for (id, service) in self.services.iter().filter(|(id, _)| self.frontends.values().any(|used| used == *id)) {
            let of_service = self.members.iter().filter(|(key, _)| key.service == *id);
            let members: BTreeSet<u32> = of_service.map(|(key, _)| key.backend).collect();
            let slot = |n| self.slots[&SlotKey { service: *id, generation: service.generation, n }];
            let expected = (0..service.count).map(slot).chain([MemberKey::group(*id).backend]);
            assert_eq!(members, if service.affinity > 0 { expected.collect() } else { BTreeSet::new() });
        }
    }

    /// Frontend → backends, as a packet sees it.
    fn view(&self) -> BTreeMap<FrontendKey, BTreeSet<Backend>> {
        let backends = |id: &u32| {
            let service = self.services[id];
            let slot = |n| self.slots[&SlotKey { service: *id, generation: service.generation, n }];
            (0..service.count).map(|n| self.backends[&slot(n)]).collect()
        };
        self.frontends.iter().map(|(key, id)| (*key, backends(id))).collect()
    }

    fn found(&self) -> Found {
        Found {
            frontends: self.frontends.clone().into_iter().collect(),
            services: self.services.clone().into_iter().collect(),
            slots: self.slots.clone().into_iter().collect(),
            backends: self.backends.clone().into_iter().collect(),
            sources: self.sources.iter().map(|key| (*key, 1)).collect(),
            members: self.members.clone().into_iter().collect(),
        }
    }
}

fn frontend(number: u16) -> FrontendKey {
    FrontendKey { addr: Addr::from(Ipv4Addr::new(10, 96, 0, 1)), port: Port::new(number), proto: 6, scope: 0 }
}

fn plan(frontends: &[u16], backends: &[u8]) -> ServicePlan {
    let backend = |n: &u8| Backend {
        addr: Ipv4Addr::new(10, 244, 0, *n).into(),
        port: Port::new(80),
        proto: 6,
        ..Backend::default()
    };
    ServicePlan {
        frontends: frontends.iter().map(|number| frontend(*number)).collect(),
        backends: backends.iter().map(backend).collect(),
        ..ServicePlan::default()
    }
}

fn key(name: u16) -> ObjectKey {
    ObjectKey::new("default", name.to_string())
}

/// A ledger and its kernel.
struct World {
    ledger: Ledger,
    kernel: Kernel,
}

impl World {
    fn new() -> Self {
        Self { ledger: Ledger::adopt(Found::default()).0, kernel: Kernel::default() }
    }

    fn change(&mut self, name: u16, plans: &[ServicePlan]) -> Operations {
        let mut operations = Operations::default();
        self.ledger.change(&key(name), plans, &mut operations);
        self.kernel.carry_out(&operations);
        self.kernel.bury(&operations);
        operations
    }

    fn restart(&mut self) {
        let (ledger, leftovers) = Ledger::adopt(self.kernel.found());
        self.ledger = ledger;
        self.kernel.carry_out(&leftovers);
        self.kernel.bury(&leftovers);
    }
}

#[test]
fn the_same_plan_again_changes_nothing() {
    let mut world = World::new();
    world.change(1, &[plan(&[80, 81], &[1, 2])]);
    assert_eq!(world.change(1, &[plan(&[80, 81], &[1, 2])]).len(), 0);
}

#[test]
fn one_endpoint_more_writes_one_backend_one_generation_and_one_flip() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1, 2])]);
    let operations = world.change(1, &[plan(&[80], &[1, 2, 3])]);
    assert_eq!((operations.backends.len(), operations.slots.len(), operations.services.len()), (1, 3, 1));
    assert_eq!(operations.frontends.len() + operations.gone_frontends.len(), 0);
    assert_eq!(operations.retired.slots.len(), 2);
}

#[test]
fn a_removed_service_leaves_nothing() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1, 2]), plan(&[81], &[2])]);
    world.change(1, &[]);
    assert_eq!(world.kernel, Kernel::default());
    assert_eq!(world.ledger.sizes(), [0; 6]);
}

fn sticky(plan: ServicePlan) -> ServicePlan {
    ServicePlan { affinity: 60, ..plan }
}

#[test]
fn affinity_leads_to_current_backends_only_and_goes_with_the_service() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1, 2])]);
    let turned_on = world.change(1, &[sticky(plan(&[80], &[1, 2]))]);
    assert_eq!((turned_on.members.len(), turned_on.services.len(), turned_on.slots.len()), (3, 1, 0));
    let one_less = world.change(1, &[sticky(plan(&[80], &[2]))]);
    assert_eq!((one_less.members.len(), one_less.gone_members.len()), (0, 1));
    world.restart();
    assert_eq!(world.change(1, &[sticky(plan(&[80], &[2]))]).len(), 0);
    assert_eq!(world.change(1, &[plan(&[80], &[2])]).gone_members.len(), 2);
    world.change(1, &[sticky(plan(&[80], &[2]))]);
    world.change(1, &[]);
    assert_eq!(world.kernel, Kernel::default());
}

#[test]
fn the_entries_of_one_port_remember_their_clients_together() {
    let mut world = World::new();
    let of_port = |port, plan: ServicePlan| ServicePlan { port: (port, 6), ..sticky(plan) };
    let plans = [of_port(80, plan(&[80], &[1])), of_port(80, plan(&[30080], &[1, 2])), of_port(81, plan(&[81], &[1]))];
    world.change(1, &plans);
    let group =
        |world: &World, number| world.kernel.members[&MemberKey::group(world.kernel.frontends[&frontend(number)])];
    assert_eq!(group(&world, 80), group(&world, 30080));
    assert_ne!(group(&world, 80), group(&world, 81));
    world.restart();
    assert_eq!(world.change(1, &plans).len(), 0);
}

fn udp(plan: ServicePlan, draining: &[u8]) -> ServicePlan {
    let proto = leme_abi::Protocol::UDP;
    ServicePlan {
        frontends: plan.frontends.iter().map(|key| FrontendKey { proto, ..*key }).collect(),
        backends: plan.backends.iter().map(|backend| Backend { proto, ..*backend }).collect(),
        draining: draining.iter().map(|n| (Ipv4Addr::new(10, 244, 0, *n).into(), Port::new(80))).collect(),
        ..plan
    }
}

#[test]
fn sockets_are_looked_for_when_someone_stops_serving_over_udp() {
    let mut world = World::new();
    assert!(!world.change(1, &[udp(plan(&[53], &[1, 2]), &[])]).deserted);
    assert!(!world.change(1, &[udp(plan(&[53], &[1, 2, 3]), &[])]).deserted);
    assert!(!world.change(1, &[udp(plan(&[53], &[2, 3]), &[1])]).deserted, "it finishes its work");
    assert!(world.change(1, &[udp(plan(&[53], &[2, 3]), &[])]).deserted);
    assert!(world.change(1, &[udp(plan(&[53], &[3]), &[])]).deserted);
    assert!(world.change(1, &[]).deserted, "the Service goes");
    world.change(2, &[plan(&[80], &[1, 2])]);
    assert!(!world.change(2, &[plan(&[80], &[1])]).deserted, "TCP tells by itself");
    assert!(!world.change(2, &[]).deserted);
}

fn guard(plan: ServicePlan, networks: &[&str]) -> ServicePlan {
    let sources = networks.iter().map(|network| crate::plan::route_key(network.parse().unwrap()));
    ServicePlan { sources: sources.collect(), flags: Service::GUARDED, ..plan }
}

#[test]
fn sources_are_there_before_the_guard_and_stay_as_long_as_it() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1])]);
    let guarded = world.change(1, &[guard(plan(&[80], &[1]), &["10.0.0.0/8", "192.0.2.0/24"])]);
    assert_eq!((guarded.sources.len(), guarded.services.len()), (2, 1));
    let narrowed = world.change(1, &[guard(plan(&[80], &[1]), &["192.0.2.0/24"])]);
    assert_eq!((narrowed.gone_sources.len(), narrowed.services.len(), narrowed.retired.sources.len()), (1, 0, 0));
    world.restart();
    assert_eq!(world.change(1, &[guard(plan(&[80], &[1]), &["192.0.2.0/24"])]).len(), 0);
    let opened = world.change(1, &[plan(&[80], &[1])]);
    assert_eq!((opened.gone_sources.len(), opened.services.len(), opened.retired.sources.len()), (0, 1, 1));
    world.change(1, &[guard(plan(&[80], &[1]), &["192.0.2.0/24"])]);
    world.change(1, &[]);
    assert_eq!(world.kernel, Kernel::default());
}

#[test]
fn a_backend_of_two_services_stays_until_both_have_let_go() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1])]);
    world.change(2, &[plan(&[81], &[1])]);
    assert_eq!(world.kernel.backends.len(), 1);
    world.change(1, &[]);
    assert_eq!(world.kernel.backends.len(), 1);
    world.change(2, &[]);
    assert_eq!(world.kernel.backends.len(), 0);
}

#[test]
fn an_address_moves_to_a_new_service_before_the_old_one_is_seen_to_go() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1])]);
    world.change(2, &[plan(&[80], &[2])]);
    world.change(1, &[]);
    assert_eq!(world.kernel.view(), BTreeMap::from([(frontend(80), plan(&[], &[2]).backends)]));
}

#[test]
fn a_frontend_that_two_want_is_handed_over_when_the_one_that_has_it_goes() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1])]);
    world.change(2, &[plan(&[80, 81], &[2])]);
    let mut operations = Operations::default();
    world.ledger.change(&key(2), &[], &mut operations);
    world.ledger.hand_over(&mut operations);
    world.kernel.carry_out(&operations);
    world.kernel.bury(&operations);
    assert_eq!(world.kernel.view(), BTreeMap::from([(frontend(80), plan(&[], &[1]).backends)]));
}

#[test]
fn a_restarted_agent_keeps_ids_and_changes_nothing() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1, 2]), plan(&[81], &[])]);
    world.change(2, &[plan(&[82], &[2, 3])]);
    let before = world.kernel.clone();
    world.restart();
    let again = [
        world.change(2, &[plan(&[82], &[2, 3])]).len(),
        world.change(1, &[plan(&[80], &[1, 2]), plan(&[81], &[])]).len(),
    ];
    assert_eq!((again, &world.kernel), ([0, 0], &before));
}

#[test]
fn what_went_while_the_agent_was_away_goes_after_the_first_complete_list() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1])]);
    world.change(2, &[plan(&[81], &[2])]);
    world.restart();
    world.change(1, &[plan(&[80], &[1])]);
    assert_eq!(world.kernel.frontends.len(), 2, "nothing goes before the list is complete");
    let mut operations = Operations::default();
    world.ledger.prune(|name| *name == key(1), &mut operations);
    world.kernel.carry_out(&operations);
    world.kernel.bury(&operations);
    assert_eq!(world.kernel.view().keys().collect::<Vec<_>>(), [&frontend(80)]);
}

#[test]
fn an_agent_that_died_half_way_leaves_nothing_behind_after_the_next() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1, 2])]);
    let mut operations = Operations::default();
    world.ledger.change(&key(1), &[plan(&[80], &[3])], &mut operations);
    operations.services.clear();
    world.kernel.carry_out(&operations);
    world.restart();
    world.change(1, &[plan(&[80], &[3])]);
    assert_eq!((world.kernel.slots.len(), world.kernel.backends.len()), (1, 1));
    assert_eq!(world.kernel.view(), BTreeMap::from([(frontend(80), plan(&[], &[3]).backends)]));
}

/// A small generator, so that a failure repeats.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

#[test]
fn whatever_the_order_of_changes_the_kernel_ends_as_planned() {
    for round in 0..200 {
        let mut seed = round;
        let mut world = World::new();
        let mut wanted: BTreeMap<u16, ServicePlan> = BTreeMap::new();
        for _ in 0..60 {
            let name = next(&mut seed) as u16 % 6;
            if next(&mut seed).is_multiple_of(5) {
                wanted.remove(&name);
                world.change(name, &[]);
            } else {
                let backends: Vec<u8> = (1..8).filter(|_| next(&mut seed).is_multiple_of(2)).collect();
                let affinity = 60 * (next(&mut seed) as u32 % 2);
                let planned = plan(&[name * 2, name * 2 + next(&mut seed) as u16 % 2], &backends);
                let planned = ServicePlan { affinity, ..planned };
                world.change(name, std::slice::from_ref(&planned));
                wanted.insert(name, planned);
            }
            if next(&mut seed).is_multiple_of(10) {
                world.restart();
                for (name, plan) in &wanted {
                    assert_eq!(world.change(*name, std::slice::from_ref(plan)).len(), 0);
                }
            }
        }
        let view = wanted.values().flat_map(|plan| plan.frontends.iter().map(|key| (*key, plan.backends.clone())));
        assert_eq!(world.kernel.view(), view.collect(), "round {round}");
    }
}
