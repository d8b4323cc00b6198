//! Hostile packets against the parser and the decisions, on the host: no kernel, no root.
//!
//! A [`Session`] is a node with empty connection tables through which a few dozen packets go: made up from the addresses
//! and ports that mean something there, answers to packets that have left before, errors about them, fragments of them,
//! and then often bent. What must hold after each of them stands in `session`. `cargo xtask fuzz` runs as many as one
//! likes; a short, always equal run is part of the unit tests, and `tests/packets` throws the same packets at the
//! programs in the kernel.

mod frame;
mod generator;
mod session;
mod tables;

pub use frame::Frame;
pub use generator::{Generator, Hook};
pub use session::{PACKETS, Session};
