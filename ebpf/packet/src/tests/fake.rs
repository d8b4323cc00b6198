//! Tables made of ordinary maps, and packets made of plain bytes.

use crate::{Bytes, Connections, Ipv4Header, Services, Tables, Work, parse};
use bytemuck::Pod;
use core::{
    cell::{Cell, RefCell},
    net::Ipv4Addr,
};
use leme_abi::{
    Addr, Affinity, AffinityKey, Backend, Conntrack, Direction, DropReason, Endpoint, FragmentKey, FrontendKey,
    MemberKey, NodeAddress, Port, Ports, Protocol, Route, Scope, Service, SlotKey, Translation, Tuple,
};
use std::{
    boxed::Box,
    collections::{HashMap, HashSet},
    vec::Vec,
};

pub(super) fn addr(text: &str) -> Addr {
    text.parse::<Ipv4Addr>().unwrap().into()
}

/// Node A (10.89.0.11, pods 10.244.1.0/24) of a cluster whose node B is 10.89.0.12 (10.244.2.0/24).
///
/// Entries are leaked, so that a reference outlives a change: in the kernel it lives as long as the program runs.
pub(super) struct Fake {
    pub nat: RefCell<HashMap<Tuple, &'static Translation>>,
    pub conntrack: RefCell<HashMap<Tuple, Conntrack>>,
    fragments: RefCell<HashMap<FragmentKey, Ports>>,
    frontends: HashMap<FrontendKey, u32>,
    services: HashMap<u32, Service>,
    slots: HashMap<SlotKey, u32>,
    pub backends: HashMap<u32, Backend>,
    pub node_addresses: HashMap<Addr, u32>,
    /// Service and source.
    pub sources: HashSet<(u32, Addr)>,
    pub members: HashMap<MemberKey, u32>,
    pub affinity: RefCell<HashMap<AffinityKey, Affinity>>,
    pub endpoints: HashMap<Addr, Endpoint>,
    /// Every pod that has a rate has used it up.
    pub spent: Cell<bool>,
    pub now: Cell<u64>,
    pub ports: (u16, u16),
    random: Cell<u32>,
    remote: Route,
    own: Route,
    unclaimed: Route,
    services_range: Option<Route>,
}

impl Fake {
    pub(super) fn new() -> Self {
        let local = NodeAddress::KNOWN | NodeAddress::LOCAL;
        let node_addresses = HashMap::from([
            (addr("10.89.0.11"), local),
            (addr("10.244.1.1"), local | NodeAddress::ROUTER),
            (addr("10.89.0.12"), NodeAddress::KNOWN),
        ]);
        let endpoint = |ifindex| Endpoint { ifindex, ..Endpoint::default() };
        Self {
            nat: RefCell::default(),
            conntrack: RefCell::default(),
            fragments: RefCell::default(),
            frontends: HashMap::new(),
            services: HashMap::new(),
            slots: HashMap::new(),
            backends: HashMap::new(),
            sources: HashSet::new(),
            members: HashMap::new(),
            affinity: RefCell::default(),
            node_addresses,
            endpoints: HashMap::from([(addr("10.244.1.2"), endpoint(2)), (addr("10.244.1.3"), endpoint(3))]),
            spent: Cell::new(false),
            now: Cell::new(1),
            ports: (12_000, 29_999),
            random: Cell::new(7),
            remote: Route { node: addr("10.89.0.12"), ..Route::default() },
            own: Route { node: addr("10.89.0.11"), flags: Route::LOCAL, ..Route::default() },
            unclaimed: Route { flags: Route::UNREACHABLE, ..Route::default() },
            services_range: None,
        }
    }

    /// A Service of one TCP and SCTP port at `frontends`, with these backends.
    pub(super) fn serve(&mut self, id: u32, frontends: &[(Addr, u16, Scope)], backends: &[(&str, u16)], flags: u32) {
        for (addr, port, scope) in frontends {
            for proto in [Protocol::TCP, Protocol::SCTP] {
                let key = FrontendKey { addr: *addr, port: Port::new(*port), proto, scope: *scope as u8 };
                self.frontends.insert(key, id);
            }
        }
        self.services.insert(id, Service { generation: 1, count: backends.len() as u32, flags, affinity: 0 });
        for (n, (backend, port)) in backends.iter().enumerate() {
            let backend_id = id * 100 + n as u32;
            self.slots.insert(SlotKey { service: id, generation: 1, n: n as u32 }, backend_id);
            let backend =
                Backend { addr: addr(backend), port: Port::new(*port), proto: Protocol::TCP, ..Backend::default() };
            self.backends.insert(backend_id, backend);
        }
    }

    /// The API server says that cluster IPs are from 10.96.0.0/16.
    pub(super) fn know_range(&mut self) {
        self.services_range = Some(Route { flags: Route::SERVICES, ..Route::default() });
    }

    /// A frontend that stands for a cluster IP as such.
    pub(super) fn own(&mut self, id: u32, address: Addr) {
        self.frontends.insert(FrontendKey::address(address), id);
    }

    /// Another entry with the same backends.
    pub(super) fn share(&mut self, id: u32, other: u32, frontends: &[(Addr, u16, Scope)]) {
        self.serve(other, frontends, &[], 0);
        let service = self.services[&id];
        self.services.insert(other, service);
        for n in 0..service.count {
            let backend = self.slots[&SlotKey { service: id, generation: service.generation, n }];
            self.slots.insert(SlotKey { service: other, generation: service.generation, n }, backend);
        }
    }

    /// A backend leaves a Service with affinity, in the next generation of its slots.
    pub(super) fn retire(&mut self, id: u32, gone: Addr) {
        let service = self.services[&id];
        let slots = (0..service.count).map(|n| self.slots[&SlotKey { service: id, generation: service.generation, n }]);
        let kept: Vec<u32> = slots.filter(|backend| self.backends[backend].addr != gone).collect();
        let next = Service { generation: service.generation + 1, count: kept.len() as u32, ..service };
        for (n, backend) in (0..).zip(kept) {
            self.slots.insert(SlotKey { service: id, generation: next.generation, n }, backend);
        }
        self.services.insert(id, next);
        self.stick(id, self.members[&MemberKey::group(id)], next.affinity);
    }

    /// Gives a Service affinity, its clients remembered under `group`.
    pub(super) fn stick(&mut self, id: u32, group: u32, timeout: u32) {
        let service = self.services.get_mut(&id).unwrap();
        service.affinity = timeout;
        self.members.retain(|key, _| key.service != id);
        self.members.insert(MemberKey::group(id), group);
        for n in 0..service.count {
            let backend = self.slots[&SlotKey { service: id, generation: service.generation, n }];
            self.members.insert(MemberKey { service: id, backend }, 1);
        }
    }
}

impl Connections for Fake {
    fn now(&self) -> u64 {
        self.now.get()
    }
    fn random(&self) -> u32 {
        self.random.set(self.random.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        self.random.get() >> 8
    }
    fn ports(&self) -> (u16, u16) {
        self.ports
    }
    fn attempts(&self) -> u32 {
        24
    }
    fn translation(&self, tuple: &Tuple) -> Option<&Translation> {
        self.nat.borrow().get(tuple).copied()
    }
    fn claim(&self, tuple: &Tuple, translation: &Translation) -> bool {
        if self.nat.borrow().contains_key(tuple) {
            return false;
        }
        self.translate(tuple, translation)
    }
    fn translate(&self, tuple: &Tuple, translation: &Translation) -> bool {
        self.nat.borrow_mut().insert(*tuple, Box::leak(Box::new(*translation)));
        true
    }
    fn forget_translation(&self, tuple: &Tuple) {
        self.nat.borrow_mut().remove(tuple);
    }
    fn track(&self, original: &Tuple, change: impl FnOnce(&mut Conntrack)) -> bool {
        self.conntrack.borrow_mut().get_mut(original).map(change).is_some()
    }
    fn start(&self, original: &Tuple, connection: &Conntrack) -> bool {
        self.conntrack.borrow_mut().insert(*original, *connection);
        true
    }
    fn stop(&self, original: &Tuple) -> bool {
        self.conntrack.borrow_mut().remove(original).is_some()
    }
    fn fragment(&self, key: &FragmentKey) -> Option<Ports> {
        self.fragments.borrow().get(key).copied()
    }
    fn remember_fragment(&self, key: &FragmentKey, ports: &Ports) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }
}

impl Services for Fake {
    fn random_slot(&self) -> u32 {
        self.random()
    }
    fn frontend(&self, key: &FrontendKey) -> u32 {
        self.frontends.get(key).copied().unwrap_or(0)
    }
    fn service(&self, id: u32) -> Option<&Service> {
        self.services.get(&id)
    }
    fn slot(&self, key: &SlotKey) -> u32 {
        self.slots.get(key).copied().unwrap_or(0)
    }
    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(&id)
    }
    fn node(&self) -> Addr {
        addr("10.89.0.11")
    }
    fn member(&self, key: &MemberKey) -> u32 {
        self.members.get(key).copied().unwrap_or(0)
    }
    fn affinity(&self, key: &AffinityKey, visit: impl FnOnce(&mut Affinity)) -> bool {
        self.affinity.borrow_mut().get_mut(key).map(visit).is_some()
    }
    fn remember_affinity(&self, key: &AffinityKey, affinity: &Affinity, only_if_absent: bool) -> bool {
        let mut entries = self.affinity.borrow_mut();
        if only_if_absent && entries.contains_key(key) {
            return false;
        }
        entries.insert(*key, *affinity);
        true
    }
    fn admits(&self, service: u32, source: &Addr) -> bool {
        self.sources.contains(&(service, *source))
    }
    fn node_address(&self, addr: &Addr) -> u32 {
        self.node_addresses.get(addr).copied().unwrap_or(0)
    }
}

impl Tables for Fake {
    fn router(&self) -> Addr {
        addr("10.244.1.1")
    }
    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint> {
        self.endpoints.get(addr)
    }
    fn is_excluded(&self, addr: &Addr) -> bool {
        matches!(addr.v4().to_ne_bytes(), [172, 16, ..])
    }
    fn spend(&self, _: &Addr, _: Direction, _: u32) -> bool {
        !self.spent.get()
    }
    fn route(&self, addr: &Addr) -> Option<&Route> {
        match addr.v4().to_ne_bytes() {
            [10, 244, 1, _] => Some(&self.own),
            [10, 244, 2, _] => Some(&self.remote),
            [10, 244, ..] => Some(&self.unclaimed),
            [10, 96, ..] => self.services_range.as_ref(),
            _ => None,
        }
    }
}

/// A whole frame.
pub(super) struct Frame(pub Vec<u8>);

impl Bytes for Frame {
    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let bytes = self.0.get(offset as usize..offset as usize + size_of::<T>())?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }
    fn length(&self) -> u32 {
        self.0.len() as u32
    }
}

/// An Ethernet header, an IPv4 header and what follows.
pub(super) fn ip(proto: u8, src: &str, dst: &str, fragment: u16, payload: &[u8]) -> Frame {
    let header = Ipv4Header {
        version_length: 0x45,
        total_length: (20 + payload.len() as u16).to_be(),
        id: 99,
        fragment: fragment.to_be(),
        ttl: 64,
        proto,
        src: addr(src).v4(),
        dst: addr(dst).v4(),
        ..Ipv4Header::default()
    };
    let mut frame = std::vec![0u8; 12];
    frame.extend([8, 0]);
    frame.extend(bytemuck::bytes_of(&header));
    frame.extend(payload);
    Frame(frame)
}

pub(super) fn ports(sport: u16, dport: u16) -> Vec<u8> {
    [sport.to_be_bytes(), dport.to_be_bytes()].concat()
}

pub(super) fn tcp(src: &str, sport: u16, dst: &str, dport: u16, flags: u8) -> Frame {
    let mut payload = ports(sport, dport);
    payload.extend([0; 9]);
    payload.push(flags);
    payload.extend([0; 6]);
    ip(Protocol::TCP, src, dst, 0, &payload)
}

pub(super) fn udp(src: &str, sport: u16, dst: &str, dport: u16) -> Frame {
    let mut payload = ports(sport, dport);
    payload.extend([0, 8, 0, 0]);
    ip(Protocol::UDP, src, dst, 0, &payload)
}

pub(super) fn sctp(src: &str, sport: u16, dst: &str, dport: u16, chunk: u8) -> Frame {
    let mut payload = ports(sport, dport);
    payload.extend([0; 8]);
    payload.extend([chunk, 0, 0, 4]);
    ip(Protocol::SCTP, src, dst, 0, &payload)
}

/// Reads a frame into fresh room.
pub(super) fn read(tables: &Fake, frame: &Frame) -> Result<Work, DropReason> {
    let mut work = Work::default();
    parse(frame, tables, &mut work).map(|()| work)
}

pub(super) fn tuple(proto: u8, src: &str, sport: u16, dst: &str, dport: u16) -> Tuple {
    Tuple { src: addr(src), dst: addr(dst), sport: Port::new(sport), dport: Port::new(dport), proto, reserved: [0; 3] }
}
