//! A pinned map with typed keys and values. Batches where the kernel has them, one by one where it has not.

use crate::{Error, Result, bpf};
use bytemuck::Pod;
use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

/// Entries per system call.
const BATCH: usize = 4096;

pub(crate) struct Table<K, V> {
    fd: OwnedFd,
    name: &'static str,
    capacity: u32,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Opens `name` below the pins of a node. A map of another layout is refused.
    pub(crate) fn open(pin_dir: &Path, name: &'static str) -> Result<Self> {
        let path = pin_dir.join(name);
        let pin = |source| Error::Pin { path: path.clone(), source };
        let fd = bpf::get(&path).map_err(pin)?;
        let info = bpf::map_info(fd.as_fd()).map_err(pin)?;
        if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(pin(io::Error::new(io::ErrorKind::InvalidData, "the pinned map has another layout")));
        }
        Ok(Self { fd, name, capacity: info.max_entries, types: PhantomData })
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    fn failed(&self, call: &'static str) -> impl FnOnce(io::Error) -> Error {
        let map = self.name.to_owned();
        move |source| Error::Map { map, call, source }
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>> {
        bpf::lookup(self.fd.as_fd(), key).map_err(self.failed("lookup"))
    }

    pub(crate) fn put(&self, key: &K, value: &V) -> Result<()> {
        bpf::update(self.fd.as_fd(), key, value).map_err(self.failed("update"))
    }

    /// Absent is done.
    pub(crate) fn delete(&self, key: &K) -> Result<()> {
        bpf::delete(self.fd.as_fd(), key).map(drop).map_err(self.failed("delete"))
    }

    pub(crate) fn put_all(&self, entries: &[(K, V)]) -> Result<()> {
        if let [(key, value)] = entries {
            return self.put(key, value);
        }
        for chunk in entries.chunks(BATCH) {
            let (keys, values): (Vec<K>, Vec<V>) = chunk.iter().copied().unzip();
            if let Err((done, error)) = bpf::update_batch(self.fd.as_fd(), &keys, &values) {
                if !lacks_batches(&error) {
                    return Err(self.failed("update batch")(error));
                }
                chunk[done..].iter().try_for_each(|(key, value)| self.put(key, value))?;
            }
        }
        Ok(())
    }

    /// Absent is done.
    pub(crate) fn delete_all(&self, keys: &[K]) -> Result<()> {
        for chunk in keys.chunks(BATCH) {
            if chunk.len() == 1 || bpf::delete_batch(self.fd.as_fd(), chunk).is_err() {
                // Some of them are gone already, or the kernel has no batches.
                chunk.iter().try_for_each(|key| self.delete(key))?;
            }
        }
        Ok(())
    }

    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        self.visit(|key, value| entries.push((*key, *value)))?;
        Ok(entries)
    }

    /// Every entry, some perhaps twice or not at all while others change the map.
    pub(crate) fn visit(&self, mut visit: impl FnMut(&K, &V)) -> Result<()> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut cursor = None;
        let mut room = BATCH.min(self.capacity as usize);
        loop {
            match bpf::lookup_batch(self.fd.as_fd(), &mut cursor, &mut keys, &mut values, room) {
                Ok(more) => {
                    keys.iter().zip(&values).for_each(|(key, value)| visit(key, value));
                    if !more {
                        return Ok(());
                    }
                }
                // One bucket holds more than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => room *= 2,
                Err(error) if lacks_batches(&error) && cursor.is_none() => return self.visit_one_by_one(visit),
                Err(error) => return Err(self.failed("lookup batch")(error)),
            }
        }
    }

    fn visit_one_by_one(&self, mut visit: impl FnMut(&K, &V)) -> Result<()> {
        let next = |key: Option<&K>| bpf::next_key(self.fd.as_fd(), key).map_err(self.failed("next key"));
        let mut cursor = next(None)?;
        while let Some(key) = cursor {
            if let Some(value) = self.get(&key)? {
                visit(&key, &value);
            }
            cursor = next(Some(&key))?;
        }
        Ok(())
    }
}

/// Room in a pinned map of any layout.
pub(crate) fn capacity(pin_dir: &Path, name: &str) -> Result<u32> {
    let path = pin_dir.join(name);
    let info = bpf::get(&path).and_then(|fd| bpf::map_info(fd.as_fd()));
    info.map(|info| info.max_entries).map_err(|source| Error::Pin { path, source })
}

/// A per-CPU array of counters, summed over CPUs.
pub(crate) struct CpuTable {
    fd: OwnedFd,
}

impl CpuTable {
    pub(crate) fn open(pin_dir: &Path, name: &str) -> Result<Self> {
        let path = pin_dir.join(name);
        let fd = bpf::get(&path).map_err(|source| Error::Pin { path, source })?;
        Ok(Self { fd })
    }

    /// The sum of each 64-bit word of the value.
    pub(crate) fn sum<const WORDS: usize>(&self, index: u32) -> Result<[u64; WORDS]> {
        let mut words = vec![0u64; WORDS * aya::util::nr_cpus().unwrap_or(1024)];
        let failed = |source| Error::Map { map: "counters".into(), call: "lookup", source };
        bpf::lookup_into(self.fd.as_fd(), &index, &mut words).map_err(failed)?;
        let mut sum = [0; WORDS];
        words.chunks(WORDS).for_each(|cpu| sum.iter_mut().zip(cpu).for_each(|(sum, word)| *sum += word));
        Ok(sum)
    }
}

/// EINVAL from kernels without the command, ENOTSUPP (524) from map types without it.
fn lacks_batches(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | 524))
}
