//! Boots other kernels in qemu, under software emulation, with one program of ours as their init.
//!
//! A kernel is a folder with a Debian kernel package unpacked into it; `cargo xtask test kernels` fetches them and names
//! them in `LEME_KERNELS`. The machine has no disk and no network: an [`initramfs`] with the program, the packet
//! tests, the shared libraries they need and the modules the program asks for. What it prints on its serial line is the
//! result.

pub mod initramfs;
pub mod kernel;
pub mod machine;

/// What the machine prints last.
pub const PASSED: &str = "leme-kernel-check: ok";
pub const FAILED: &str = "leme-kernel-check: failed";

/// Packet tests by their binary's name and a filter: those that show most. Emulation makes seconds of what verifying the
/// programs takes, and every test has them verified anew.
pub const PACKET_TESTS: [(&str, &str); 2] = [("drops", "told_or_counted"), ("traffic", "services_carry_traffic")];
