//! The tables of node `a`: Services and places are fixed, connections are forgotten when the next session begins.
//!
//! A translation is handed out by reference while others are written: each write gets a cell of its own.

use leme_abi::{
    Addr, Affinity, AffinityKey, Backend, Conntrack, Direction, Endpoint, FragmentKey, FrontendKey, MemberKey,
    NodeAddress, Port, Ports, Protocol, Route, Scope, Service, SlotKey, Translation, Tuple,
};
use leme_packet::{Connections, Services, Tables as NodeTables};
use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    net::Ipv4Addr,
};

/// Multiply and rotate: the keys are small and nobody attacks this.
#[derive(Default)]
pub(crate) struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Quick>>;

pub(crate) const fn addr(a: u8, b: u8, c: u8, d: u8) -> Addr {
    Addr::from_v4(u32::from_ne_bytes([a, b, c, d]))
}

pub(crate) const NODE: Addr = addr(10, 89, 0, 11);
pub(crate) const OTHER_NODE: Addr = addr(10, 89, 0, 12);
pub(crate) const ROUTER: Addr = addr(10, 244, 1, 1);
pub(crate) const PODS: [(Addr, u32); 2] = [(addr(10, 244, 1, 2), 2), (addr(10, 244, 1, 3), 3)];
pub(crate) const REMOTE_POD: Addr = addr(10, 244, 2, 9);
/// Served by: a pod here and one there; a pod here; the node itself; somebody outside; nobody.
pub(crate) const VIPS: [Addr; 5] =
    [addr(10, 96, 0, 1), addr(10, 96, 0, 2), addr(10, 96, 0, 3), addr(10, 96, 0, 4), addr(10, 96, 0, 5)];
/// NodePorts of the same.
pub(crate) const NODE_PORTS: [u16; 5] = [30_001, 30_002, 30_003, 30_004, 30_005];
pub(crate) const OUTSIDE_BACKEND: Addr = addr(192, 0, 2, 77);
/// Sees pods as they are.
pub(crate) const EXCLUDED: Addr = addr(172, 16, 0, 9);
pub(crate) const PORTS: (u16, u16) = (12_000, 12_030);

const CELLS: usize = 1024;

pub(crate) struct Tables {
    pub(crate) nat: RefCell<Map<Tuple, usize>>,
    cells: Vec<OnceCell<Translation>>,
    used: Cell<usize>,
    pub(crate) conntrack: RefCell<Map<Tuple, Conntrack>>,
    fragments: RefCell<Map<FragmentKey, Ports>>,
    frontends: Map<FrontendKey, u32>,
    services: Map<u32, Service>,
    slots: Map<SlotKey, u32>,
    backends: Map<u32, Backend>,
    pub(crate) endpoints: Map<Addr, Endpoint>,
    addresses: Map<Addr, u32>,
    routes: [Route; 4],
    now: Cell<u64>,
    random: RefCell<fastrand::Rng>,
    /// Maps refuse or lose what they are given now and then.
    pub(crate) lossy: bool,
}

impl Tables {
    pub(crate) fn new() -> Self {
        let local = NodeAddress::KNOWN | NodeAddress::LOCAL;
        let mut tables = Self {
            nat: RefCell::default(),
            cells: (0..CELLS).map(|_| OnceCell::new()).collect(),
            used: Cell::new(0),
            conntrack: RefCell::default(),
            fragments: RefCell::default(),
            frontends: Map::default(),
            services: Map::default(),
            slots: Map::default(),
            backends: Map::default(),
            endpoints: Map::default(),
            addresses: Map::default(),
            routes: [
                Route { node: NODE, flags: Route::LOCAL, ..Route::default() },
                Route { node: OTHER_NODE, ..Route::default() },
                Route { flags: Route::UNREACHABLE, ..Route::default() },
                Route { flags: Route::SERVICES, ..Route::default() },
            ],
            now: Cell::new(1),
            random: RefCell::new(fastrand::Rng::with_seed(0)),
            lossy: false,
        };
        for (pod, ifindex) in PODS {
            tables.endpoints.insert(pod, Endpoint { ifindex, ..Endpoint::default() });
        }
        tables.addresses.extend([
            (NODE, local),
            (ROUTER, local | NodeAddress::ROUTER),
            (OTHER_NODE, NodeAddress::KNOWN),
        ]);
        let backends: [&[Addr]; 5] = [&[PODS[0].0, REMOTE_POD], &[PODS[1].0], &[NODE], &[OUTSIDE_BACKEND], &[]];
        for (n, backends) in backends.into_iter().enumerate() {
            for proto in [Protocol::TCP, Protocol::UDP] {
                tables.serve(n, proto, backends);
            }
        }
        tables
    }

    fn serve(&mut self, n: usize, proto: u8, backends: &[Addr]) {
        let id = (n as u32 + 1) * 10 + u32::from(proto == Protocol::UDP);
        for (addr, port) in [(VIPS[n], 80), (Addr::ANY, NODE_PORTS[n])] {
            let key = FrontendKey { addr, port: Port::new(port), proto, scope: Scope::Cluster as u8 };
            self.frontends.insert(key, id);
        }
        self.frontends.insert(FrontendKey::address(VIPS[n]), id);
        let service = Service { generation: 1, count: backends.len() as u32, ..Service::default() };
        self.services.insert(id, service);
        for (slot, addr) in backends.iter().enumerate() {
            let backend = id * 10 + slot as u32;
            self.slots.insert(SlotKey { service: id, generation: 1, n: slot as u32 }, backend);
            self.backends.insert(backend, Backend { addr: *addr, port: Port::new(8080), proto, ..Backend::default() });
        }
    }

    /// Nothing is remembered of the packets before.
    pub(crate) fn reset(&mut self, seed: u64, lossy: bool) {
        self.nat.get_mut().clear();
        self.conntrack.get_mut().clear();
        self.fragments.get_mut().clear();
        for cell in &mut self.cells[..self.used.get()] {
            cell.take();
        }
        self.used.set(0);
        self.random.get_mut().seed(seed);
        self.lossy = lossy;
    }

    pub(crate) fn pass_time(&self) {
        self.now.set(self.now.get() + 1_000_000);
    }

    /// Room for another packet's translations.
    pub(crate) fn has_room(&self) -> bool {
        self.used.get() + 8 < CELLS
    }

    fn fails(&self) -> bool {
        self.lossy && self.random.borrow_mut().u8(..) < 16
    }
}

impl Connections for Tables {
    fn now(&self) -> u64 {
        self.now.get()
    }
    fn random(&self) -> u32 {
        self.random.borrow_mut().u32(..)
    }
    fn ports(&self) -> (u16, u16) {
        PORTS
    }
    fn attempts(&self) -> u32 {
        24
    }
    fn translation(&self, tuple: &Tuple) -> Option<&Translation> {
        if self.fails() {
            return None;
        }
        self.nat.borrow().get(tuple).and_then(|cell| self.cells[*cell].get())
    }
    fn claim(&self, tuple: &Tuple, translation: &Translation) -> bool {
        !self.nat.borrow().contains_key(tuple) && self.translate(tuple, translation)
    }
    fn translate(&self, tuple: &Tuple, translation: &Translation) -> bool {
        if self.fails() {
            return false;
        }
        let cell = self.used.replace(self.used.get() + 1);
        self.cells[cell].get_or_init(|| *translation);
        self.nat.borrow_mut().insert(*tuple, cell);
        true
    }
    fn forget_translation(&self, tuple: &Tuple) {
        self.nat.borrow_mut().remove(tuple);
    }
    fn track(&self, original: &Tuple, change: impl FnOnce(&mut Conntrack)) -> bool {
        !self.fails() && self.conntrack.borrow_mut().get_mut(original).map(change).is_some()
    }
    fn start(&self, original: &Tuple, connection: &Conntrack) -> bool {
        !self.fails() && {
            self.conntrack.borrow_mut().insert(*original, *connection);
            true
        }
    }
    fn stop(&self, original: &Tuple) -> bool {
        !self.fails() && self.conntrack.borrow_mut().remove(original).is_some()
    }
    fn fragment(&self, key: &FragmentKey) -> Option<Ports> {
        self.fragments.borrow().get(key).copied()
    }
    fn remember_fragment(&self, key: &FragmentKey, ports: &Ports) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }
}

/// Affinity is another test's matter: what it remembers is no connection.
impl Services for Tables {
    fn node(&self) -> Addr {
        NODE
    }
    fn member(&self, _: &MemberKey) -> u32 {
        0
    }
    fn affinity(&self, _: &AffinityKey, _: impl FnOnce(&mut Affinity)) -> bool {
        false
    }
    fn remember_affinity(&self, _: &AffinityKey, _: &Affinity, _: bool) -> bool {
        false
    }
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
    fn admits(&self, _: u32, _: &Addr) -> bool {
        true
    }
    fn node_address(&self, addr: &Addr) -> u32 {
        self.addresses.get(addr).copied().unwrap_or(0)
    }
}

impl NodeTables for Tables {
    fn router(&self) -> Addr {
        ROUTER
    }
    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint> {
        self.endpoints.get(addr)
    }
    fn is_excluded(&self, addr: &Addr) -> bool {
        *addr == EXCLUDED
    }
    /// No pod here is limited: rates have tests of their own.
    fn spend(&self, _: &Addr, _: Direction, _: u32) -> bool {
        true
    }
    fn route(&self, addr: &Addr) -> Option<&Route> {
        match Ipv4Addr::from(u32::from_be(addr.v4())).octets() {
            [10, 244, 1, _] => Some(&self.routes[0]),
            [10, 244, 2, _] => Some(&self.routes[1]),
            [10, 244, ..] => Some(&self.routes[2]),
            [10, 96, ..] => Some(&self.routes[3]),
            _ => None,
        }
    }
}
