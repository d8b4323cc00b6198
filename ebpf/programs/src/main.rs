//! The programs in the kernel: one file per hook. They read a packet, let `leme-packet` decide, and carry it out.
//! Maps and load-time settings are in `maps`, edits of packets in `skb`. See `ebpf/README.md` for the packet's walk.
#![no_std]
#![no_main]
// Assembler for this target is not stable yet; both toolchains that build it are told to take it.
#![feature(asm_experimental_arch)]
// A decision that is not inlined has a frame of its own, and there are 512 bytes for all.
#![feature(stmt_expr_attributes)]

mod act;
mod from_pod;
mod lan;
mod maps;
mod nic;
mod overlay;
mod skb;
mod socket;
mod to_pod;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Some helpers are only for programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
