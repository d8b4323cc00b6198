//! `cargo xtask setup`: installs what is missing, says what it does, and is instant when nothing is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::step::{self, command, output, say};
use crate::{debian, place};

/// Something that must exist, and the Debian packages that bring it.
struct Need {
    present: fn() -> bool,
    packages: &'static [&'static str],
}

const NEEDS: &[Need] = &[
    Need {
        present: || place::on_path("cc").is_some() && Path::new("/usr/include/stdlib.h").exists(),
        packages: &["gcc", "libc6-dev"],
    },
    Need {
        present: || {
            place::on_path("protoc").is_some() && Path::new("/usr/include/google/protobuf/timestamp.proto").exists()
        },
        packages: &["protobuf-compiler", "libprotobuf-dev"],
    },
    Need { present: || place::on_path("containerd").is_some(), packages: &["containerd"] },
    Need { present: || place::on_path("runc").is_some(), packages: &["runc"] },
    Need { present: || place::on_path("docker-registry").is_some(), packages: &["docker-registry"] },
    Need { present: || Path::new("/etc/ssl/certs/ca-certificates.crt").exists(), packages: &["ca-certificates"] },
];

/// Only the tests look at foreign rules, boot other kernels, and read man pages and units.
const TEST_NEEDS: &[Need] = &[
    Need { present: || place::on_path("nft").is_some(), packages: &["nftables"] },
    Need { present: || place::on_path("iptables-legacy-save").is_some(), packages: &["iptables"] },
    Need { present: || place::on_path("ip").is_some(), packages: &["iproute2"] },
    Need { present: || place::on_path("curl").is_some(), packages: &["curl"] },
    Need { present: || place::on_path("strace").is_some(), packages: &["strace"] },
    Need { present: || place::on_path("mandoc").is_some(), packages: &["mandoc"] },
    Need { present: || place::on_path("systemd-analyze").is_some(), packages: &["systemd"] },
];

/// The oldest kernel the programs load on.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
/// The oldest kubectl whose exec speaks WebSocket v5 by default, and the oldest etcd with sound progress requests.
const OLDEST_KUBECTL: u32 = 31;

fn install(needs: &[&[Need]]) -> Result<()> {
    check_kernel()?;
    let missing: Vec<String> = needs
        .iter()
        .flat_map(|list| list.iter())
        .filter(|need| !(need.present)())
        .flat_map(|need| need.packages)
        .map(|&name| name.to_owned())
        .collect();
    if !missing.is_empty() {
        say(&format!("Installing {}", missing.join(", ")));
        debian::install(&missing)?;
    }
    bpf_toolchain()?;
    kubectl().map(drop)
}

pub(crate) fn run() -> Result<()> {
    install(&[NEEDS])?;
    say("Everything that building and running need is there");
    Ok(())
}

/// What the tests need beyond `run`.
pub(crate) fn for_tests() -> Result<()> {
    install(&[NEEDS, TEST_NEEDS])?;
    etcd().map(drop)
}

fn check_kernel() -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("this needs Linux")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST_KERNEL {
        bail!("this kernel is {}; Leme needs {}.{} or newer", release.trim(), OLDEST_KERNEL.0, OLDEST_KERNEL.1);
    }
    Ok(())
}

/// A kubectl new enough for the tests and for people: the one on PATH, else one unpacked into the cache.
pub(crate) fn kubectl() -> Result<PathBuf> {
    if let Some(path) =
        place::on_path("kubectl").filter(|path| kubectl_minor(path).is_some_and(|minor| minor >= OLDEST_KUBECTL))
    {
        return Ok(path);
    }
    let binary = debian::unpack_newer("kubernetes-client")?.join("usr/bin/kubectl");
    if !binary.exists() {
        bail!("no kubectl 1.{OLDEST_KUBECTL} or newer on PATH, and Debian's package has none at {}", binary.display());
    }
    Ok(binary)
}

fn kubectl_minor(path: &Path) -> Option<u32> {
    let text = output(command(path).args(["version", "--client"])).ok()?;
    let version = text.lines().find_map(|line| line.strip_prefix("Client Version: v1."))?;
    version.split('.').next()?.parse().ok()
}

/// etcd for the tests: Debian 12's own lacks sound progress requests.
pub(crate) fn etcd() -> Result<PathBuf> {
    Ok(debian::unpack_newer("etcd-server")?.join("usr/bin/etcd"))
}

/// What compiles the eBPF programs.
pub(crate) enum BpfToolchain {
    /// rustup's nightly with rust-src, and a bpf-linker of the person's own.
    Nightly { linker: PathBuf },
    /// Debian's newer Rust for browsers, and a bpf-linker built for its LLVM.
    Debian { linker: PathBuf },
}

/// The eBPF toolchain, installed if there is none.
pub(crate) fn bpf_toolchain() -> Result<BpfToolchain> {
    if nightly_has_source() {
        let linker = match place::on_path("bpf-linker") {
            Some(linker) => linker,
            None => install_linker("nightly", &[], None)?,
        };
        return Ok(BpfToolchain::Nightly { linker });
    }
    install_debian_rust()?;
    let llvm = llvm_of(Path::new("/usr/bin/rustc"))?;
    let root = place::tool(&format!("bpf-linker-llvm-{llvm}"));
    let linker = root.join("bin/bpf-linker");
    if linker.exists() {
        return Ok(BpfToolchain::Debian { linker });
    }
    install_llvm(&llvm)?;
    install_linker(&llvm, &["--no-default-features", "--features", &format!("llvm-{llvm}")], Some(&llvm))
        .map(|linker| BpfToolchain::Debian { linker })
}

fn nightly_has_source() -> bool {
    output(command("rustup").args(["component", "list", "--installed", "--toolchain", "nightly"]))
        .is_ok_and(|text| text.lines().any(|line| line.starts_with("rust-src")))
}

fn install_debian_rust() -> Result<()> {
    let source = Path::new("/usr/lib/rustlib/src/rust/library/core/src/lib.rs");
    if Path::new("/usr/bin/cargo").exists()
        && Path::new("/usr/bin/rustc").exists()
        && (source.exists() || debian_source_exists())
    {
        return Ok(());
    }
    if !debian::knows("rustc-web") {
        bail!(
            "no Rust for eBPF: this machine's Debian has no rustc-web; \
             run `rustup toolchain install nightly --component rust-src` and try again"
        );
    }
    say("Installing Debian's newer Rust, which compiles the eBPF programs");
    debian::install(&["rustc-web", "cargo-web", "rust-web-src"].map(str::to_owned))
}

fn debian_source_exists() -> bool {
    output(command("/usr/bin/rustc").args(["--print", "sysroot"]))
        .is_ok_and(|root| Path::new(root.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists())
}

/// The LLVM major version of a compiler: the linker must be built for the same one.
fn llvm_of(rustc: &Path) -> Result<String> {
    let text = output(command(rustc).arg("-vV"))?;
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major = version.and_then(|version| version.split('.').next());
    major.map(str::to_owned).with_context(|| format!("{} names no LLVM version", rustc.display()))
}

fn install_llvm(major: &str) -> Result<()> {
    let packages = [
        format!("llvm-{major}-dev"),
        format!("libpolly-{major}-dev"),
        "zlib1g-dev".into(),
        "libzstd-dev".into(),
        "g++".into(),
    ];
    let missing: Vec<_> =
        packages.into_iter().filter(|name| output(command("dpkg").args(["-s", name])).is_err()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    debian::install(&missing)
}

fn install_linker(name: &str, features: &[&str], llvm: Option<&str>) -> Result<PathBuf> {
    say("Building bpf-linker, once (under a minute)");
    let root = place::tool(&if llvm.is_some() { format!("bpf-linker-llvm-{name}") } else { "bpf-linker".to_owned() });
    let mut install = command("cargo");
    install.args(["install", "bpf-linker", "--locked", "--root"]).arg(&root).args(features);
    install.arg("--target-dir").arg(place::cache().join("build/bpf-linker"));
    if let Some(major) = llvm {
        let prefix = format!("/usr/lib/llvm-{major}");
        install.env("LLVM_PREFIX", &prefix).env(format!("LLVM_SYS_{major}1_PREFIX"), &prefix);
    }
    step::run(&mut install)?;
    let _ = std::fs::remove_dir_all(place::cache().join("build"));
    Ok(root.join("bin/bpf-linker"))
}
