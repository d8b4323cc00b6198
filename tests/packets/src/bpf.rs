//! bpf(2), for what no other version of the product is here to do: make programs and maps that are not this one's.

use anyhow::{Context, Result, ensure};
use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

/// Commands of linux/bpf.h.
const CREATE: libc::c_long = 0;
const LOOKUP: libc::c_long = 1;
const UPDATE: libc::c_long = 2;
const NEXT: libc::c_long = 4;
pub const LOAD: libc::c_long = 5;
const PIN: libc::c_long = 6;
const GET: libc::c_long = 7;
const INFO: libc::c_long = 15;
pub const LINK: libc::c_long = 28;

/// A command whose result is a descriptor.
pub fn make(command: libc::c_long, attributes: &mut [u64]) -> Result<OwnedFd> {
    let fd = call(command, attributes).with_context(|| format!("bpf({command})"))?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn call(command: libc::c_long, attributes: &mut [u64]) -> io::Result<libc::c_long> {
    let size = size_of_val(attributes);
    // SAFETY: the attributes are as long as told, and what they point to lives until the call is over.
    let code = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code) }
}

/// How a map is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub kind: u32,
    pub key: u32,
    pub value: u32,
    pub room: u32,
    pub flags: u32,
}

/// A pinned map, whatever its layout.
pub struct RawMap {
    fd: OwnedFd,
    pub layout: Layout,
}

impl RawMap {
    pub fn open(pin: &Path) -> Result<Self> {
        let path = text(pin)?;
        let fd = make(GET, &mut [path.as_ptr() as u64, 0])?;
        let mut info = [0u32; 20];
        let length = size_of_val(&info) as u64;
        call(INFO, &mut [fd.as_raw_fd() as u64 | length << 32, info.as_mut_ptr() as u64])?;
        let [kind, _, key, value, room, flags, ..] = info;
        Ok(Self { fd, layout: Layout { kind, key, value, room, flags } })
    }

    /// Replaces a pin by a map of another layout with the same entries, as far as they fit: values are cut or get zeros.
    pub fn relay(pin: &Path, change: impl FnOnce(Layout) -> Layout) -> Result<()> {
        let from = Self::open(pin)?;
        let layout = change(from.layout);
        ensure!(layout.key == from.layout.key, "keys stay as they are");
        std::fs::remove_file(pin)?;
        let to = Self::make(pin, layout)?;
        for (key, mut value) in from.entries()? {
            value.resize(to.layout.value as usize, 0);
            let (key, value) = (key.as_ptr() as u64, value.as_ptr() as u64);
            call(UPDATE, &mut [to.fd.as_raw_fd() as u64, key, value, 0])?;
        }
        Ok(())
    }

    /// An empty one, pinned.
    pub fn make(pin: &Path, layout: Layout) -> Result<Self> {
        let Layout { kind, key, value, room, flags } = layout;
        let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let fd = make(CREATE, &mut [word(kind, key), word(value, room), word(flags, 0)])?;
        let path = text(pin)?;
        call(PIN, &mut [path.as_ptr() as u64, fd.as_raw_fd() as u64])?;
        Ok(Self { fd, layout })
    }

    pub fn entries(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let map = self.fd.as_raw_fd() as u64;
        let mut entries: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        loop {
            let mut key = vec![0; self.layout.key as usize];
            let last = entries.last().map_or(0, |(key, _)| key.as_ptr() as u64);
            if call(NEXT, &mut [map, last, key.as_mut_ptr() as u64, 0]).is_err() {
                return Ok(entries);
            }
            let mut value = vec![0; self.layout.value as usize];
            call(LOOKUP, &mut [map, key.as_ptr() as u64, value.as_mut_ptr() as u64, 0])?;
            ensure!(entries.len() < self.layout.room as usize, "the map changes while it is read");
            entries.push((key, value));
        }
    }
}

fn text(path: &Path) -> Result<CString> {
    Ok(CString::new(path.to_string_lossy().as_bytes())?)
}
