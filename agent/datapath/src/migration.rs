//! From one version's maps to the next one's, under traffic.
//!
//! A pinned map that the programs of this version cannot use (another layout, or less room than is wanted now) is put
//! aside under another name and a new one made. Programs that are attached go on with the old map; its entries are
//! copied before the programs are exchanged, and once more afterwards: what came meanwhile. An agent that dies half-way
//! leaves the old maps under their other names, and the next one goes on from there.
//!
//! A connection that begins in such a moment meets programs with the old tables and with the new ones. So where the tables
//! of connections have the same layout (they only grow), programs for the transition come in between, which read one and
//! write both: first all read the old ones, which are complete; then those are copied, exactly; then all read the new ones;
//! then all forget the old ones. Whatever two programs meet on the way knows the same connections.
//!
//! Layouts grow at their end, and zeros there mean what was meant before: that is the conversion. A change of keys has
//! none, so such a map starts empty; if it is one of the Services', the programs are exchanged when the tables have been
//! written from a complete list.

use crate::{Error, Result, Sizes, bpf, programs};
use aya_obj::Object;
use bytemuck::{bytes_of, pod_read_unaligned};
use leme_abi::{Leg, Translation, Tuple};
use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

/// Dots are not allowed in names of pins.
const ASIDE: &str = "-old";
/// Tables that hold what a complete list says, and that no packet can do without.
const LISTED: [&str; 8] =
    ["frontends", "services", "slots", "backends", "source_ranges", "members", "routes", "node_addresses"];
/// The tables of connections, and what programs of a transition call the older ones.
pub(crate) const CONNECTIONS: [[&str; 2]; 2] = [["conntrack", "conntrack_old"], ["nat", "nat_old"]];
/// There from when the new tables of connections are complete until the old ones go.
const COPIED: &str = "connections-copied";
/// So few that their copy takes no time worth another round.
const FEW: usize = 64;
const ROUNDS: usize = 5;
const TRIES: usize = 5;

/// Kinds of maps that can be walked, `enum bpf_map_type`: hash, LRU hash, LPM trie.
const WALKABLE: [u32; 3] = [1, 9, 11];

/// Maps that have been put aside.
pub(crate) struct Migration {
    pins: PathBuf,
    maps: Vec<&'static str>,
}

impl Migration {
    /// Puts aside what does not fit. Without pins there is nothing to do.
    pub(crate) fn begin(pins: &Path, sizes: &Sizes) -> Result<Self> {
        let names: Vec<&'static str> =
            sizes.by_map().into_iter().map(|(name, _)| name).chain(programs::SIZED).collect();
        let mut maps: Vec<_> =
            names.iter().copied().filter(|name| pins.join(format!("{name}{ASIDE}")).exists()).collect();
        let present: Vec<_> = names.into_iter().filter(|name| pins.join(name).exists()).collect();
        if !present.is_empty() {
            let object = Object::parse(programs::OBJECT).map_err(Error::Object)?;
            for name in present {
                if !fits(pins, name, &object, sizes)? {
                    put_aside(pins, name)?;
                    maps.push(name);
                }
            }
        }
        maps.sort_unstable();
        maps.dedup();
        Ok(Self { pins: pins.to_owned(), maps })
    }

    /// Whether the programs must wait for a complete list.
    pub(crate) fn lost_a_list(&self) -> Result<bool> {
        for name in self.maps.iter().filter(|name| LISTED.contains(name)) {
            if !self.pair(name)?.is_convertible() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Copies while the old programs run, until little is left to copy.
    pub(crate) fn copy(&self) -> Result<()> {
        for _ in 0..ROUNDS {
            if self.copy_once()? < FEW {
                break;
            }
        }
        Ok(())
    }

    fn copy_once(&self) -> Result<usize> {
        self.maps.iter().map(|name| self.pair(name)?.copy(*name == "nat").map_err(|source| failed(name, source))).sum()
    }

    /// Whether the tables of connections are exchanged, for ones of the same layout.
    pub(crate) fn has_transition(&self) -> Result<bool> {
        let mut any = false;
        for [name, _] in self.connections() {
            let Pair { old, new } = self.pair(name)?;
            if (old.kind, old.key, old.value) != (new.kind, new.key, new.value) {
                return Ok(false);
            }
            any = true;
        }
        Ok(any)
    }

    fn connections(&self) -> impl Iterator<Item = [&'static str; 2]> {
        CONNECTIONS.into_iter().filter(|[name, _]| self.maps.contains(name))
    }

    /// Makes the new tables of connections what the old ones are, while programs of the transition read those and write
    /// both.
    pub(crate) fn copy_connections(&self) -> Result<()> {
        for [name, _] in self.connections() {
            self.pair(name)?.equate().map_err(|source| failed(name, source))?;
        }
        let path = self.pins.join(COPIED);
        std::fs::create_dir(&path).map_err(|source| Error::Pin { path, source })
    }

    /// Maybe by an agent before this one; then the old ones are not to be read any more.
    pub(crate) fn has_copied_connections(&self) -> bool {
        self.pins.join(COPIED).exists()
    }

    /// After the programs have been exchanged: the rest, and the end of the old maps.
    pub(crate) fn finish(self) -> Result<()> {
        let transited = self.has_copied_connections();
        let rest = Self {
            pins: self.pins.clone(),
            maps: self.maps.iter().copied().filter(|name| !(transited && is_of_connections(name))).collect(),
        };
        let copied = rest.copy_once()?;
        for name in &self.maps {
            programs::remove_pin(&self.pins.join(format!("{name}{ASIDE}")))?;
        }
        let marker = self.pins.join(COPIED);
        if transited {
            std::fs::remove_dir(&marker).map_err(|source| Error::Pin { path: marker, source })?;
        }
        if !self.maps.is_empty() {
            tracing::info!(maps = ?self.maps, last = copied, "maps have been exchanged for those of this version");
        }
        Ok(())
    }

    fn pair(&self, name: &str) -> Result<Pair> {
        let open = |name: String| {
            let path = self.pins.join(name);
            RawMap::open(&path).map_err(|source| Error::Pin { path, source })
        };
        Ok(Pair { old: open(format!("{name}{ASIDE}"))?, new: open(name.to_owned())? })
    }
}

fn is_of_connections(name: &str) -> bool {
    CONNECTIONS.iter().any(|[map, _]| *map == name)
}

/// The pin of what was put aside; of the map itself where nothing was.
pub(crate) fn older(pins: &Path, name: &str) -> PathBuf {
    let aside = pins.join(format!("{name}{ASIDE}"));
    if aside.exists() { aside } else { pins.join(name) }
}

fn failed(map: &str, source: io::Error) -> Error {
    Error::Map { map: map.to_owned(), call: "copy", source }
}

fn fits(pins: &Path, name: &str, object: &Object, sizes: &Sizes) -> Result<bool> {
    let path = pins.join(name);
    let info = bpf::get(&path).and_then(|map| bpf::map_info(map.as_fd()));
    let info = info.map_err(|source| Error::Pin { path, source })?;
    let Some(wanted) = object.maps.get(name) else { return Ok(true) };
    let room = sizes.by_map().iter().find(|(map, _)| *map == name).map_or(0, |(_, room)| *room);
    // A map with more room than is wanted stays: it may be in use.
    let same =
        [info.kind, info.key_size, info.value_size] == [wanted.map_type(), wanted.key_size(), wanted.value_size()];
    Ok(same && info.max_entries >= room)
}

/// Something put aside earlier, and not yet copied, was older still.
fn put_aside(pins: &Path, name: &str) -> Result<()> {
    let (from, to) = (pins.join(name), pins.join(format!("{name}{ASIDE}")));
    std::fs::rename(&from, &to).map_err(|source| Error::Pin { path: from, source })
}

struct RawMap {
    fd: OwnedFd,
    kind: u32,
    key: usize,
    value: usize,
    room: usize,
}

impl RawMap {
    fn open(path: &Path) -> io::Result<Self> {
        let fd = bpf::get(path)?;
        let info = bpf::map_info(fd.as_fd())?;
        let [key, value, room] = [info.key_size, info.value_size, info.max_entries].map(|size| size as usize);
        Ok(Self { fd, kind: info.kind, key, value, room })
    }

    /// Every entry. Others may change the map meanwhile: then it may start over, but not for ever.
    fn visit(&self, mut visit: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        let (mut key, mut next, mut value) = (vec![0; self.key], vec![0; self.key], vec![0; self.value]);
        let mut more = bpf::raw_next_key(self.fd.as_fd(), None, &mut next)?;
        for _ in 0..self.room * 2 {
            if !more {
                break;
            }
            std::mem::swap(&mut key, &mut next);
            if bpf::raw_lookup(self.fd.as_fd(), &key, &mut value)? {
                visit(&key, &value)?;
            }
            more = bpf::raw_next_key(self.fd.as_fd(), Some(&key), &mut next)?;
        }
        Ok(())
    }
}

struct Pair {
    old: RawMap,
    new: RawMap,
}

impl Pair {
    fn is_convertible(&self) -> bool {
        self.old.key == self.new.key && WALKABLE.contains(&self.old.kind) && WALKABLE.contains(&self.new.kind)
    }

    /// Copies what the new map has not got; how much that was.
    fn copy(&self, translations: bool) -> io::Result<usize> {
        if !self.is_convertible() {
            return Ok(0);
        }
        let mut copied = 0;
        let mut forward = Vec::new();
        let mut taken = HashSet::new();
        self.old.visit(|key, value| {
            let value = self.convert(value);
            match translations.then(|| translation(&value)).flatten() {
                // Those that answer find come first, as when they are made.
                Some(made) if made.leg == Leg::Forward as u8 => forward.push((key.to_vec(), value, made)),
                made => {
                    let new = bpf::raw_insert(self.new.fd.as_fd(), key, &value)?;
                    copied += usize::from(new);
                    if let (Some(made), false) = (made, new)
                        && !self.holds(key, &made)?
                    {
                        taken.insert(key.to_vec());
                    }
                }
            }
            Ok(())
        })?;
        for (key, value, made) in forward {
            // Between two copies another connection has got the port: this one cannot go on.
            if !taken.contains(bytes_of(&made.to.inverse())) {
                copied += usize::from(bpf::raw_insert(self.new.fd.as_fd(), &key, &value)?);
            }
        }
        Ok(copied)
    }

    /// What the new map has and the old one has not goes, then every entry of the old one is written over. Programs that
    /// write both do so while this goes on: an entry that has gone in the meantime must not come back.
    fn equate(&self) -> io::Result<()> {
        let (old, new) = (self.old.fd.as_fd(), self.new.fd.as_fd());
        let mut value = vec![0; self.old.value];
        let mut surplus = Vec::new();
        self.new.visit(|key, _| {
            if !bpf::raw_lookup(old, key, &mut value)? {
                surplus.push(key.to_vec());
            }
            Ok(())
        })?;
        for key in surplus {
            if !bpf::raw_lookup(old, &key, &mut value)? {
                bpf::raw_delete(new, &key)?;
            }
        }
        self.old.visit(|key, first| {
            let mut written = first.to_vec();
            // Counters of a busy connection never stand still; they may differ.
            for _ in 0..TRIES {
                bpf::raw_update(new, key, &written)?;
                if !bpf::raw_lookup(old, key, &mut value)? {
                    return bpf::raw_delete(new, key).map(drop);
                }
                if value == written {
                    break;
                }
                written.clone_from(&value);
            }
            Ok(())
        })
    }

    fn convert(&self, value: &[u8]) -> Vec<u8> {
        let mut converted = vec![0; self.new.value];
        let common = value.len().min(converted.len());
        converted[..common].copy_from_slice(&value[..common]);
        converted
    }

    fn holds(&self, key: &[u8], translation: &Translation) -> io::Result<bool> {
        let mut value = vec![0; self.new.value];
        let there = bpf::raw_lookup(self.new.fd.as_fd(), key, &mut value)?;
        Ok(there && self::translation(&value).is_some_and(|found| found.to == translation.to))
    }
}

/// A value of `nat` as this version has it.
fn translation(value: &[u8]) -> Option<Translation> {
    (value.len() == size_of::<Translation>()).then(|| pod_read_unaligned(value))
}

const _: () = assert!(size_of::<Tuple>() == 40, "keys of `nat` are compared as bytes");
