//! bpf(2) itself, for what aya lacks: batches, pins of any object, links that are made and updated the same way for
//! every hook. All its unsafe code is here.

use bytemuck::{Pod, Zeroable, bytes_of, bytes_of_mut};
use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Commands of bpf(2), linux/bpf.h.
#[repr(i32)]
#[derive(Clone, Copy)]
enum Command {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    Pin = 6,
    Get = 7,
    Info = 15,
    LookupBatch = 24,
    UpdateBatch = 26,
    DeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
}

/// Where a program is attached by a link: `enum bpf_attach_type`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttachType {
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getpeername4 = 29,
    Getpeername6 = 30,
    SockRelease = 34,
    TcxIngress = 46,
    TcxEgress = 47,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Link {
    /// Program (create) or link (update).
    first: u32,
    /// Target (create) or program (update).
    second: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Info {
    fd: u32,
    length: u32,
    info: u64,
}

/// The head of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(crate) struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

/// The head of `struct bpf_link_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(crate) struct LinkInfo {
    kind: u32,
    id: u32,
    pub program: u32,
    reserved: u32,
    /// What it is attached to: a device's index and side, or both halves of a cgroup's id.
    target: [u32; 2],
}

impl LinkInfo {
    /// A link that was detached by force, or whose device or cgroup went away, leads nowhere.
    pub(crate) fn is_attached(&self, to_device: bool) -> bool {
        self.target[0] != 0 || (!to_device && self.target[1] != 0)
    }
}

fn call<T: Pod>(command: Command, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the attributes are plain data of the given size; pointers inside them refer to memory that the callers
    // below keep alive and that has the sizes the map or the path calls for.
    let code = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, bytes_of_mut(attributes).as_mut_ptr(), size_of::<T>())
    };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code as RawFd) }
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just given us this descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn path_text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Opens a pinned map, program or link.
pub(crate) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_text(path)?;
    call(Command::Get, &mut Object { path: path.as_ptr() as u64, ..Object::default() }).map(own)
}

pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_text(path)?;
    call(Command::Pin, &mut Object { path: path.as_ptr() as u64, fd: number(fd), flags: 0 }).map(drop)
}

pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let place = bytes_of_mut(&mut info).as_mut_ptr() as u64;
    call(Command::Info, &mut Info { fd: number(map), length: size_of::<MapInfo>() as u32, info: place })?;
    Ok(info)
}

pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let place = bytes_of_mut(&mut info).as_mut_ptr() as u64;
    call(Command::Info, &mut Info { fd: number(link), length: size_of::<LinkInfo>() as u32, info: place })?;
    Ok(info)
}

/// Attaches a program to a cgroup (by descriptor) or a device (by index).
pub(crate) fn link_create(program: BorrowedFd<'_>, target: u32, attach_type: AttachType) -> io::Result<OwnedFd> {
    let attach_type = attach_type as u32;
    call(Command::LinkCreate, &mut Link { first: number(program), second: target, attach_type, flags: 0 }).map(own)
}

/// Replaces a link's program in one step.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    call(Command::LinkUpdate, &mut Link { first: number(link), second: number(program), ..Link::default() }).map(drop)
}

pub(crate) fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::zeroed();
    let place = bytes_of_mut(&mut value).as_mut_ptr() as u64;
    found(call(Command::MapLookup, &mut element(map, Some(key), place, 0))).map(|there| there.then_some(value))
}

/// Reads a value longer than a type: per-CPU maps.
pub(crate) fn lookup_into<K: Pod>(map: BorrowedFd<'_>, key: &K, value: &mut [u64]) -> io::Result<bool> {
    found(call(Command::MapLookup, &mut element(map, Some(key), value.as_mut_ptr() as u64, 0)))
}

pub(crate) fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    call(Command::MapUpdate, &mut element(map, Some(key), bytes_of(value).as_ptr() as u64, 0)).map(drop)
}

/// False if it was not there.
pub(crate) fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    found(call(Command::MapDelete, &mut element(map, Some(key), 0, 0)))
}

pub(crate) fn next_key<K: Pod>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = K::zeroed();
    let place = bytes_of_mut(&mut next).as_mut_ptr() as u64;
    found(call(Command::MapNextKey, &mut element(map, key, place, 0))).map(|there| there.then_some(next))
}

/// The same for maps whose layout is known only at run time. A key or value must be as long as the map says.
pub(crate) fn raw_next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let key = key.map_or(0, |key| key.as_ptr() as u64);
    let mut element = Element { map: number(map), key, value: next.as_mut_ptr() as u64, ..Element::default() };
    found(call(Command::MapNextKey, &mut element))
}

pub(crate) fn raw_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let value = value.as_mut_ptr() as u64;
    found(call(
        Command::MapLookup,
        &mut Element { map: number(map), key: key.as_ptr() as u64, value, ..Element::default() },
    ))
}

/// False if there is an entry already.
pub(crate) fn raw_insert(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<bool> {
    const ONLY_IF_ABSENT: u64 = 1;
    let (key, value) = (key.as_ptr() as u64, value.as_ptr() as u64);
    let mut element = Element { map: number(map), reserved: 0, key, value, flags: ONLY_IF_ABSENT };
    match call(Command::MapUpdate, &mut element) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn raw_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let (key, value) = (key.as_ptr() as u64, value.as_ptr() as u64);
    call(Command::MapUpdate, &mut Element { map: number(map), key, value, ..Element::default() }).map(drop)
}

/// False if it was not there.
pub(crate) fn raw_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let key = key.as_ptr() as u64;
    found(call(Command::MapDelete, &mut Element { map: number(map), key, ..Element::default() }))
}

fn element<K: Pod>(map: BorrowedFd<'_>, key: Option<&K>, value: u64, flags: u64) -> Element {
    let key = key.map_or(0, |key| bytes_of(key).as_ptr() as u64);
    Element { map: number(map), reserved: 0, key, value, flags }
}

fn found(result: io::Result<RawFd>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes many entries (5.6 for hashes). On failure tells how many were written.
pub(crate) fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    assert_eq!(keys.len(), values.len(), "one value per key");
    let values = values.as_ptr() as u64;
    run_batch(Command::UpdateBatch, Batch { values, ..batch(map, keys) })
}

/// Deletes many entries; stops at the first that is not there. On failure tells how many were deleted.
pub(crate) fn delete_batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Result<(), (usize, io::Error)> {
    run_batch(Command::DeleteBatch, batch(map, keys))
}

fn batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Batch {
    Batch { keys: keys.as_ptr() as u64, count: keys.len() as u32, map: number(map), ..Batch::default() }
}

fn run_batch(command: Command, mut batch: Batch) -> Result<(), (usize, io::Error)> {
    let wanted = batch.count;
    match call(command, &mut batch) {
        Ok(_) => Ok(()),
        // A kernel that refuses the command leaves the count as it was.
        Err(error) if batch.count == wanted => Err((0, error)),
        Err(error) => Err((batch.count as usize, error)),
    }
}

/// Reads the next entries after the cursor; false at the end. What a cursor is depends on the map: four bytes of a hash,
/// the last key of a trie. So it has a key's room.
pub(crate) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: &mut Option<K>,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
    room: usize,
) -> io::Result<bool> {
    const { assert!(size_of::<K>() >= size_of::<u32>(), "a hash's cursor fits into a key") };
    keys.resize(room, K::zeroed());
    values.resize(room, V::zeroed());
    let from = *cursor;
    let mut to = K::zeroed();
    let mut batch = Batch {
        from: from.as_ref().map_or(0, |cursor| std::ptr::from_ref(cursor) as u64),
        to: std::ptr::from_mut(&mut to) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: room as u32,
        map: number(map),
        ..Batch::default()
    };
    let more = match call(Command::LookupBatch, &mut batch) {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => return Err(error),
    };
    keys.truncate(batch.count as usize);
    values.truncate(batch.count as usize);
    *cursor = Some(to);
    Ok(more)
}
