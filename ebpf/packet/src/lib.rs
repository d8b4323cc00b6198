//! What the datapath decides: which packet is what, where it goes, what it becomes. No kernel, no maps, no IO.
//!
//! The hooks in `ebpf/programs` hand in a way to read bytes ([`Bytes`]) and the tables ([`Tables`]); they get back a
//! [`Next`] and carry it out. Everything here runs on the host in tests, against tables made of ordinary maps.
//! It never touches a packet: checksums belong to whoever writes it.
#![no_std]

#[cfg(test)]
extern crate std;

mod decision;
mod from_pod;
mod header;
mod lan;
mod locate;
mod nat;
mod nic;
mod overlay;
mod parse;
mod rate;
mod reject;
mod sctp;
mod service;
mod socket;
mod tables;
#[cfg(test)]
mod tests;
mod to_pod;

pub use decision::{Next, Work};
pub use from_pod::from_pod;
pub use header::{ETHERNET, EthernetHeader, Icmp, Ipv4Header, Sctp, ethertype};
pub use lan::{LanTables, lan, lan_uplink};
pub use nic::{nic_egress, nic_ingress};
pub use overlay::{overlay_egress, overlay_ingress};
pub use parse::{Kind, Packet, parse, remember_fragment};
pub use rate::{Charge, charge, may_receive};
pub use reject::{QUOTED, UNREACHABLE, Unreachable, unreachable};
pub use sctp::replace_ports;
pub use service::{Resolved, Target};
pub use socket::choose_backend;
pub use tables::{Bytes, Connections, Services, Tables};
pub use to_pod::to_pod;
