//! Translated connections: following them, opening them, forgetting them.
//!
//! See `leme_abi::Tuple` for the two entries of a connection. The reverse one is claimed first, so two connections
//! never share the tuple their answers come back with: a clash means another source port, a bounded number of times.

use crate::{Kind, Next, Packet, Tables, Target, Work, tables::Connections};
use leme_abi::{Addr, Conntrack, ConntrackState, DropReason, Leg, Port, Protocol, Translation, Tuple};

const SECOND: u64 = 1_000_000_000;

/// Sets what the packet becomes if its connection is known.
#[inline(always)]
pub fn follow(tables: &impl Connections, work: &mut Work) -> bool {
    let Some(found) = tables.translation(&work.packet.tuple) else { return false };
    let forward = found.leg == Leg::Forward as u8;
    work.to = found.to;
    work.rewrite = true;
    if matches!(work.packet.kind, Kind::Error) {
        return true;
    }
    work.original = if forward { work.packet.tuple } else { work.to.inverse() };
    let packet = &work.packet;
    if !tables.track(&work.original, |connection| touch(connection, packet, forward, tables.now())) {
        work.connection = Conntrack { created: tables.now(), ..Conntrack::default() };
        touch(&mut work.connection, packet, forward, tables.now());
        tables.start(&work.original, &work.connection);
    }
    true
}

/// Like [`follow`], but a connection that starts anew (a SYN after its end) or whose backend is gone is forgotten, so
/// that a new backend is chosen for it.
#[inline(always)]
pub fn follow_service(tables: &impl Tables, work: &mut Work) -> bool {
    let opens = work.packet.opens();
    if opens || matches!(work.packet.kind, Kind::Udp) {
        let mut service = 0;
        let mut backend = 0;
        let mut over = false;
        tables.track(&work.packet.tuple, |connection| {
            service = connection.service;
            backend = connection.backend;
            over = connection.state >= ConntrackState::Closing as u8;
        });
        let gone = service != 0 && tables.backend(backend).is_none();
        if gone || (over && opens) {
            forget(tables, work);
            return false;
        }
    }
    follow(tables, work)
}

/// A connection that needs no translation may, if its source port is one of those for translations, have the very tuple
/// that a translated one has behind its translation, and would get its answers translated. If that one is over it is
/// forgotten; otherwise the new one takes another source.
#[inline(always)]
pub fn keep_apart(tables: &impl Tables, work: &mut Work, next: Next) -> Next {
    let (min, max) = tables.ports();
    let port = work.packet.tuple.sport.number();
    if port < min || port > max || !(work.packet.opens() || matches!(work.packet.kind, Kind::Udp)) {
        return next;
    }
    work.reverse = work.packet.tuple.inverse();
    let Some(found) = tables.translation(&work.reverse) else { return next };
    work.original = found.to.inverse();
    let mut live = false;
    tables.track(&work.original, |connection| live = connection.state < ConntrackState::Closing as u8);
    if live {
        let target = (work.packet.tuple.dst, work.packet.tuple.dport);
        let result = establish(tables, work, target, Source::Keep(tables.router()), (0, 0));
        return work.unless(result, next);
    }
    tables.stop(&work.original);
    if holds(tables, &work.reverse, &work.original) {
        tables.forget_translation(&work.reverse);
    }
    tables.forget_translation(&work.original);
    next
}

/// Removes all entries of the connection that the packet's tuple opened.
#[inline(always)]
fn forget(tables: &impl Connections, work: &mut Work) {
    if let Some(found) = tables.translation(&work.packet.tuple) {
        work.reverse = found.to.inverse();
        tables.stop(&work.packet.tuple);
        // Its port may be another's already.
        if holds(tables, &work.reverse, &work.packet.tuple) {
            tables.forget_translation(&work.reverse);
        }
        tables.forget_translation(&work.packet.tuple);
    }
}

/// Whether a reverse tuple is that of the connection which `original` opened.
#[inline(always)]
fn holds(tables: &impl Connections, reverse: &Tuple, original: &Tuple) -> bool {
    tables.translation(reverse).is_some_and(|found| found.to == original.inverse())
}

/// Counts a packet and moves the connection's state; silence beyond the lifetime ends it.
#[inline(always)]
fn touch(connection: &mut Conntrack, packet: &Packet, forward: bool, now: u64) {
    let side = usize::from(!forward);
    if forward && packet.opens() && connection.state >= ConntrackState::Closing as u8 {
        // The same tuple again: nothing of its former life counts.
        connection.state = ConntrackState::New as u8;
        connection.tcp_flags = [0; 2];
    }
    connection.packets[side & 1] += 1;
    connection.bytes[side & 1] += u64::from(packet.length);
    connection.tcp_flags[side & 1] |= packet.tcp_flags;
    connection.state = next_state(connection, forward) as u8;
    connection.expires = now + lifetime(packet.tuple.proto, connection.state) * SECOND;
}

#[inline(always)]
fn next_state(connection: &Conntrack, forward: bool) -> ConntrackState {
    let [opener, answerer] = connection.tcp_flags;
    let fins = (opener & Packet::FIN) + (answerer & Packet::FIN);
    if (opener | answerer) & Packet::RST != 0 || fins == 2 {
        ConntrackState::Closed
    } else if fins == 1 {
        ConntrackState::Closing
    } else if !forward || connection.state == ConntrackState::Established as u8 {
        ConntrackState::Established
    } else {
        ConntrackState::New
    }
}

/// Seconds of silence a connection survives: Linux's own values (nf_conntrack), shorter where it has closed.
#[inline(always)]
fn lifetime(proto: u8, state: u8) -> u64 {
    let tcp = proto == Protocol::TCP;
    if state == ConntrackState::Established as u8 {
        match proto {
            Protocol::TCP => 432_000,
            Protocol::SCTP => 210,
            _ => 180,
        }
    } else if state == ConntrackState::New as u8 {
        if tcp { 120 } else { 30 }
    } else if state == ConntrackState::Closing as u8 {
        120
    } else {
        10
    }
}

/// Where a new connection's source comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The packet's own; on a clash another port of this address. Only where its answers cannot be those of a
    /// connection that is not translated, which nobody remembers.
    Keep(Addr),
    /// A port of this address, from those for translations: the packet's own address keeps its identity.
    Replace(Addr),
}

/// Opens a connection to the backend in `work.target`.
#[inline(always)]
pub fn establish_service(tables: &impl Connections, work: &mut Work, source: Source) -> Result<(), DropReason> {
    let Target { backend, service, id, .. } = work.target;
    establish(tables, work, (backend.addr, backend.port), source, (service, id))
}

/// Opens a connection from the packet's tuple towards `dst:dport`: sets what the packet becomes.
#[inline(always)]
pub fn establish(
    tables: &impl Connections,
    work: &mut Work,
    (dst, dport): (Addr, Port),
    source: Source,
    (service, backend): (u32, u32),
) -> Result<(), DropReason> {
    work.to = Tuple { dst, dport, ..work.packet.tuple };
    let (Source::Keep(address) | Source::Replace(address)) = source;
    if matches!(source, Source::Replace(_)) {
        choose_source(tables, work, address);
    }
    if !claim_reverse(tables, work, address) {
        return Err(DropReason::NoPort);
    }
    work.translation = Translation { to: work.to, leg: Leg::Forward as u8, reserved: [0; 3] };
    if !tables.translate(&work.packet.tuple, &work.translation) {
        tables.forget_translation(&work.reverse);
        return Err(DropReason::MapFull);
    }
    work.connection = Conntrack { created: tables.now(), service, backend, ..Conntrack::default() };
    touch(&mut work.connection, &work.packet, true, tables.now());
    tables.start(&work.packet.tuple, &work.connection);
    work.rewrite = true;
    Ok(())
}

/// Takes the tuple that answers will come back with, another source port each time it is someone else's.
#[inline(always)]
fn claim_reverse(tables: &impl Connections, work: &mut Work, address: Addr) -> bool {
    work.translation = Translation { to: work.packet.tuple.inverse(), leg: Leg::Reply as u8, reserved: [0; 3] };
    for _ in 0..tables.attempts() {
        work.reverse = work.to.inverse();
        if tables.claim(&work.reverse, &work.translation) {
            return true;
        }
        // An entry that already leads back to this very connection (another CPU was faster) is as good as a new one.
        let Some(found) = tables.translation(&work.reverse) else { continue };
        if found.to == work.translation.to {
            return true;
        }
        work.original = found.to.inverse();
        if take_over(tables, work) {
            return true;
        }
        choose_source(tables, work, address);
    }
    false
}

/// Takes a reverse tuple from a connection that has ended, as [`has_ended`] has it. Several may want the same one: who
/// removes the connection has it. What that one left is gone by then, or is another's already.
#[inline(always)]
fn take_over(tables: &impl Connections, work: &Work) -> bool {
    let (mut ended, now) = (false, tables.now());
    if !work.packet.opens() {
        return false;
    }
    tables.track(&work.original, |connection| ended = has_ended(connection, now));
    if !ended || !tables.stop(&work.original) || !holds(tables, &work.reverse, &work.original) {
        return false;
    }
    tables.forget_translation(&work.original);
    tables.translate(&work.reverse, &work.translation)
}

/// Closed from both sides, and silent since for a while: nothing of it is on its way any more. In its last moment it is
/// user space's to collect, so that the two never meet.
#[inline(always)]
fn has_ended(connection: &Conntrack, now: u64) -> bool {
    let whole = lifetime(Protocol::TCP, ConntrackState::Closed as u8) * SECOND;
    let left = connection.expires.saturating_sub(now);
    connection.state == ConntrackState::Closed as u8 && left > SECOND && left < whole - SECOND
}

#[inline(always)]
fn choose_source(tables: &impl Connections, work: &mut Work, address: Addr) {
    work.to.src = address;
    if matches!(work.packet.kind, Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::Echo) {
        let (min, max) = tables.ports();
        let span = u32::from(max - min) + 1;
        work.to.sport = Port::new((u32::from(min) + tables.random() % span) as u16);
    }
}
