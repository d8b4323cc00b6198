//! Connected UDP sockets, which no hook sees again once they are connected: found through sock_diag in the namespaces of
//! the node and of its pods, and ended when what they asked for does not lead to their backend any more.
//!
//! What a socket asked for stands in `udp_origin` under its cookie, which the kernel tells along with it. So nothing is
//! ever ended that was connected to an address of its own choice.

use crate::{Error, Result, namespaces::inside, table::Table};
use bytemuck::{Pod, Zeroable, bytes_of, pod_read_unaligned};
use leme_abi::{Addr, Origin, Port, Protocol};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;

/// linux/sock_diag.h, linux/inet_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// The state of a UDP socket that is truly connected: TCP's.
const ESTABLISHED: u32 = 1;

/// `struct nlmsghdr`, linux/netlink.h.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Header {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct inet_diag_sockid`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
struct SocketId {
    sport: Port,
    dport: Port,
    src: [u32; 4],
    dst: [u32; 4],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Request {
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SocketId,
}

/// `struct inet_diag_msg`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Answer {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: SocketId,
    expires: u32,
    queued: [u32; 2],
    user: u32,
    inode: u32,
}

impl SocketId {
    /// As `bpf_get_socket_cookie` tells it.
    fn cookie(&self) -> u64 {
        u64::from(self.cookie[1]) << 32 | u64::from(self.cookie[0])
    }

    fn peer(&self, family: u8) -> (Addr, Port) {
        (if family == AF_INET { Addr::from_v4(self.dst[0]) } else { Addr(self.dst) }, self.dport)
    }
}

const _: () = assert!(size_of::<SocketId>() == 48);
const _: () = assert!(size_of::<Request>() == 56);
const _: () = assert!(size_of::<Answer>() == 72);

/// A UDP socket that a hook connected to a backend, and still is.
#[derive(Clone, Debug)]
pub struct ServiceSocket {
    /// None: the caller's own namespace.
    namespace: Option<PathBuf>,
    family: u8,
    id: SocketId,
    origin: Origin,
}

impl ServiceSocket {
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }
}

/// Looks at sockets away from the datapath, which goes on meanwhile.
pub struct Sockets {
    origins: Table<u64, Origin>,
    namespaces: Vec<PathBuf>,
}

impl Sockets {
    /// Those of the caller's namespace and of these.
    pub(crate) fn new(pins: &Path, namespaces: Vec<PathBuf>) -> Result<Self> {
        Ok(Self { origins: Table::open(pins, "udp_origin")?, namespaces })
    }

    /// Every UDP socket that is connected through a Service. A namespace that has just gone has none.
    pub fn connected(&self) -> Result<Vec<ServiceSocket>> {
        let mut found = self.connected_here(None)?;
        for path in &self.namespaces {
            match inside(path, || self.connected_here(Some(path))) {
                Ok(sockets) => found.extend(sockets?),
                Err(error) => tracing::debug!(%error, "the sockets of a pod were not looked at"),
            }
        }
        Ok(found)
    }

    fn connected_here(&self, namespace: Option<&PathBuf>) -> Result<Vec<ServiceSocket>> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            for id in list(family).map_err(|source| failed("list UDP sockets", source))? {
                let Some(origin) = self.origins.get(&id.cookie())? else { continue };
                // Not one that was connected anew since, to something that is no Service.
                if id.peer(family) == (origin.backend, origin.backend_port) {
                    found.push(ServiceSocket { namespace: namespace.cloned(), family, id, origin });
                }
            }
        }
        Ok(found)
    }

    /// Ends sockets: whoever waits on one gets `ECONNABORTED`, and it is unconnected from then on. One that is gone or
    /// connected anew is done. Tells how many were ended.
    pub fn end(&self, sockets: &[ServiceSocket]) -> Result<usize> {
        let mut ended = 0;
        for socket in sockets {
            let outcome = match &socket.namespace {
                None => destroy(socket),
                Some(path) => match inside(path, || destroy(socket)) {
                    Ok(outcome) => outcome,
                    Err(_) => continue,
                },
            };
            match outcome {
                Ok(()) => ended += 1,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(source) => return Err(failed("end a UDP socket", source)),
            }
        }
        Ok(ended)
    }
}

/// A kernel without sock_diag for UDP knows no such request, one without `SOCK_DESTROY` no such operation.
fn failed(action: &str, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP) => Error::NoSocketDiag,
        _ => Error::Io { action: action.into(), source },
    }
}

/// Connected UDP sockets of this thread's namespace.
fn list(family: u8) -> io::Result<Vec<SocketId>> {
    let request = Request { family, protocol: Protocol::UDP, states: 1 << ESTABLISHED, ..Request::default() };
    let netlink = send(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP as u16, bytes_of(&request))?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (header, body) in messages(&buffer[..length]) {
            match i32::from(header.kind) {
                libc::NLMSG_DONE => return Ok(found),
                libc::NLMSG_ERROR => return outcome(body).map(|()| found),
                _ => found.extend(body.get(..size_of::<Answer>()).map(|bytes| pod_read_unaligned::<Answer>(bytes).id)),
            }
        }
    }
}

fn destroy(socket: &ServiceSocket) -> io::Result<()> {
    let request = Request { family: socket.family, protocol: Protocol::UDP, id: socket.id, ..Request::default() };
    let netlink = send(SOCK_DESTROY, libc::NLM_F_ACK as u16, bytes_of(&request))?;
    let mut buffer = [0; 1024];
    let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let answered = messages(&buffer[..length]).next();
    answered.map_or(Err(io::ErrorKind::UnexpectedEof.into()), |(_, body)| outcome(body))
}

/// A request on a socket of its own: its answers come there.
fn send(kind: u16, flags: u16, body: &[u8]) -> io::Result<OwnedFd> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let length = (size_of::<Header>() + body.len()) as u32;
    let header = Header { length, kind, flags: flags | libc::NLM_F_REQUEST as u16, sequence: 1, port: 0 };
    let message = [bytes_of(&header), body].concat();
    sendto(netlink.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(netlink)
}

/// The code of an error message or acknowledgement.
fn outcome(body: &[u8]) -> io::Result<()> {
    match body.get(..4).map(pod_read_unaligned::<i32>) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let header: Header = pod_read_unaligned(bytes.get(..size_of::<Header>())?);
        let body = bytes.get(size_of::<Header>()..header.length as usize)?;
        bytes = bytes.get((header.length as usize).next_multiple_of(4)..).unwrap_or(&[]);
        Some((header, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_are_cut_short_or_endless_end_the_walk() {
        let header = |length| Header { length, kind: 3, ..Header::default() };
        let message = [bytes_of(&header(20)), &[1, 2, 3, 4]].concat();
        assert_eq!(messages(&message.repeat(2)).count(), 2);
        assert_eq!(messages(&message[..19]).count(), 0);
        assert_eq!(messages(bytes_of(&header(0))).count(), 0);
        assert_eq!(messages(bytes_of(&header(u32::MAX))).count(), 0);
    }

    #[test]
    fn a_socket_of_this_namespace_is_listed_once_it_is_connected() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = Port::new(socket.local_addr().unwrap().port());
        let listed = || list(AF_INET).unwrap().into_iter().find(|id| id.sport == port);
        assert_eq!(listed(), None);
        socket.connect("127.0.0.1:9").unwrap();
        assert_eq!(listed().unwrap().peer(AF_INET), (Addr::LOOPBACK, Port::new(9)));
    }
}
