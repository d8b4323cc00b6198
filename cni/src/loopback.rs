//! The `loopback` plugin that containerd runs beside every network: brings `lo` up in the container's namespace.
//!
//! The same binary under another name, so that a node needs no other package for its pods. Talks to nobody.

use std::{ffi::OsStr, fs::File, io, mem::zeroed, os::fd::AsRawFd, path::Path};

use leme_cni::{Command, Failure, Request, code};
use serde_json::{Value, json};

pub fn is_invoked() -> bool {
    std::env::args_os().next().is_some_and(|name| Path::new(&name).file_name() == Some(OsStr::new("loopback")))
}

/// The result document of ADD, nothing for the rest. There is nothing to take down: `lo` goes with its namespace.
pub fn answer(request: &Request) -> Result<Option<Value>, Failure> {
    if request.command != Command::Add {
        return Ok(None);
    }
    let netns = request.netns.as_deref().unwrap_or_default();
    bring_up(netns)
        .map_err(|error| Failure::new(code::IO_FAILURE, "failed to bring lo up", format!("{netns}: {error}")))?;
    Ok(Some(json!({
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns}],
        "ips": [{"version": "4", "interface": 0, "address": "127.0.0.1/8"}],
        "dns": {},
    })))
}

/// This process ends right after: it need not go back to its own namespace.
fn bring_up(netns: &str) -> io::Result<()> {
    let namespace = File::open(netns)?;
    // SAFETY: setns takes a valid descriptor and no memory.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: SIOCGIFFLAGS fills the ifreq it is given, which lives across the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) })?;
    // SAFETY: SIOCGIFFLAGS has just written this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads the ifreq it is given, which lives across the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
