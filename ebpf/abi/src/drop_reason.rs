//! Why a packet was dropped. Each reason has a counter per direction; the names are those of the metrics.

use bytemuck::{Pod, Zeroable};

macro_rules! reasons {
    ($($(#[$attribute:meta])* $name:ident = $text:literal,)*) => {
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub enum DropReason { $($(#[$attribute])* $name,)* }

        impl DropReason {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// Not a drop: the packet was forwarded.
    #[default]
    Forwarded = "forwarded",
    /// A header is cut short or contradicts itself.
    Malformed = "malformed",
    /// Neither IPv4 nor anything else a pod may send.
    NotIp = "not_ip",
    /// The source is not the pod's own address, or not one that can be outside.
    Spoofed = "spoofed",
    /// In the pod range of this node, but no such pod.
    NoEndpoint = "no_endpoint",
    /// In the cluster's pod range, but no node has it.
    NoRoute = "no_route",
    /// The Service has no endpoints; the client was told.
    NoBackend = "no_backend",
    /// No free source port after all attempts.
    NoPort = "no_port",
    /// A map is full.
    MapFull = "map_full",
    /// The kernel refused an edit or a redirect.
    Helper = "helper",
    /// Multicast and broadcast do not leave a pod.
    Multicast = "multicast",
    /// A later fragment whose first was not seen.
    Fragment = "fragment",
    /// Came through the tunnel with a foreign network identifier.
    Tunnel = "tunnel",
    /// The time to live ran out.
    TimeToLive = "time_to_live",
    /// An ICMP error about no connection of ours, on its way out.
    Untracked = "untracked",
    /// Larger than the way beyond allows, and not to be fragmented; the sender was told.
    TooBig = "too_big",
    /// A Local traffic policy, and the Service's endpoints are on other nodes.
    NoLocalBackend = "no_local_backend",
    /// The Service's `loadBalancerSourceRanges` do not have the client.
    SourceRange = "source_range",
    /// To an address that is on no wire: loopback, or none at all.
    Martian = "martian",
    /// Beyond what its pod may send or receive (`kubernetes.io/egress-bandwidth`, `…/ingress-bandwidth`).
    RateLimited = "rate_limited",
    /// To a Service's cluster IP at a port that it does not have; the client was told.
    NoServicePort = "no_service_port",
    /// In the range of cluster IPs, but no Service that this node knows has it.
    NoService = "no_service",
}

/// Which way a counted packet went, seen from the pods.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ingress = 0,
    Egress = 1,
}

/// Entries of the `counters` map: `reason * 2 + direction`, with room for reasons to come.
pub const COUNTERS: u32 = 128;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}
