//! Programs of somebody else's.

use anyhow::Result;
use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    tc::{SchedClassifierLink, TcAttachOptions},
};
use nix::net::if_::if_nametoindex;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::{
    Node,
    bpf::{LINK, LOAD, make},
};

/// Of linux/bpf.h.
const XDP_PROGRAM: u64 = 6;
const XDP_HOOK: u64 = 37;

/// `return XDP_PASS`
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// An XDP program that lets everything pass, on a device until it is dropped.
pub struct Xdp(#[expect(dead_code, reason = "closing it detaches the program")] OwnedFd);

impl Xdp {
    pub fn attach(device: &str) -> Result<Self> {
        let license = c"GPL";
        let mut name = [0; 16];
        name[..7].copy_from_slice(b"dropper");
        let name: [u64; 2] = [0, 8].map(|at| u64::from_ne_bytes(name[at..at + 8].try_into().expect("eight bytes")));
        let mut load = [
            XDP_PROGRAM | (PASS.len() as u64) << 32,
            PASS.as_ptr() as u64,
            license.as_ptr() as u64,
            0,
            0,
            0,
            name[0],
            name[1],
        ];
        let program = make(LOAD, &mut load)?;
        let index = u64::from(if_nametoindex(device)?);
        Ok(Self(make(LINK, &mut [program.as_raw_fd() as u64 | index << 32, XDP_HOOK])?))
    }
}

/// A tc program before everybody else's, until it is dropped. Any program will do: one of the node's own, elsewhere.
pub fn come_first(node: &Node, device: &str) -> Result<SchedClassifierLink> {
    let mut program = SchedClassifier::from_pin(node.datapath.config().pin_dir.join("programs/overlay_egress"))?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(device, TcAttachType::Ingress, order)?;
    Ok(program.take_link(id)?)
}
