//! Boots other kernels in qemu, under software emulation, with one program of ours as their init.
//!
//! A kernel is a folder with a Debian kernel package unpacked into it; `cargo xtask test kernels` fetches them and names
//! them in `LEME_KERNELS`. The machine has no disk and no network: an [`initramfs`] with the program, the shared
//! libraries it needs and the modules it asks for. What it prints on its serial line is the result.

pub mod initramfs;
pub mod kernel;
pub mod machine;
