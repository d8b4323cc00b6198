//! The embedded programs: loading them with this node's settings and maps, and pinning them.

use crate::{Error, Result, Sizes, bpf, migration};
use aya::{
    EbpfLoader, include_bytes_aligned,
    programs::{Program, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use leme_abi::{Settings, feature, transition};
use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

pub(crate) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/programs"));

/// Programs of a node, and those of a local cluster's network.
pub(crate) const NODE: &[&str] = &[
    "connect4",
    "connect6",
    "sendmsg4",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "sock_release",
    "from_pod",
    "to_pod",
    "nic_ingress",
    "nic_egress",
    "overlay_ingress",
    "overlay_egress",
];
/// Pinned maps whose size the programs themselves say.
pub(crate) const SIZED: [&str; 2] = ["socket_origin", "counters"];
pub(crate) const LAN: &[&str] = &["lan", "lan_uplink"];

/// Loaded programs by name, pinned under `<pins>/programs`.
pub(crate) struct Programs {
    fds: HashMap<&'static str, OwnedFd>,
    dir: PathBuf,
}

impl Programs {
    /// Loads `names`. Maps that are pinned already are used as they are, the others made and pinned.
    pub(crate) fn load(pin_dir: &Path, names: &[&'static str], settings: Settings, sizes: &Sizes) -> Result<Self> {
        if OBJECT.is_empty() {
            return Err(Error::NoPrograms);
        }
        let dir = pin_dir.join("programs");
        make_pin_directory(&dir)?;
        lift_memory_limit();
        let settings = Settings { features: probe_features(), ..settings };
        let is_transition = settings.transition != transition::NONE;
        let mut loader = EbpfLoader::new();
        let settings = bytemuck::bytes_of(&settings);
        loader.btf(None).override_global("SETTINGS", settings, true);
        for (map, size) in sizes.by_map() {
            loader.map_pin_path(map, pin_dir.join(map)).map_max_entries(map, size);
        }
        for map in SIZED {
            loader.map_pin_path(map, pin_dir.join(map));
        }
        if is_transition {
            for [map, old] in migration::CONNECTIONS {
                loader.map_pin_path(old, migration::older(pin_dir, map));
            }
        }
        let mut object = loader.load(OBJECT)?;
        let mut fds = HashMap::new();
        for name in names {
            let program = object.program_mut(name).ok_or(Error::NoProgram(name))?;
            fds.insert(*name, load_program(name, program)?);
        }
        let programs = Self { fds, dir };
        programs.pin_all()?;
        Ok(programs)
    }

    /// Where classic attachment finds them.
    pub(crate) fn pin_all(&self) -> Result<()> {
        self.fds.keys().try_for_each(|name| self.pin(name))
    }

    pub(crate) fn fd(&self, name: &'static str) -> Result<BorrowedFd<'_>> {
        self.fds.get(name).map(AsFd::as_fd).ok_or(Error::NoProgram(name))
    }

    pub(crate) fn pin_path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The pin of an older version makes way; its links keep it alive until they are updated.
    fn pin(&self, name: &'static str) -> Result<()> {
        let path = self.pin_path(name);
        let failed = |source| Error::Pin { path: path.clone(), source };
        remove_pin(&path)?;
        bpf::pin(self.fd(name)?, &path).map_err(failed)
    }
}

fn load_program(name: &str, program: &mut Program) -> Result<OwnedFd> {
    let failed = |source| Error::Program { program: name.to_owned(), source };
    match program {
        Program::SchedClassifier(classifier) => classifier.load().map_err(failed)?,
        Program::CgroupSockAddr(socket) => socket.load().map_err(failed)?,
        Program::CgroupSock(socket) => socket.load().map_err(failed)?,
        _ => return Err(failed(aya::programs::ProgramError::UnexpectedProgramType)),
    }
    let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
    fd.map_err(|source| Error::Io { action: format!("keep program `{name}`"), source })
}

impl Sizes {
    /// Entries per pinned map.
    pub(crate) fn by_map(&self) -> Vec<(&'static str, u32)> {
        vec![
            ("frontends", self.frontends),
            ("services", self.services),
            ("slots", self.slots),
            ("backends", self.backends),
            ("node_addresses", self.routes),
            ("source_ranges", self.routes),
            ("members", self.slots),
            ("affinity", (self.connections / 4).max(64)),
            ("endpoints", self.endpoints),
            ("namespaces", self.endpoints),
            ("rates", self.endpoints),
            ("routes", self.routes),
            ("masquerade_exclusions", 1024),
            ("conntrack", self.connections),
            // Two translations per connection.
            ("nat", self.connections * 2),
            ("fragments", (self.connections / 8).max(64)),
            ("sender_origin", (self.connections / 4).max(64)),
            ("udp_origin", (self.connections / 4).max(64)),
            ("lan_nodes", self.endpoints),
            ("lan_uplinks", 16),
        ]
    }
}

pub(crate) fn make_pin_directory(dir: &Path) -> Result<()> {
    let failed = |source: io::Error| match source.raw_os_error() {
        // bpffs is not there, and sysfs has no directories for us.
        Some(libc::EPERM | libc::EACCES | libc::ENOENT) => Error::NoBpfFs(dir.to_owned()),
        _ => Error::Pin { path: dir.to_owned(), source },
    };
    fs::create_dir_all(dir).map_err(failed)?;
    let kind = nix::sys::statfs::statfs(dir).map_err(|errno| failed(errno.into()))?.filesystem_type();
    if kind == nix::sys::statfs::BPF_FS_MAGIC { Ok(()) } else { Err(Error::NoBpfFs(dir.to_owned())) }
}

/// Absent is done.
pub(crate) fn remove_pin(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Pin { path: path.to_owned(), source }),
        _ => Ok(()),
    }
}

/// Before 5.11 maps count against RLIMIT_MEMLOCK.
fn lift_memory_limit() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(%error, "cannot lift RLIMIT_MEMLOCK; kernels before 5.11 need it");
    }
}

/// What this kernel can do beyond 5.10.
pub(crate) fn probe_features() -> u32 {
    let helper = is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval);
    if helper.unwrap_or(false) { feature::SET_RETVAL } else { 0 }
}
