//! On every kernel line that Leme supports the programs load, attach, are adopted and go without a trace, decide about
//! packets as the packet tests say, and carry real traffic.
#![expect(clippy::unwrap_used, reason = "tests may")]

use std::path::{Path, PathBuf};

use leme_tests_kernels::{PACKET_TESTS, PASSED, initramfs::Initramfs, kernel::Kernel, machine::boot};

/// In the order they must be loaded; those that a kernel has built in are left out.
const MODULES: [&str; 16] = [
    "veth",
    "udp_tunnel",
    "ip6_udp_tunnel",
    "ipv6",
    "vxlan",
    "sch_ingress",
    "act_bpf",
    "cls_bpf",
    "llc",
    "stp",
    "garp",
    "mrp",
    "8021q",
    "bridge",
    "tls",
    "bonding",
];

fn check(name: &str) {
    let kernel = Kernel::find(name).unwrap_or_else(|error| panic!("{error:#}"));
    let mut initramfs = Initramfs::default();
    ["proc", "sys", "dev", "tmp", "run"].iter().for_each(|folder| initramfs.add_folder(folder));
    initramfs.add_program("/init", Path::new(env!("CARGO_BIN_EXE_leme-tests-kernels"))).unwrap();
    add_tests(&mut initramfs);
    add_modules(&kernel, &mut initramfs);
    let text = boot(&kernel, initramfs, "").unwrap_or_else(|error| panic!("{error:#}"));
    println!("{text}");
    assert!(text.contains(PASSED), "Linux {name} printed:\n{text}");
}

/// The packet tests, as `cargo xtask test kernels` has built them: `drops-0123456789abcdef` is `drops`.
fn add_tests(initramfs: &mut Initramfs) {
    let built = std::env::var("LEME_PACKET_TESTS")
        .expect("LEME_PACKET_TESTS names no tests: run these with `cargo xtask test kernels`");
    for (name, _) in PACKET_TESTS {
        let is_it = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().rsplit_once('-').unwrap().0 == name;
        let program = std::env::split_paths(&built).find(is_it);
        initramfs.add_program(&format!("/tests/{name}"), &program.expect("it is built")).unwrap();
    }
}

fn add_modules(kernel: &Kernel, initramfs: &mut Initramfs) {
    let mut order = String::new();
    for module in MODULES {
        if let Some(bytes) = kernel.module(module).unwrap() {
            initramfs.add(&format!("/modules/{module}.ko"), &bytes, 0o644);
            order += &format!("{module}.ko\n");
        }
    }
    initramfs.add("/modules/order", order.as_bytes(), 0o644);
}

#[test]
fn the_datapath_works_on_linux_5_10() {
    check("5.10");
}

#[test]
fn the_datapath_works_on_linux_6_1() {
    check("6.1");
}

#[test]
fn the_datapath_works_on_linux_6_12() {
    check("6.12");
}

#[test]
fn the_datapath_works_on_debians_newest_linux() {
    check("newest");
}
