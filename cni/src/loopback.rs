//! The `loopback` plugin that containerd runs beside every network: brings `lo` up in the container's namespace.
//!
//! The same binary under another name, so that a node needs no other package for its pods. Talks to nobody.

use std::{ffi::OsStr, fs::File, io, mem::zeroed, net::UdpSocket, os::fd::AsRawFd, path::Path};

use leme_cni::{Command, Failure, Request, code};
use serde_json::{Value, json};

pub fn is_invoked() -> bool {
    std::env::args_os().next().is_some_and(|name| Path::new(&name).file_name() == Some(OsStr::new("loopback")))
}

/// The result document of ADD, nothing for the rest. There is nothing to take down: `lo` goes with its namespace.
pub fn answer(version: &str, request: &Request) -> Result<Option<Value>, Failure> {
    let netns = request.netns.as_deref().unwrap_or_default();
    let failed = |what: &str, error| Failure::new(code::IO_FAILURE, what, format!("{netns}: {error}"));
    match request.command {
        Command::Add => {
            within(netns, bring_up).map_err(|error| failed("failed to bring lo up", error))?;
            Ok(Some(result(version, netns)))
        }
        Command::Check => match within(netns, |socket| Ok(flags(socket)?.1 & UP != 0)) {
            Ok(true) => Ok(None),
            Ok(false) => Err(Failure::new(code::CHECK_FAILED, "lo is down", netns)),
            Err(error) => Err(failed("failed to look at lo", error)),
        },
        _ => Ok(None),
    }
}

fn result(version: &str, netns: &str) -> Value {
    let mut ip = json!({"interface": 0, "address": "127.0.0.1/8"});
    if matches!(version, "0.3.1" | "0.4.0") {
        ip["version"] = json!("4");
    }
    json!({
        "cniVersion": version,
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns}],
        "ips": [ip],
        "dns": {},
    })
}

const UP: libc::c_short = libc::IFF_UP as libc::c_short;

/// Works with a socket of the namespace. This process ends right after: it need not go back to its own.
fn within<T>(netns: &str, work: impl FnOnce(&UdpSocket) -> io::Result<T>) -> io::Result<T> {
    let namespace = File::open(netns)?;
    // SAFETY: setns takes a valid descriptor and no memory.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
    work(&UdpSocket::bind("0.0.0.0:0")?)
}

fn bring_up(socket: &UdpSocket) -> io::Result<()> {
    let (mut request, flags) = flags(socket)?;
    request.ifr_ifru.ifru_flags = flags | UP;
    // SAFETY: SIOCSIFFLAGS reads the ifreq it is given, which lives across the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })
}

/// The flags of `lo`, and the request that names it.
fn flags(socket: &UdpSocket) -> io::Result<(libc::ifreq, libc::c_short)> {
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: SIOCGIFFLAGS fills the ifreq it is given, which lives across the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) })?;
    // SAFETY: SIOCGIFFLAGS has just written this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((request, flags))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
