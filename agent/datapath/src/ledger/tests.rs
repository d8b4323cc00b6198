//! The ledger on simulated maps, one operation at a time.

use super::{Found, Ledger, Operations};
use crate::{
    ObjectKey,
    plan::ServicePlan,
    simulation::{Film, Kernel, Seen},
};
use leme_abi::{Addr, Backend, FrontendKey, MemberKey, Port, Service, SlotKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

/// Where there is affinity it may lead to each current backend, and nowhere else.
fn check_members(kernel: &Kernel) {
    for (id, service) in kernel.services.iter().filter(|(id, _)| kernel.frontends.values().any(|used| used == *id)) {
        let of_service = kernel.members.iter().filter(|(key, _)| key.service == *id);
        let members: BTreeSet<u32> = of_service.map(|(key, _)| key.backend).collect();
        let slot = |n| kernel.slots[&SlotKey { service: *id, generation: service.generation, n }];
        let expected = (0..service.count).map(slot).chain([MemberKey::group(*id).backend]);
        assert_eq!(members, if service.affinity > 0 { expected.collect() } else { BTreeSet::new() });
    }
}

/// Frontend → backends.
fn view(kernel: &Kernel) -> BTreeMap<FrontendKey, BTreeSet<Backend>> {
    let see = |key: &FrontendKey| match kernel.see(key, Addr::ANY) {
        Seen::Service(_, backends) => backends,
        other => panic!("{other:?}"),
    };
    kernel.frontends.keys().map(|key| (*key, see(key))).collect()
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
        self.carry_out(&operations);
        operations
    }

    fn carry_out(&mut self, operations: &Operations) {
        let mut film = Film::start(self.kernel.clone());
        let Ok(()) = operations.carry_out(&mut film);
        film.check();
        let Ok(()) = operations.retired.bury(&mut film);
        self.kernel = film.last().clone();
        check_members(&self.kernel);
    }

    fn restart(&mut self) {
        let (ledger, leftovers) = Ledger::adopt(self.kernel.found());
        self.ledger = ledger;
        self.carry_out(&leftovers);
    }

    fn view(&self) -> BTreeMap<FrontendKey, BTreeSet<Backend>> {
        view(&self.kernel)
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

/// Which entries a port has follows its traffic policies; its clients do not care.
#[test]
fn clients_are_remembered_whichever_entries_their_port_has() {
    let of_port = |port, plan: ServicePlan| ServicePlan { port: (port, 6), ..sticky(plan) };
    let group =
        |world: &World, number| world.kernel.members[&MemberKey::group(world.kernel.frontends[&frontend(number)])];
    let apart = [of_port(80, plan(&[80], &[1])), of_port(80, plan(&[30080], &[1, 2]))];
    let together = [of_port(80, plan(&[80, 30080], &[1, 2]))];
    let mut world = World::new();
    world.change(1, &apart);
    let (before, id) = (group(&world, 80), world.kernel.frontends[&frontend(80)]);
    for plans in [&together[..], &apart[..], &together[..]] {
        world.change(1, plans);
        assert_eq!((group(&world, 80), group(&world, 30080)), (before, before));
        world.restart();
        world.change(1, plans);
        assert_eq!((group(&world, 80), group(&world, 30080)), (before, before));
    }
    assert_ne!(world.kernel.frontends[&frontend(80)], id, "it is served by another entry");
    // Another port that gets one of them remembers its own.
    world.change(1, &[of_port(80, plan(&[80], &[1, 2])), of_port(81, plan(&[81, 30080], &[1, 2]))]);
    assert_eq!(group(&world, 80), before);
    assert_ne!(group(&world, 81), before);
    // And so does another Service that gets its address.
    world.change(2, &[of_port(80, plan(&[80], &[1, 2]))]);
    assert_ne!(group(&world, 80), before);
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
fn other_sources_are_let_in_by_a_fresh_id_and_the_old_one_goes_with_its_own() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1])]);
    let guarded = world.change(1, &[guard(plan(&[80], &[1]), &["10.0.0.0/8", "192.0.2.0/24"])]);
    assert_eq!((guarded.sources.len(), guarded.fresh.len(), guarded.retired.services.len()), (2, 1, 1));
    let grown = world.change(1, &[guard(plan(&[80], &[1, 2]), &["10.0.0.0/8", "192.0.2.0/24"])]);
    assert_eq!((grown.sources.len(), grown.fresh.len()), (0, 0));
    let narrowed = world.change(1, &[guard(plan(&[80], &[1]), &["192.0.2.0/25"])]);
    assert_eq!((narrowed.sources.len(), narrowed.fresh.len(), narrowed.retired.sources.len()), (1, 1, 2));
    world.restart();
    assert_eq!(world.change(1, &[guard(plan(&[80], &[1]), &["192.0.2.0/25"])]).len(), 0);
    world.change(1, &[plan(&[80], &[1])]);
    assert_eq!((world.kernel.sources.len(), world.ledger.sizes()[4]), (0, 0));
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
    assert_eq!(world.view(), BTreeMap::from([(frontend(80), plan(&[], &[2]).backends)]));
}

#[test]
fn an_address_that_two_services_claim_goes_back_to_the_first_when_the_second_goes() {
    let mut world = World::new();
    world.change(1, &[plan(&[80, 81], &[1])]);
    world.change(2, &[plan(&[81, 82], &[2])]);
    let of = |world: &World, number| world.view().get(&frontend(number)).cloned();
    assert_eq!(of(&world, 81), Some(plan(&[], &[2]).backends));
    assert_eq!(world.change(1, &[plan(&[80, 81], &[1])]).len(), 0, "the first waits");
    world.change(1, &[plan(&[80, 81], &[3])]);
    assert_eq!(of(&world, 81), Some(plan(&[], &[2]).backends));
    world.change(2, &[]);
    assert_eq!(of(&world, 81), Some(plan(&[], &[3]).backends));
    world.change(1, &[]);
    assert_eq!(world.kernel, Kernel::default());
}

#[test]
fn frontends_that_come_together_gather_at_a_fresh_id() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1]), plan(&[81], &[2])]);
    let operations = world.change(1, &[plan(&[80, 81], &[3])]);
    assert_eq!((operations.fresh.len(), operations.frontends.len(), operations.retired.services.len()), (1, 2, 2));
    let operations = world.change(1, &[plan(&[80], &[4]), plan(&[81], &[5])]);
    assert_eq!((operations.fresh.len(), operations.frontends.len(), operations.retired.services.len()), (1, 1, 0));
}

#[test]
fn a_pods_port_of_the_node_is_not_taken_by_a_service_that_wants_it_too() {
    let pods = ServicePlan { flags: Service::HOST_PORT, ..plan(&[81], &[7]) };
    let of = |world: &World, number| world.view()[&frontend(number)].clone();
    for first_the_pod in [true, false] {
        let mut world = World::new();
        let steps: [(u16, &ServicePlan); 2] = [(9, &pods), (1, &plan(&[80, 81], &[1]))];
        let order = if first_the_pod { [0, 1] } else { [1, 0] };
        order.iter().for_each(|i| drop(world.change(steps[*i].0, std::slice::from_ref(steps[*i].1))));
        assert_eq!((of(&world, 81), of(&world, 80)), (pods.backends.clone(), plan(&[], &[1]).backends));
        assert_eq!(world.change(1, &[plan(&[80, 81], &[2])]).fresh.len(), 0, "the Service keeps its id");
        assert_eq!(of(&world, 81), pods.backends);
        world.change(9, &[]);
        assert_eq!(of(&world, 81), plan(&[], &[2]).backends);
    }
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
    world.carry_out(&operations);
    assert_eq!(world.view().keys().collect::<Vec<_>>(), [&frontend(80)]);
}

#[test]
fn an_agent_that_died_half_way_leaves_nothing_behind_after_the_next() {
    let mut world = World::new();
    world.change(1, &[plan(&[80], &[1, 2])]);
    let mut operations = Operations::default();
    world.ledger.change(&key(1), &[plan(&[80], &[3])], &mut operations);
    let mut film = Film::start(world.kernel.clone());
    let Ok(()) = operations.carry_out(&mut film);
    let flip = film.moments.iter().position(|moment| moment.services != world.kernel.services).unwrap();
    world.kernel = film.moments[flip - 1].clone();
    world.restart();
    world.change(1, &[plan(&[80], &[3])]);
    assert_eq!((world.kernel.slots.len(), world.kernel.backends.len()), (1, 1));
    assert_eq!(world.view(), BTreeMap::from([(frontend(80), plan(&[], &[3]).backends)]));
}

/// A small generator, so that a failure repeats.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

#[test]
fn whatever_the_order_of_changes_the_kernel_ends_as_planned() {
    for round in 0..50 {
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
        assert_eq!(world.view(), view.collect(), "round {round}");
    }
}
