//! Rules of others in the packet filters of the caller's network namespace: read, never written.
//!
//! kube-proxy leaves chains behind when it is switched off; they go on translating what the programs do not take. Both
//! homes of such chains are asked by the kernel's own interfaces, and neither is asked if the kernel has not got it
//! already: asking would make it load modules and make tables.

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// A chain, and the table in which it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// `iptables` or `nftables`
    pub home: &'static str,
    pub table: String,
    pub name: String,
}

/// All chains that have a name of their own.
pub fn chains() -> io::Result<BTreeSet<Chain>> {
    let mut found = nftables()?;
    found.extend(legacy()?);
    Ok(found)
}

// --- nftables, linux/netfilter/nf_tables.h ---

const SUBSYSTEM: u16 = 10;
const GET_CHAIN: u16 = 4;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const HEADER: usize = 16;
/// Of `struct nfgenmsg`.
const FAMILY: usize = 4;
const ERROR: u16 = 2;
const DONE: u16 = 3;

fn nftables() -> io::Result<BTreeSet<Chain>> {
    if !has_nftables() {
        return Ok(BTreeSet::new());
    }
    // A kernel without packet filters has no such sockets.
    let Ok(mut socket) = Socket::new(NETLINK_NETFILTER) else { return Ok(BTreeSet::new()) };
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(GET_CHAIN), 0)?;
    let mut found = BTreeSet::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        if !take_chains(&bytes, &mut found) {
            return Ok(found);
        }
    }
}

/// A dump of every family.
fn request(command: u16) -> [u8; HEADER + FAMILY] {
    const REQUEST_DUMP: u16 = 0x301;
    let mut bytes = [0; HEADER + FAMILY];
    bytes[..4].copy_from_slice(&((HEADER + FAMILY) as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&(SUBSYSTEM << 8 | command).to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    bytes
}

/// Reads one datagram of answers; false at the end. A kernel that refuses has no chains.
fn take_chains(mut bytes: &[u8], found: &mut BTreeSet<Chain>) -> bool {
    while let Some(length) = word(bytes, 0).map(|length| length as usize).filter(|length| *length >= HEADER) {
        let Some(message) = bytes.get(..length) else { return false };
        match half(message, 4) {
            Some(ERROR | DONE) | None => return false,
            Some(_) => found.extend(chain(message)),
        }
        bytes = bytes.get(align(length)..).unwrap_or_default();
    }
    true
}

fn chain(message: &[u8]) -> Option<Chain> {
    let mut attributes = message.get(HEADER + FAMILY..)?;
    let (mut table, mut name) = (None, None);
    while let Some(length) = half(attributes, 0).map(usize::from).filter(|length| *length >= 4) {
        let value = attributes.get(4..length)?;
        match half(attributes, 2)? & 0x3fff {
            CHAIN_TABLE => table = text(value),
            CHAIN_NAME => name = text(value),
            _ => {}
        }
        attributes = attributes.get(align(length)..).unwrap_or_default();
    }
    Some(Chain { home: "nftables", table: table?, name: name? })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.split(|byte| *byte == 0).next()?.to_vec()).ok()
}

fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Asking a kernel that has it as a module, not yet loaded, would load it.
fn has_nftables() -> bool {
    let Ok(modules) = fs::read_to_string("/proc/modules") else { return true };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let builtin = fs::read_to_string(format!("/lib/modules/{}/modules.builtin", release.trim()));
    let is_module = builtin.is_ok_and(|builtin| !builtin.contains("/nf_tables.ko"));
    !is_module || modules.lines().any(|line| line.starts_with("nf_tables "))
}

// --- iptables, linux/netfilter_ipv4/ip_tables.h ---

const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
const TABLE_NAME: usize = 32;
/// `struct ipt_getinfo`; its last word is the size of the entries.
const INFO: usize = 84;
/// `struct ipt_get_entries` before the entries.
const ENTRIES: usize = 40;
/// A chain of one's own begins with an entry whose target has this name; the chain's follows.
const CHAIN_MARK: &[u8] = b"ERROR";
/// Revision and length stand around the target's name; the chain's starts after all 32 bytes of it.
const MARK_FIELD: usize = 30;

/// Only tables that exist: asking for another would make it.
fn legacy() -> io::Result<BTreeSet<Chain>> {
    let tables = fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    let mut found = BTreeSet::new();
    for table in tables.lines() {
        let names = chain_names(&entries(table)?);
        found.extend(names.into_iter().map(|name| Chain { home: "iptables", table: table.to_owned(), name }));
    }
    Ok(found)
}

fn entries(table: &str) -> io::Result<Vec<u8>> {
    let socket = raw_socket()?;
    let mut info = [0; INFO];
    info[..table.len().min(TABLE_NAME - 1)].copy_from_slice(&table.as_bytes()[..table.len().min(TABLE_NAME - 1)]);
    ask(&socket, GET_INFO, &mut info)?;
    let size = word(&info, INFO - 4).unwrap_or(0);
    let mut bytes = vec![0; ENTRIES + size as usize];
    bytes[..TABLE_NAME].copy_from_slice(&info[..TABLE_NAME]);
    bytes[TABLE_NAME..TABLE_NAME + 4].copy_from_slice(&size.to_ne_bytes());
    ask(&socket, GET_ENTRIES, &mut bytes)?;
    Ok(bytes.split_off(ENTRIES))
}

fn raw_socket() -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor out of numbers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn ask(socket: &OwnedFd, option: libc::c_int, bytes: &mut [u8]) -> io::Result<()> {
    let mut length = bytes.len() as libc::socklen_t;
    let place = bytes.as_mut_ptr().cast();
    // SAFETY: the buffer is as long as it says.
    let code = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, place, &mut length) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn chain_names(entries: &[u8]) -> Vec<String> {
    let marks = entries.windows(CHAIN_MARK.len() + 1).enumerate();
    let marks = marks.filter(|(_, window)| window.starts_with(CHAIN_MARK) && window.ends_with(b"\0"));
    let names = marks.filter_map(|(at, _)| text(entries.get(at + MARK_FIELD..at + MARK_FIELD + TABLE_NAME)?));
    // The last entry of every table has the mark's own name.
    names.filter(|name| !name.is_empty() && name != "ERROR").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `iptables -N KUBE-SERVICES -t nat`, as the kernel answers: an entry, its target, the chain's name.
    fn entry(name: &str) -> Vec<u8> {
        let mut bytes = vec![0; 112];
        let mut target = [0; 2 + 30 + 32];
        target[..2].copy_from_slice(&64u16.to_ne_bytes());
        target[2..7].copy_from_slice(CHAIN_MARK);
        target[32..32 + name.len()].copy_from_slice(name.as_bytes());
        bytes.extend(target);
        bytes
    }

    #[test]
    fn chains_are_found_between_rules() {
        let table = [entry("KUBE-SERVICES"), vec![0; 176], entry("DOCKER"), entry("ERROR")].concat();
        assert_eq!(chain_names(&table), ["KUBE-SERVICES", "DOCKER"]);
        assert!(chain_names(b"ERROR").is_empty());
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(align(bytes.len()), 0);
        bytes
    }

    fn message(kind: u16, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = request(0).to_vec();
        bytes[..4].copy_from_slice(&((HEADER + FAMILY + attributes.len()) as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn chains_are_read_out_of_a_dump_until_its_end() {
        let attributes = [
            attribute(CHAIN_TABLE, b"kube-proxy\0"),
            attribute(2, &7u64.to_be_bytes()),
            attribute(CHAIN_NAME, b"services\0"),
        ];
        let mut found = BTreeSet::new();
        assert!(take_chains(&message(SUBSYSTEM << 8 | 3, &attributes.concat()), &mut found));
        let chain = Chain { home: "nftables", table: "kube-proxy".into(), name: "services".into() };
        assert_eq!(found, BTreeSet::from([chain]));
        assert!(!take_chains(&message(DONE, &[]), &mut found));
        assert!(!take_chains(&message(ERROR, &[]), &mut found));
        assert!(!take_chains(&[255; 20], &mut found), "a length beyond the datagram");
    }
}
