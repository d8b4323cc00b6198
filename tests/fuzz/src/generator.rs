//! Packets that mean something, and then often something else.

use crate::{
    Frame,
    frame::{checksum, transport},
    tables::{EXCLUDED, NODE, NODE_PORTS, OTHER_NODE, OUTSIDE_BACKEND, PODS, PORTS, REMOTE_POD, ROUTER, VIPS, addr},
};
use leme_abi::{Addr, Port, Protocol, Tuple};

/// Where a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// With the device it comes from.
    FromPod(u32),
    ToPod,
    NicIngress,
    NicEgress,
    OverlayIngress,
    OverlayEgress,
}

impl Hook {
    /// The program's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod(_) => "from_pod",
            Self::ToPod => "to_pod",
            Self::NicIngress => "nic_ingress",
            Self::NicEgress => "nic_egress",
            Self::OverlayIngress => "overlay_ingress",
            Self::OverlayEgress => "overlay_egress",
        }
    }
}

/// How many packets that have left are remembered, to be answered.
const HISTORY: usize = 16;

pub struct Generator {
    random: fastrand::Rng,
    /// Tuples of packets that have left, and first fragments that have come.
    left: Vec<Tuple>,
    begun: Vec<(Tuple, u16)>,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), left: Vec::new(), begun: Vec::new() }
    }

    /// A packet has left with this tuple: somebody may answer it.
    pub fn note(&mut self, tuple: Tuple) {
        if self.left.len() == HISTORY {
            self.left.swap_remove(self.random.usize(..HISTORY));
        }
        self.left.push(tuple);
    }

    pub fn packet(&mut self) -> (Hook, Frame) {
        let tuple = self.tuple();
        let mut frame = match self.random.u8(..16) {
            0..=1 => self.error(),
            2..=4 => self.fragment(tuple),
            _ => self.whole(tuple),
        };
        let source = u32::from_ne_bytes(frame.0[26..30].try_into().expect("a whole header"));
        let hook = self.hook(Addr::from_v4(source));
        if self.random.u8(..4) == 0 {
            self.bend(&mut frame.0);
        }
        (hook, frame)
    }

    fn one<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.random.usize(..choices.len())]
    }

    /// The one that fits the source, or any.
    fn hook(&mut self, source: Addr) -> Hook {
        if let (Some((_, ifindex)), true) = (PODS.iter().find(|(pod, _)| *pod == source), self.random.u8(..8) > 0) {
            return Hook::FromPod(*ifindex);
        }
        // Only the node's own stack is on the other side of these, and it sends from its own addresses.
        if (source == NODE || source == ROUTER) && self.random.bool() {
            return self.one(&[Hook::NicEgress, Hook::NicEgress, Hook::OverlayEgress, Hook::ToPod]);
        }
        let device = self.random.u32(2..5);
        self.one(&[Hook::FromPod(device), Hook::NicIngress, Hook::NicIngress, Hook::OverlayIngress])
    }

    /// An answer to what has left, or something new.
    fn tuple(&mut self) -> Tuple {
        if !self.left.is_empty() && self.random.bool() {
            let index = self.random.usize(..self.left.len());
            let mut tuple = self.left[index].inverse();
            if self.random.u8(..8) == 0 {
                tuple = tuple.inverse();
            }
            return tuple;
        }
        let proto = self.one(&[6, 6, 6, 17, 17, 17, 1, 1, 47, 132]);
        let (src, dst) = (self.address(), self.address());
        let (sport, dport) = match proto {
            Protocol::TCP | Protocol::UDP => (self.port(), self.port()),
            Protocol::ICMP => (self.port(), Port::default()),
            _ => (Port::default(), Port::default()),
        };
        Tuple { src, dst, sport, dport, proto, reserved: [0; 3] }
    }

    fn address(&mut self) -> Addr {
        let vip = self.one(&VIPS);
        let far = addr(198, 51, 100, self.random.u8(1..4));
        self.one(&[
            PODS[0].0,
            PODS[0].0,
            PODS[1].0,
            REMOTE_POD,
            vip,
            vip,
            NODE,
            NODE,
            OTHER_NODE,
            ROUTER,
            far,
            far,
            OUTSIDE_BACKEND,
            EXCLUDED,
            addr(10, 244, 1, 99),
            addr(10, 244, 9, 1),
            addr(127, 0, 0, 1),
            addr(0, 0, 0, 0),
            addr(224, 0, 0, 1),
            addr(255, 255, 255, 255),
        ])
    }

    fn port(&mut self) -> Port {
        let (node_port, translated) = (self.one(&NODE_PORTS), self.random.u16(PORTS.0..=PORTS.1));
        let number = self.one(&[80, 80, node_port, node_port, 8080, 40_000, 40_001, translated, 4789, 0, 65_535]);
        Port::new(number)
    }

    fn flags(&mut self) -> u8 {
        self.one(&[2, 2, 2, 18, 16, 16, 17, 4, 0, 0xff])
    }

    fn body(&mut self, tuple: &Tuple) -> Vec<u8> {
        let kind = match tuple.proto {
            Protocol::ICMP if tuple.sport.0 == 0 => 0,
            Protocol::ICMP if self.random.u8(..8) == 0 => self.one(&[5, 13, 30]),
            _ => 8,
        };
        transport(tuple, self.flags(), kind, self.random.usize(..24))
    }

    fn whole(&mut self, tuple: Tuple) -> Frame {
        let body = self.body(&tuple);
        Frame::ip(&tuple, self.random.u16(..4), self.one(&[0, 0x4000]), &body)
    }

    /// First ones, and later ones in any order, too early, or of nobody.
    fn fragment(&mut self, tuple: Tuple) -> Frame {
        let id = self.random.u16(..4);
        if self.begun.is_empty() || self.random.bool() {
            if self.begun.len() == HISTORY {
                self.begun.clear();
            }
            self.begun.push((tuple, id));
            let body = self.body(&tuple);
            let length = if self.random.u8(..4) == 0 { self.random.usize(..=body.len()) } else { body.len() };
            return Frame::ip(&tuple, id, 0x2000, &body[..length]);
        }
        let (tuple, id) = self.begun[self.random.usize(..self.begun.len())];
        let place = self.one(&[1, 2, 3, 0x2003, 0x1fff, 0x3fff]);
        Frame::ip(&tuple, id, place, &[9; 16])
    }

    /// About a packet that has left, or about one that nobody has sent.
    fn error(&mut self) -> Frame {
        let about = self.tuple();
        let about = if self.random.bool() { about.inverse() } else { about };
        let body = self.body(&about);
        let quoted = Frame::ip(&about, self.random.u16(..4), 0x4000, &body).0;
        let length = if self.random.u8(..4) == 0 { self.random.usize(..=quoted.len() - 14) } else { 28 };
        let mut message = vec![self.one(&[3, 3, 3, 11, 12, 4]), self.random.u8(..6), 0, 0, 0, 0, 5, 120];
        message.extend(&quoted[14..14 + length.min(quoted.len() - 14)]);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let src = if self.random.bool() { about.dst } else { self.address() };
        let outer = Tuple { src, dst: about.src, proto: Protocol::ICMP, ..Tuple::default() };
        Frame::ip(&outer, self.random.u16(..4), 0, &message)
    }

    fn bend(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.random.u8(1..4) {
            let at = self.random.usize(14..bytes.len());
            match self.random.u8(..6) {
                // The fields that say how to read the rest.
                0 => bytes[14] = self.random.u8(..),
                1 => bytes[16 + self.random.usize(..2)] = self.random.u8(..),
                2 => bytes[20 + self.random.usize(..2)] = self.random.u8(..),
                3 => bytes[at] ^= 1 << self.random.u8(..8),
                4 => bytes.truncate(at.max(34)),
                _ => bytes.resize(bytes.len() + self.random.usize(..32), self.random.u8(..)),
            }
        }
    }
}
