//! What the running kernel lacks beyond 5.10: everything works without, some of it less well.

use crate::programs::probe_features;
use aya::programs::{SchedClassifier, TcAttachType};
use leme_abi::feature;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use std::{io, sync::OnceLock};

/// Features by name, each with what it means that they are not there.
pub fn kernel_lacks() -> Vec<(&'static str, &'static str)> {
    static LACKS: OnceLock<Vec<(&str, &str)>> = OnceLock::new();
    LACKS.get_or_init(probe).clone()
}

fn probe() -> Vec<(&'static str, &'static str)> {
    let mut lacks = Vec::new();
    if SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_err() {
        lacks.push(("tcx", "programs are attached as classic filters, which others can replace (tcx came with 6.6)"));
    }
    if probe_features() & feature::SET_RETVAL == 0 {
        let meaning = "connections to a Service without endpoints are refused by a packet, not at once (5.18)";
        lacks.push(("bpf-set-retval", meaning));
    }
    if ends_sockets().is_ok_and(|ends| !ends) {
        let meaning = "UDP sockets stay connected to backends that are gone (CONFIG_INET_DIAG_DESTROY)";
        lacks.push(("inet-diag-destroy", meaning));
    }
    lacks
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`, linux/inet_diag.h.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const DESTROY: u16 = 21;

/// Whether the kernel would end a UDP socket for us: asks it to end one that there is not. Should there be one with
/// these addresses after all, it is safe: its cookie is another.
fn ends_sockets() -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&destroy_request(), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    Ok(error_of(&answer) != Some(-libc::EOPNOTSUPP))
}

fn destroy_request() -> [u8; HEADER + REQUEST] {
    const REQUEST_ACK: u16 = 5;
    const LOOPBACK: [u8; 4] = [127, 0, 0, 1];
    let mut bytes = [0; HEADER + REQUEST];
    bytes[..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&DESTROY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_ACK.to_ne_bytes());
    let request = &mut bytes[HEADER..];
    (request[0], request[1]) = (libc::AF_INET as u8, libc::IPPROTO_UDP as u8);
    // Ports 1, then both addresses, then (after the device) the cookie.
    (request[9], request[11]) = (1, 1);
    request[12..16].copy_from_slice(&LOOPBACK);
    request[28..32].copy_from_slice(&LOOPBACK);
    request[48] = 1;
    bytes
}

/// The error number in `struct nlmsgerr`, negative as the kernel has it.
fn error_of(answer: &[u8]) -> Option<i32> {
    const ERROR: [u8; 2] = 2u16.to_ne_bytes();
    let is_error = answer.get(4..6)? == ERROR;
    let number = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    is_error.then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_refusal_is_read() {
        let mut answer = destroy_request().to_vec();
        answer[4..6].copy_from_slice(&2u16.to_ne_bytes());
        answer[HEADER..HEADER + 4].copy_from_slice(&(-libc::EOPNOTSUPP).to_ne_bytes());
        assert_eq!(error_of(&answer), Some(-libc::EOPNOTSUPP));
        assert_eq!(error_of(&answer[..10]), None);
        assert_eq!(error_of(&destroy_request()), None);
    }
}
