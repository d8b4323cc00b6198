//! Everything the kernel programs and user space share: map keys and values, load-time settings, drop reasons.
//!
//! Each layout is declared here and nowhere else. All types are plain bytes without padding (the derives refuse any)
//! and their sizes are asserted below, so that pinned maps stay readable by the next version. Addresses are 16 bytes,
//! IPv4 as v4-mapped; ports stay in network order from the packet to the map.
#![no_std]

mod address;
mod drop_reason;
mod flow;
mod rate;
mod route;
mod service;
mod settings;
mod socket;

pub use address::{Addr, Port, Protocol};
pub use drop_reason::{COUNTERS, Counter, Direction, DropReason};
pub use flow::{Conntrack, ConntrackState, FragmentKey, Leg, Ports, Translation, Tuple};
pub use rate::{Bucket, Rates};
pub use route::{Endpoint, LanNode, NodeAddress, Route, RouteKey};
pub use service::{Affinity, AffinityKey, Backend, FrontendKey, MemberKey, Scope, Service, SlotKey, SourceKey};
pub use settings::{Settings, feature, option, transition};
pub use socket::{Origin, OriginKey};

/// Packets that a Leme program has already decided about carry this mark until they leave the node.
pub const MARK_DONE: u32 = 0x4c45_4d45;
