//! What can go wrong between the agent and the kernel, by the action that failed.

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this build carries no eBPF programs: build with `cargo xtask build`")]
    NoPrograms,
    #[error("cannot read the embedded programs: {0}")]
    Object(aya_obj::ParseError),
    #[error("no program `{0}` in the embedded object")]
    NoProgram(&'static str),
    #[error("cannot load the eBPF programs: {0}")]
    Load(#[from] aya::EbpfError),
    #[error("cannot load or attach program `{program}`: {source}")]
    Program { program: String, source: aya::programs::ProgramError },
    #[error("cannot attach `{program}` to interface {ifindex}: {source}")]
    Attach { program: String, ifindex: u32, source: io::Error },
    #[error("cannot pin or adopt {}: {source}", path.display())]
    Pin { path: PathBuf, source: io::Error },
    #[error("bpf map `{map}`: {call} failed: {source}")]
    Map { map: String, call: &'static str, source: io::Error },
    #[error("bpf map `{map}` is full: {wanted} entries wanted, room for {room}; raise its size in the configuration")]
    MapFull { map: &'static str, wanted: usize, room: u32 },
    #[error("{} is not in a bpf file system: mount one with `mount -t bpf bpf /sys/fs/bpf`", .0.display())]
    NoBpfFs(PathBuf),
    #[error("somebody else listens on UDP port {0}, which VXLAN needs: find it with `ss -ulpn`, and stop it")]
    PortTaken(u16),
    #[error("{} is not a cgroup v2 directory", .0.display())]
    NoCgroup(PathBuf),
    #[error("cannot {action}: {source}")]
    Netlink { action: String, source: rtnetlink::Error },
    #[error("cannot {action}: {source}")]
    Io { action: String, source: io::Error },
    #[error("cannot enter network namespace {}: {source}", path.display())]
    Namespace { path: PathBuf, source: io::Error },
    #[error("this kernel cannot list or end UDP sockets (CONFIG_INET_UDP_DIAG, CONFIG_INET_DIAG_DESTROY)")]
    NoSocketDiag,
    #[error("bad configuration: {0}")]
    Config(String),
    /// Teardown goes on after a failure; these are the failures.
    #[error("could not remove everything: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Teardown(Vec<Error>),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
