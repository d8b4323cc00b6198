//! The programs load, attach, are adopted and go without a trace on every kernel line that Leme supports.

use std::path::Path;

use leme_tests_kernels::{initramfs::Initramfs, kernel::Kernel, machine::boot};

/// In the order they must be loaded; those that a kernel has built in are left out.
const MODULES: [&str; 8] =
    ["veth", "udp_tunnel", "ip6_udp_tunnel", "ipv6", "vxlan", "sch_ingress", "act_bpf", "cls_bpf"];

fn check(name: &str) {
    let kernel = Kernel::find(name).unwrap_or_else(|error| panic!("{error:#}"));
    let mut initramfs = Initramfs::default();
    ["proc", "sys", "dev", "tmp", "run"].iter().for_each(|folder| initramfs.add_folder(folder));
    let program = Path::new(env!("CARGO_BIN_EXE_leme-tests-kernels"));
    initramfs.add_program("/init", program).unwrap();
    let mut order = String::new();
    for module in MODULES {
        if let Some(bytes) = kernel.module(module).unwrap() {
            initramfs.add(&format!("/modules/{module}.ko"), &bytes, 0o644);
            order += &format!("{module}.ko\n");
        }
    }
    initramfs.add("/modules/order", order.as_bytes(), 0o644);
    let text = boot(&kernel, initramfs, "").unwrap_or_else(|error| panic!("{error:#}"));
    assert!(text.contains("leme-kernel-check: ok"), "Linux {name} printed:\n{text}");
}

#[test]
fn the_programs_load_and_attach_on_linux_5_10() {
    check("5.10");
}

#[test]
fn the_programs_load_and_attach_on_linux_6_1() {
    check("6.1");
}

#[test]
fn the_programs_load_and_attach_on_debians_newest_linux() {
    check("newest");
}
