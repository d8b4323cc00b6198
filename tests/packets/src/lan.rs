//! The host ends of two local nodes' NICs (10.89.0.11 and .12) and the machine's way out, in a namespace of their own.

use crate::{
    Frame, Network, Verdict,
    network::connect,
    node::{ensure_bpffs, run},
};
use anyhow::Result;
use aya::maps::{HashMap, Map, MapData};
use leme_abi::{Leg, Port, Protocol, Translation, Tuple};
use leme_datapath::Lan;
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// The machine's address outside, and among its nodes.
pub const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);
/// MACs of the two nodes' ends and of their host ends.
pub const MACS: [([u8; 6], [u8; 6]); 2] =
    [([2, 0, 0, 0, 8, 1], [2, 0, 0, 0, 9, 1]), ([2, 0, 0, 0, 8, 2], [2, 0, 0, 0, 9, 2])];

pub struct Machine {
    pins: PathBuf,
}

/// Runs a test on a thread of its own in a new network namespace, with the LAN in it.
pub fn in_lan(test: impl FnOnce(&Machine) + Send + 'static) {
    let outcome = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root: run them with `cargo xtask test packets`");
        let machine = Machine::new().unwrap_or_else(|error| panic!("{error:?}"));
        test(&machine);
    });
    if let Err(panic) = outcome.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Machine {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lan-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ensure_bpffs()?;
        let pins = Path::new("/sys/fs/bpf/leme").join(name);
        make_devices()?;
        // From here on dropping it removes what was pinned.
        let machine = Self { pins };
        let mut lan = Lan::open(&machine.pins)?;
        for (n, (mac, host_mac)) in (1..).zip(MACS) {
            lan.attach(if_nametoindex(&*format!("lan{n}"))?, Ipv4Addr::new(10, 89, 0, 10 + n), mac, host_mac)?;
        }
        lan.attach_uplink(if_nametoindex("uplink")?, UPLINK)?;
        Ok(machine)
    }

    pub fn run(&self, program: &str, device: &str, packet: &Frame) -> (Verdict, Frame) {
        run(&self.pins, program, device, packet)
    }

    pub fn counter(&self, name: &str) -> u64 {
        leme_datapath::dump(&self.pins).expect("the tables").counters.get(name).copied().unwrap_or(0)
    }

    /// Takes every source port towards a peer outside, as if other connections had them.
    pub fn occupy_ports(&self, peer: SocketAddrV4, proto: Protocol) {
        let nat = Map::HashMap(MapData::from_pin(self.pins.join("nat")).expect("maps are pinned"));
        let mut nat = HashMap::<_, [u8; size_of::<Tuple>()], [u8; size_of::<Translation>()]>::try_from(nat)
            .expect("the layout is ours");
        for port in 12_000..=29_999 {
            let answer = Tuple {
                src: (*peer.ip()).into(),
                dst: UPLINK.into(),
                sport: Port::new(peer.port()),
                dport: Port::new(port),
                proto: proto.number(),
                reserved: [0; 3],
            };
            let elsewhere = Translation { leg: Leg::Reply as u8, ..Translation::default() };
            let key: [u8; size_of::<Tuple>()] = bytemuck::bytes_of(&answer).try_into().expect("its size");
            let value: [u8; size_of::<Translation>()] = bytemuck::bytes_of(&elsewhere).try_into().expect("its size");
            nat.insert(key, value, 0).expect("there is room");
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let removed = Lan::remove(&self.pins);
        if !std::thread::panicking() {
            removed.expect("everything goes");
        }
    }
}

/// The nodes' host ends with the machine's address among them, a device to the outside with the default route, and one
/// to a network where nodes may not go.
fn make_devices() -> Result<()> {
    let machine = Network::of_this_thread()?;
    for name in ["lan1", "lan2", "uplink", "office"] {
        connect((&machine, name), (&machine, &format!("far-{name}")))?;
    }
    for (name, address) in [("lan1", MACHINE), ("uplink", UPLINK), ("office", Ipv4Addr::new(172, 16, 0, 7))] {
        machine.address(name, address, 24)?;
    }
    machine.default_route(Ipv4Addr::new(192, 0, 2, 1))
}
