//! Connections come and go in the kernel; only forgetting the silent ones is user space's.

use crate::{Collected, MapFill, Result, table::Table};
use leme_abi::{Conntrack, Leg, Protocol, Translation, Tuple};
use std::path::Path;

/// Every so many collections translations without a connection (it was evicted, or never recorded) are looked for.
const SWEEP: u32 = 16;

pub(crate) struct Connections {
    conntrack: Table<Tuple, Conntrack>,
    nat: Table<Tuple, Translation>,
    round: u32,
    /// Entries when they were last looked through.
    live: usize,
    translations: usize,
}

impl Connections {
    pub(crate) fn open(pins: &Path) -> Result<Self> {
        Ok(Self {
            conntrack: Table::open(pins, "conntrack")?,
            nat: Table::open(pins, "nat")?,
            round: 0,
            live: 0,
            translations: 0,
        })
    }

    /// `uses` tells whether a Service still leads to a backend: over UDP a client that goes on where it was would never find
    /// another one.
    pub(crate) fn collect(&mut self, uses: impl Fn(u32, u32) -> bool) -> Result<Collected> {
        let now = monotonic();
        let is_over = |original: &Tuple, connection: &Conntrack| {
            let deserted = original.proto == Protocol::UDP
                && connection.service != 0
                && !uses(connection.service, connection.backend);
            connection.expires < now || deserted
        };
        let mut over = Vec::new();
        let mut live = 0;
        self.conntrack.visit(
            |original, connection| {
                if is_over(original, connection) { over.push(*original) } else { live += 1 }
            },
        )?;
        let capacity = self.conntrack.capacity() as usize;
        let mut removed = self.forget(&over, is_over)?;
        if self.round.is_multiple_of(SWEEP) {
            removed += self.sweep()?;
        }
        self.round = self.round.wrapping_add(1);
        self.live = live;
        Ok(Collected { live, removed, capacity })
    }

    pub(crate) fn fill(&self) -> [MapFill; 2] {
        let (connections, translations) = (self.conntrack.capacity(), self.nat.capacity());
        [
            MapFill { map: "conntrack", entries: self.live, capacity: connections },
            MapFill { map: "nat", entries: self.translations, capacity: translations },
        ]
    }

    /// A connection's three entries go together, the one that answers find first. Looking through the whole table took a
    /// while, in which a client may have taken the same port again: those stay. How many went.
    fn forget(&self, originals: &[Tuple], is_over: impl Fn(&Tuple, &Conntrack) -> bool) -> Result<usize> {
        let mut forgotten = 0;
        for original in originals {
            if !self.conntrack.get(original)?.is_some_and(|connection| is_over(original, &connection)) {
                continue;
            }
            if let Some(found) = self.nat.get(original)? {
                self.nat.delete_all(&[found.to.inverse(), *original])?;
            }
            self.conntrack.delete(original)?;
            forgotten += 1;
        }
        Ok(forgotten)
    }

    fn sweep(&mut self) -> Result<usize> {
        let mut candidates = Vec::new();
        self.nat.visit(|tuple, translation| {
            let forward = translation.leg == Leg::Forward as u8;
            candidates.push((*tuple, if forward { *tuple } else { translation.to.inverse() }));
        })?;
        let mut orphans = Vec::new();
        let candidates_count = candidates.len();
        for (entry, original) in candidates {
            if self.conntrack.get(&original)?.is_none() {
                orphans.push(entry);
            }
        }
        self.nat.delete_all(&orphans)?;
        self.translations = candidates_count - orphans.len();
        Ok(orphans.len())
    }
}

/// The clock of `bpf_ktime_get_ns`, in nanoseconds.
pub(crate) fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place has the type the call fills; every Linux has this clock, so it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
