//! What must hold, whatever comes.

use crate::{
    Frame, Generator, Hook,
    tables::{OTHER_NODE, Tables},
};
use anyhow::{Context, Result, ensure};
use leme_abi::{Addr, DropReason, Leg, NodeAddress, Route, Tuple};
use leme_packet::{Connections, Kind, Next, Services, Tables as NodeTables, Work, parse, remember_fragment};

/// Packets of one session.
pub const PACKETS: u64 = 64;

pub struct Session {
    tables: Tables,
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    pub fn new() -> Self {
        Self { tables: Tables::new() }
    }

    /// One session. Equal seeds make equal sessions; every fourth one has maps that fail.
    pub fn run(&mut self, seed: u64) -> Result<()> {
        let mut generator = Generator::new(seed);
        self.tables.reset(seed, seed.is_multiple_of(4));
        for number in 0..PACKETS {
            if !self.tables.has_room() {
                break;
            }
            let (hook, frame) = generator.packet();
            self.step(&mut generator, hook, &frame)
                .with_context(|| format!("seed {seed}, packet {number} at {hook:?}: {:02x?}", frame.0))?;
        }
        self.check_connections().with_context(|| format!("seed {seed}, at the end"))
    }

    fn step(&self, generator: &mut Generator, hook: Hook, frame: &Frame) -> Result<()> {
        let tables = &self.tables;
        tables.pass_time();
        let mut work = Work::default();
        if let Err(reason) = parse(frame, tables, &mut work) {
            ensure!(reason == DropReason::Malformed, "refused as {reason:?}");
            return Ok(());
        }
        ensure!(work.packet.l4 <= work.packet.length, "a transport header behind the end");
        let before = tables.nat.borrow().len();
        let next = decide(tables, hook, &mut work);
        if matches!(work.packet.kind, Kind::Error | Kind::Fragment | Kind::Stray) {
            ensure!(tables.nat.borrow().len() <= before, "{:?} opened a connection", work.packet.kind);
        }
        self.check_verdict(hook, next, &work)?;
        if next == Next::Drop {
            return Ok(());
        }
        if next != Next::Reject {
            remember_fragment(tables, &work);
        }
        if work.rewrite && !tables.lossy {
            self.check_rewrite(&work)?;
        }
        generator.note(leaves(&work));
        Ok(())
    }

    fn check_verdict(&self, hook: Hook, next: Next, work: &Work) -> Result<()> {
        let (tables, to) = (&self.tables, leaves(work));
        let dst = if matches!(work.packet.kind, Kind::Error) && !work.rewrite { work.packet.dst } else { to.dst };
        match next {
            Next::Drop => ensure!(work.reason != DropReason::Forwarded, "dropped for no reason"),
            Next::Pod => {
                let endpoint = tables.endpoints.get(&dst).context("to a pod that is none")?;
                ensure!(endpoint.ifindex == work.endpoint.ifindex, "to another pod");
            }
            Next::Overlay => {
                ensure!(work.node == OTHER_NODE, "through the tunnel to {:?}", work.node);
                ensure!(tables.route(&dst).is_some_and(|route| route.flags == 0), "not behind the tunnel");
            }
            Next::Outside => ensure!(tables.route(&dst).is_none(), "a pod's address leaves the cluster"),
            Next::Reject => {
                let silent = matches!(work.packet.kind, Kind::Error | Kind::Fragment | Kind::Stray);
                ensure!(!silent && !work.rewrite && work.reason != DropReason::Forwarded, "refused");
            }
            Next::Pass | Next::Back => {}
        }
        match hook {
            Hook::FromPod(device) => self.check_pod(device, next, work, &dst),
            Hook::OverlayIngress if next == Next::Pass => {
                ensure!(tables.node_address(&dst) & NodeAddress::LOCAL != 0, "carried on from the tunnel");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What a pod sends is its own, and what leaves the cluster is not seen to be a pod's.
    fn check_pod(&self, device: u32, next: Next, work: &Work, dst: &Addr) -> Result<()> {
        if next == Next::Drop {
            return Ok(());
        }
        let sender = self.tables.endpoints.get(&work.packet.src);
        ensure!(sender.is_some_and(|endpoint| endpoint.ifindex == device), "spoofed");
        if next == Next::Outside {
            let src = match work.packet.kind {
                Kind::Error if work.packet.src != work.packet.tuple.src => work.packet.src,
                _ => leaves(work).src,
            };
            // Who asked for a NodePort at the router address gets its answer from there.
            let of_node = self.tables.node_address(&src) & NodeAddress::LOCAL != 0;
            let of_pod = self.tables.route(&src).is_some_and(|route| route.flags & Route::LOCAL != 0);
            let excluded = self.tables.is_excluded(&leaves(work).dst) || self.tables.is_excluded(&work.packet.dst);
            ensure!(of_node || !of_pod || excluded, "{src:?} is seen outside");
        }
        if next == Next::Pass {
            ensure!(self.tables.node_address(dst) & NodeAddress::LOCAL != 0, "to the node, for others");
        }
        Ok(())
    }

    /// The answer to what leaves comes back as the answer to what came.
    fn check_rewrite(&self, work: &Work) -> Result<()> {
        let (tuple, to) = (work.packet.tuple, work.to);
        let back = self.tables.translation(&to.inverse()).context("no way back")?;
        ensure!(back.to == tuple.inverse(), "{to:?} comes back as {:?} and not to {tuple:?}", back.to);
        ensure!(to.proto == tuple.proto, "another protocol");
        Ok(())
    }

    /// Every connection has its own way back, and is remembered as one.
    fn check_connections(&self) -> Result<()> {
        if self.tables.lossy {
            return Ok(());
        }
        let tuples: Vec<Tuple> = self.tables.nat.borrow().keys().copied().collect();
        for tuple in tuples {
            let there = self.tables.translation(&tuple).context("gone")?;
            let back =
                self.tables.translation(&there.to.inverse()).with_context(|| format!("{tuple:?}: no way back"))?;
            ensure!(back.to == tuple.inverse(), "{tuple:?} and {:?} share {:?}", back.to.inverse(), there.to);
            if there.leg == Leg::Forward as u8 {
                ensure!(self.tables.conntrack.borrow().contains_key(&tuple), "{tuple:?} is not tracked");
            }
        }
        Ok(())
    }
}

fn decide(tables: &Tables, hook: Hook, work: &mut Work) -> Next {
    match hook {
        Hook::FromPod(device) => leme_packet::from_pod(tables, work, device),
        Hook::ToPod => leme_packet::to_pod(tables, work),
        Hook::NicIngress => leme_packet::nic_ingress(tables, work),
        Hook::NicEgress => leme_packet::nic_egress(tables, work),
        Hook::OverlayIngress => leme_packet::overlay_ingress(tables, work),
        Hook::OverlayEgress => leme_packet::overlay_egress(tables, work),
    }
}

fn leaves(work: &Work) -> Tuple {
    if work.rewrite { work.to } else { work.packet.tuple }
}
