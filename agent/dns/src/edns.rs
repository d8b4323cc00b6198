//! How much goes into one datagram (EDNS, RFC 6891).

use hickory_proto::op::{Edns, Message};

/// What passes every path without fragments (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
/// For those who say nothing (RFC 1035).
const PLAIN_UDP_PAYLOAD: u16 = 512;

/// What we say about ourselves.
pub fn ours() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD).set_version(0);
    edns
}

/// Bytes that an answer over UDP may have.
pub fn room(request: &Message) -> usize {
    let asked = request.edns.as_ref().map_or(PLAIN_UDP_PAYLOAD, Edns::max_payload);
    usize::from(asked.clamp(PLAIN_UDP_PAYLOAD, UDP_PAYLOAD))
}
