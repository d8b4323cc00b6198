//! What a socket asked for before it was connected to a backend.

use crate::{Addr, Port};
use bytemuck::{Pod, Zeroable};

/// The frontend a socket addressed and the backend it got instead.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Origin {
    pub frontend: Addr,
    pub backend: Addr,
    pub frontend_port: Port,
    pub backend_port: Port,
    pub service: u32,
}

/// Unconnected UDP: one socket may talk to many Services, told apart by who answers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct OriginKey {
    pub cookie: u64,
    pub backend: Addr,
    pub port: Port,
    pub reserved: [u8; 6],
}

const _: () = assert!(size_of::<Origin>() == 40);
const _: () = assert!(size_of::<OriginKey>() == 32);
