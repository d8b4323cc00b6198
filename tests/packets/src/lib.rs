//! The programs in the kernel, one packet at a time: `BPF_PROG_TEST_RUN` on programs that a real `Datapath` has loaded,
//! with tables it has written, in a network namespace of their own.
//!
//! `frame` builds and reads packets, `node` is the namespace with its devices and its datapath, `lan` the machine
//! around local nodes, `foreign` are other people's programs. A test of packets is a list of [`Row`]s: a packet and
//! where it enters, the verdict and the packet that leaves. What a test run cannot show happens between real sockets,
//! in namespaces joined by the node's devices (`network`).
//!
//! A whole site of two nodes, a router and the world beyond is `site`; `traffic` are conversations in it, `device`
//! offloads and frames on the wire.

pub mod bpf;
pub mod device;
pub mod foreign;
pub mod frame;
pub mod lan;
pub mod network;
pub mod node;
pub mod site;
pub mod traffic;

pub use frame::Frame;
pub use network::Network;
pub use node::{Node, in_namespace, in_namespace_with};
pub use site::Site;

/// What a tc program answers, linux/pkt_cls.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To the stack, or out of the device.
    Pass,
    Drop,
    /// To a pod, through the tunnel, out of the node, or back to the sender.
    Redirect,
}

impl Verdict {
    fn from_action(action: u32) -> Self {
        match action as i32 {
            2 => Self::Drop,
            7 => Self::Redirect,
            _ => Self::Pass,
        }
    }
}

/// One packet through one program.
pub struct Row {
    pub name: &'static str,
    pub program: &'static str,
    /// Device at which the packet is.
    pub device: &'static str,
    pub packet: Frame,
    pub verdict: Verdict,
    /// The packet that leaves; None where it does not.
    pub leaves: Option<Frame>,
}

impl Row {
    pub fn redirected(
        name: &'static str,
        program: &'static str,
        device: &'static str,
        packet: Frame,
        leaves: Frame,
    ) -> Self {
        Self { name, program, device, packet, verdict: Verdict::Redirect, leaves: Some(leaves) }
    }

    /// To the stack as it came.
    pub fn untouched(name: &'static str, program: &'static str, device: &'static str, packet: Frame) -> Self {
        Self { name, program, device, packet: packet.clone(), verdict: Verdict::Pass, leaves: Some(packet) }
    }

    /// The client's side of a connection from outside, through a port of the node, to one of `pod2`.
    pub fn inwards(port: u16, target: u16, flags: u8) -> Self {
        let [node, pod] = [format!("10.89.0.11:{port}"), format!("10.244.1.2:{target}")];
        let [packet, leaves] = [node, pod].map(|to| Frame::tcp("198.51.100.2:5000", &to, flags));
        Self::redirected("in", "nic_ingress", "eth0", packet, leaves)
    }

    /// The pod's side of it.
    pub fn outwards(port: u16, target: u16, flags: u8) -> Self {
        let [pod, node] = [format!("10.244.1.2:{target}"), format!("10.89.0.11:{port}")];
        let [packet, leaves] = [pod, node].map(|from| Frame::tcp(&from, "198.51.100.2:5000", flags));
        Self::redirected("out", "from_pod", "pod2", packet, leaves.routed())
    }
}

/// Runs the rows in order on one node: connections live on from row to row. Checksums must hold in all that leaves.
pub fn check(node: &Node, rows: &[Row]) {
    for row in rows {
        let (verdict, packet) = node.run(row.program, row.device, &row.packet);
        assert_eq!(verdict, row.verdict, "{}", row.name);
        if let Some(expected) = &row.leaves {
            assert_eq!(packet.facts(), expected.facts(), "{}", row.name);
            packet.check_checksums(row.name);
        }
    }
}
