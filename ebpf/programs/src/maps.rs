//! The maps, and how decisions see them. Sizes here are smallest; the loader sets the real ones.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage, lpm_trie::Key},
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::btf_map,
};
use core::{
    arch::asm,
    ptr::{read_volatile, write_volatile},
};
use leme_abi::{
    Addr, Affinity, AffinityKey, Backend, COUNTERS, Conntrack, Counter, Direction, DropReason, Endpoint, FragmentKey,
    FrontendKey, LanNode, MemberKey, Origin, OriginKey, Ports, Rates, Route, Service, Settings, SlotKey, Translation,
    Tuple, transition,
};
use leme_packet::{Connections, LanTables, Services, Tables, Work, charge};

/// Memory is taken as entries come: these maps are sized for the largest cluster, not for this one.
const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "frontends")]
pub static FRONTENDS: HashMap<FrontendKey, u32, 1, SPARSE> = HashMap::new();
#[btf_map(name = "services")]
pub static SERVICES: HashMap<u32, Service, 1, SPARSE> = HashMap::new();
#[btf_map(name = "slots")]
pub static SLOTS: HashMap<SlotKey, u32, 1, SPARSE> = HashMap::new();
#[btf_map(name = "backends")]
pub static BACKENDS: HashMap<u32, Backend, 1, SPARSE> = HashMap::new();
#[btf_map(name = "source_ranges")]
pub static SOURCE_RANGES: LpmTrie<Source, u32, 1> = LpmTrie::new();
#[btf_map(name = "members")]
pub static MEMBERS: HashMap<MemberKey, u32, 1, SPARSE> = HashMap::new();
#[btf_map(name = "affinity")]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity, 1> = LruHashMap::new();
/// Cookie of a pod's network namespace → the pod's address.
#[btf_map(name = "namespaces")]
pub static NAMESPACES: HashMap<u64, Addr, 1, SPARSE> = HashMap::new();
#[btf_map(name = "node_addresses")]
pub static NODE_ADDRESSES: HashMap<Addr, u32, 1, SPARSE> = HashMap::new();
#[btf_map(name = "endpoints")]
pub static ENDPOINTS: HashMap<Addr, Endpoint, 1, SPARSE> = HashMap::new();
#[btf_map(name = "rates")]
pub static RATES: HashMap<Addr, Rates, 1, SPARSE> = HashMap::new();
#[btf_map(name = "routes")]
pub static ROUTES: LpmTrie<Addr, Route, 1> = LpmTrie::new();
/// Outside ranges that see pods' own addresses.
#[btf_map(name = "masquerade_exclusions")]
pub static MASQUERADE_EXCLUSIONS: LpmTrie<Addr, u32, 1> = LpmTrie::new();
#[btf_map(name = "conntrack")]
pub static CONNTRACK: LruHashMap<Tuple, Conntrack, 1> = LruHashMap::new();
#[btf_map(name = "nat")]
pub static NAT: LruHashMap<Tuple, Translation, 1> = LruHashMap::new();
/// What programs of a transition know beside them; nobody else looks here.
#[btf_map(name = "conntrack_old")]
static CONNTRACK_OLD: LruHashMap<Tuple, Conntrack, 1> = LruHashMap::new();
#[btf_map(name = "nat_old")]
static NAT_OLD: LruHashMap<Tuple, Translation, 1> = LruHashMap::new();
#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, Ports, 1> = LruHashMap::new();
#[btf_map(name = "socket_origin")]
pub static SOCKET_ORIGIN: SkStorage<Origin> = SkStorage::new();
#[btf_map(name = "sender_origin")]
pub static SENDER_ORIGIN: LruHashMap<OriginKey, Origin, 1> = LruHashMap::new();
/// Cookie of a connected UDP socket → what it asked for. User space looks here: it cannot see a socket's storage.
#[btf_map(name = "udp_origin")]
pub static UDP_ORIGIN: HashMap<u64, Origin, 1, SPARSE> = HashMap::new();
#[btf_map(name = "lan_nodes")]
pub static LAN_NODES: HashMap<Addr, LanNode, 1, SPARSE> = HashMap::new();
/// Devices of the machine through which a local cluster may leave, and the address it leaves with.
#[btf_map(name = "lan_uplinks")]
pub static LAN_UPLINKS: HashMap<u32, Addr, 1, SPARSE> = HashMap::new();
#[btf_map(name = "counters")]
pub static COUNTERS_MAP: PerCpuArray<Counter, { COUNTERS as usize }> = PerCpuArray::new();
#[btf_map(name = "work")]
static WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

/// This CPU's room to work in.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: the slot is this CPU's own, and one program at a time runs on it (softirqs are off).
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// Load-time constants, patched by the loader before the verifier sees them.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    host_cookie: 0,
    node: Addr::ANY,
    router: Addr::ANY,
    overlay: 0,
    vni: 0,
    port_min: 0,
    port_max: 0,
    features: 0,
    uplink: 0,
    options: 0,
    mtu: 0,
    transition: transition::NONE,
};

/// Readers for load-time constants.
pub mod settings {
    use super::SETTINGS;
    use core::ptr::{addr_of, read_volatile};
    use leme_abi::Addr;

    macro_rules! readers {
        ($($field:ident: $type:ty,)*) => {$(
            #[inline(always)]
            pub fn $field() -> $type {
                // SAFETY: a static is valid; volatile because the loader changes it behind the compiler's back.
                unsafe { read_volatile(addr_of!(SETTINGS.$field)) }
            }
        )*};
    }

    readers! {
        host_cookie: u64, node: Addr, router: Addr, overlay: u32, vni: u32,
        port_min: u16, port_max: u16, features: u32, uplink: u32, options: u32, mtu: u32, transition: u32,
    }
}

/// Counts a packet under a reason.
#[inline(always)]
pub fn count(reason: DropReason, direction: Direction, bytes: u32) {
    if let Some(counter) = COUNTERS_MAP.get_ptr_mut(reason as u32 * 2 + direction as u32) {
        // SAFETY: the slot is this CPU's own and lives as long as the map.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}

/// The one atomic operation of 5.10, which Rust's own types do not offer for this target.
///
/// # Safety
///
/// The place is an aligned word of a map's value.
#[inline(always)]
unsafe fn add_atomically(place: *mut u64, value: u64) {
    // SAFETY: the instruction reads and writes that word alone.
    unsafe { asm!("lock *(u64 *)({place} + 0) += {value}", place = in(reg) place, value = in(reg) value) }
}

/// The kernel's maps as the tables that decisions read.
pub struct Maps;

/// What of `leme_abi::SourceKey` stands behind its prefix.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Source {
    service: u32,
    addr: Addr,
}

const _: () = assert!(size_of::<Key<Source>>() == size_of::<leme_abi::SourceKey>());

/// A value in a hash. User space replaces values whole, never in place: what is read here is old or new, not mixed.
macro_rules! value {
    ($map:ident, $key:expr) => {
        // SAFETY: the kernel keeps the entry while the program runs, and nobody writes into it.
        unsafe { $map.get($key) }
    };
}

/// What is read, and in a transition the other one, which is written, too: after the first, by which user space can tell an
/// entry that has just changed. Constants decide: for each program the verifier sees one way.
macro_rules! first {
    ($new:ident, $old:ident, $map:ident => $do:expr) => {
        if settings::transition() == transition::OLD {
            let $map = &$old;
            $do
        } else {
            let $map = &$new;
            $do
        }
    };
}

macro_rules! second {
    ($new:ident, $old:ident, $map:ident => $do:expr) => {
        if settings::transition() == transition::OLD {
            let $map = &$new;
            let _ = $do;
        } else if settings::transition() == transition::NEW {
            let $map = &$old;
            let _ = $do;
        }
    };
}

impl Connections for Maps {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn ports(&self) -> (u16, u16) {
        (settings::port_min(), settings::port_max())
    }

    /// Each attempt is a way through the program that the verifier goes; in a transition, of two tables.
    #[inline(always)]
    fn attempts(&self) -> u32 {
        if settings::transition() == transition::NONE { 24 } else { 16 }
    }

    #[inline(always)]
    fn translation(&self, tuple: &Tuple) -> Option<&Translation> {
        first!(NAT, NAT_OLD, nat => value!(nat, tuple))
    }

    #[inline(always)]
    fn claim(&self, tuple: &Tuple, translation: &Translation) -> bool {
        let claimed = first!(NAT, NAT_OLD, nat => nat.insert(tuple, translation, u64::from(BPF_NOEXIST)).is_ok());
        if claimed {
            second!(NAT, NAT_OLD, nat => nat.insert(tuple, translation, 0));
        }
        claimed
    }

    #[inline(always)]
    fn translate(&self, tuple: &Tuple, translation: &Translation) -> bool {
        let written = first!(NAT, NAT_OLD, nat => nat.insert(tuple, translation, 0).is_ok());
        second!(NAT, NAT_OLD, nat => nat.insert(tuple, translation, 0));
        written
    }

    #[inline(always)]
    fn forget_translation(&self, tuple: &Tuple) {
        let _ = first!(NAT, NAT_OLD, nat => nat.remove(tuple));
        second!(NAT, NAT_OLD, nat => nat.remove(tuple));
    }

    #[inline(always)]
    fn track(&self, original: &Tuple, change: impl FnOnce(&mut Conntrack)) -> bool {
        let found = first!(CONNTRACK, CONNTRACK_OLD, conntrack => conntrack.get_ptr_mut(original));
        let Some(connection) = found else { return false };
        // SAFETY: the entry stays mapped while the program runs; a lost increment under contention is only a count.
        let connection = unsafe { &mut *connection };
        change(connection);
        second!(CONNTRACK, CONNTRACK_OLD, conntrack => conntrack.insert(original, &*connection, 0));
        true
    }

    #[inline(always)]
    fn start(&self, original: &Tuple, connection: &Conntrack) -> bool {
        let written = first!(CONNTRACK, CONNTRACK_OLD, conntrack => conntrack.insert(original, connection, 0).is_ok());
        second!(CONNTRACK, CONNTRACK_OLD, conntrack => conntrack.insert(original, connection, 0));
        written
    }

    #[inline(always)]
    fn stop(&self, original: &Tuple) -> bool {
        let stopped = first!(CONNTRACK, CONNTRACK_OLD, conntrack => conntrack.remove(original).is_ok());
        second!(CONNTRACK, CONNTRACK_OLD, conntrack => conntrack.remove(original));
        stopped
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Ports> {
        value!(FRAGMENTS, key).copied()
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &FragmentKey, ports: &Ports) {
        let _ = FRAGMENTS.insert(key, ports, 0);
    }
}

impl Services for Maps {
    #[inline(always)]
    fn random_slot(&self) -> u32 {
        self.random()
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> u32 {
        value!(FRONTENDS, key).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn service(&self, id: u32) -> Option<&Service> {
        value!(SERVICES, &id)
    }

    #[inline(always)]
    fn slot(&self, key: &SlotKey) -> u32 {
        value!(SLOTS, key).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        value!(BACKENDS, &id)
    }

    #[inline(always)]
    fn node(&self) -> Addr {
        settings::node()
    }

    #[inline(always)]
    fn member(&self, key: &MemberKey) -> u32 {
        value!(MEMBERS, key).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey, visit: impl FnOnce(&mut Affinity)) -> bool {
        match AFFINITY.get_ptr_mut(key) {
            Some(affinity) => {
                // SAFETY: the entry stays mapped while the program runs; its words are read and written whole, and whose
                // time stamp stays when two connections begin at once does not matter.
                visit(unsafe { &mut *affinity });
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn remember_affinity(&self, key: &AffinityKey, affinity: &Affinity, only_if_absent: bool) -> bool {
        let flags = if only_if_absent { BPF_NOEXIST } else { BPF_ANY };
        AFFINITY.insert(key, affinity, u64::from(flags)).is_ok()
    }

    #[inline(always)]
    fn admits(&self, service: u32, source: &Addr) -> bool {
        SOURCE_RANGES.get(&Key::new(32 + 128, Source { service, addr: *source })).is_some()
    }

    #[inline(always)]
    fn node_address(&self, addr: &Addr) -> u32 {
        value!(NODE_ADDRESSES, addr).copied().unwrap_or(0)
    }
}

impl Tables for Maps {
    #[inline(always)]
    fn router(&self) -> Addr {
        settings::router()
    }

    #[inline(always)]
    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint> {
        value!(ENDPOINTS, addr)
    }

    #[inline(always)]
    fn is_excluded(&self, addr: &Addr) -> bool {
        MASQUERADE_EXCLUSIONS.get(&Key::new(128, *addr)).is_some()
    }

    #[inline(always)]
    fn route(&self, addr: &Addr) -> Option<&Route> {
        ROUTES.get(&Key::new(128, *addr))
    }

    /// CPUs that charge at the same time may each let one packet more through; the atomic addition makes the pod pay for
    /// all of them before the next.
    #[inline(always)]
    fn spend(&self, pod: &Addr, direction: Direction, length: u32) -> bool {
        let Some(rates) = RATES.get_ptr_mut(pod) else { return true };
        // SAFETY: the entry stays mapped while the program runs. Of its words only the schedule changes in place.
        unsafe {
            let bucket = match direction {
                Direction::Ingress => &raw mut (*rates).ingress,
                Direction::Egress => &raw mut (*rates).egress,
            };
            let ready = &raw mut (*bucket).ready;
            let charge = charge((*bucket).rate, (*bucket).burst, read_volatile(ready), self.now(), length);
            if charge.conforms {
                if charge.restart != 0 {
                    write_volatile(ready, charge.restart);
                }
                add_atomically(ready, charge.cost);
            }
            charge.conforms
        }
    }
}

impl LanTables for Maps {
    #[inline(always)]
    fn lan_node(&self, addr: &Addr) -> Option<&LanNode> {
        value!(LAN_NODES, addr)
    }
}
