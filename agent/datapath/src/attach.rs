//! Attaching programs so that they stay when the agent goes: pinned links, or before 6.6 classic filters, which the
//! device keeps by itself. What an earlier agent attached is taken over with its program replaced in one step.

use crate::{
    Error, Result,
    bpf::{self, AttachType},
    device::{interface_name, name},
    programs::{Programs, remove_pin},
};
use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
};
use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// The classic filter's place: ours alone, so that it can be found again.
pub(crate) const PRIORITY: u16 = 1;
pub(crate) const HANDLE: TcHandle = TcHandle::new(0, 0x1e3e);

/// The cgroup's hooks.
const SOCKET: &[(&str, AttachType)] = &[
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
    ("sendmsg4", AttachType::Sendmsg4),
    ("recvmsg4", AttachType::Recvmsg4),
    ("recvmsg6", AttachType::Recvmsg6),
    ("getpeername4", AttachType::Getpeername4),
    ("getpeername6", AttachType::Getpeername6),
    ("sock_release", AttachType::SockRelease),
];

/// A place of one of our programs.
#[derive(Clone, Debug)]
pub struct Attachment {
    pub(crate) program: &'static str,
    pub(crate) place: Place,
    pub(crate) pin: PathBuf,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Cgroup,
    Device { ifindex: u32, side: TcAttachType },
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Cgroup => write!(f, "{} on the node's cgroup", self.program),
            Place::Device { ifindex, .. } => write!(f, "{} on {}", self.program, name(ifindex)),
        }
    }
}

pub(crate) struct Attacher {
    links: PathBuf,
}

impl Attacher {
    pub(crate) fn new(pin_dir: &Path) -> Result<Self> {
        let links = pin_dir.join("links");
        crate::programs::make_pin_directory(&links)?;
        Ok(Self { links })
    }

    /// Where the socket hooks are.
    pub(crate) fn cgroup_places(&self) -> impl Iterator<Item = Attachment> {
        SOCKET.iter().map(|(program, _)| Attachment { program, place: Place::Cgroup, pin: self.links.join(program) })
    }

    pub(crate) fn device_place(&self, program: &'static str, ifindex: u32, side: TcAttachType) -> Attachment {
        let pin = self.links.join(format!("{program}-{ifindex}"));
        Attachment { program, place: Place::Device { ifindex, side }, pin }
    }

    /// The socket hooks, for every process below the cgroup.
    pub(crate) fn attach_cgroup(&self, programs: &Programs, cgroup: &Path) -> Result<()> {
        let directory = File::open(cgroup).map_err(|_| Error::NoCgroup(cgroup.to_owned()))?;
        for (name, attach_type) in SOCKET {
            let failed = |source: io::Error| match source.raw_os_error() {
                Some(libc::EBADF | libc::EINVAL) => Error::NoCgroup(cgroup.to_owned()),
                _ => Error::Io { action: format!("attach `{name}` to {}", cgroup.display()), source },
            };
            self.link(programs, name, name, directory.as_raw_fd() as u32, *attach_type).map_err(failed)??;
        }
        Ok(())
    }

    /// One program on one side of a device.
    pub(crate) fn attach_device(
        &self,
        programs: &Programs,
        name: &'static str,
        ifindex: u32,
        side: TcAttachType,
    ) -> Result<()> {
        let attach_type = match side {
            TcAttachType::Ingress => AttachType::TcxIngress,
            _ => AttachType::TcxEgress,
        };
        let failed = |source| Error::Attach { program: name.to_owned(), ifindex, source };
        match self.link(programs, name, &format!("{name}-{ifindex}"), ifindex, attach_type) {
            Ok(pinned) => pinned,
            // No tcx before 6.6.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => attach_filter(programs, name, ifindex, side),
            Err(error) => Err(failed(error)),
        }
    }

    pub(crate) fn has_links(&self, names: &[&str], ifindex: u32) -> bool {
        names.iter().all(|name| self.links.join(format!("{name}-{ifindex}")).exists())
    }

    /// Forgets the links of a device that is gone, or detaches them from one that is not: ingress, and egress if any.
    pub(crate) fn detach_device(&self, names: &[&str], ifindex: u32) -> Result<()> {
        for (name, side) in names.iter().zip([TcAttachType::Ingress, TcAttachType::Egress]) {
            let pin = self.links.join(format!("{name}-{ifindex}"));
            if !pin.exists() {
                detach_filter(ifindex, side);
            }
            remove_pin(&pin)?;
        }
        Ok(())
    }

    /// The same for every device that has such links and is not to be kept.
    pub(crate) fn detach_others(&self, names: &[&str], keep: impl Fn(u32) -> bool) -> Result<()> {
        let failed = |source| Error::Pin { path: self.links.clone(), source };
        for entry in std::fs::read_dir(&self.links).map_err(failed)? {
            let pin = entry.map_err(failed)?.file_name();
            let parsed = pin.to_str().and_then(|pin| pin.rsplit_once('-'));
            let Some((name, Ok(ifindex))) = parsed.map(|(name, number)| (name, number.parse::<u32>())) else {
                continue;
            };
            if names.contains(&name) && !keep(ifindex) {
                self.detach_device(&[name], ifindex)?;
            }
        }
        Ok(())
    }

    /// Updates the pinned link, or makes and pins one. The outer error is the attachment's own.
    fn link(
        &self,
        programs: &Programs,
        program: &'static str,
        pin: &str,
        target: u32,
        attach_type: AttachType,
    ) -> io::Result<Result<()>> {
        let path = self.links.join(pin);
        let fd = match programs.fd(program) {
            Ok(fd) => fd,
            Err(error) => return Ok(Err(error)),
        };
        if let Ok(link) = bpf::get(&path)
            && bpf::link_update(link.as_fd(), fd).is_ok()
        {
            return Ok(Ok(()));
        }
        // Absent, or its device went away and left it without one (ENOLINK).
        if let Err(error) = remove_pin(&path) {
            return Ok(Err(error));
        }
        let link = create(fd, target, attach_type)?;
        Ok(bpf::pin(link.as_fd(), &path).map_err(|source| Error::Pin { path, source }))
    }
}

/// A link whose pin was removed stays attached for a moment longer (the kernel frees it in a work queue), and no program
/// is attached to one place twice.
fn create(program: BorrowedFd<'_>, target: u32, attach_type: AttachType) -> io::Result<OwnedFd> {
    for _ in 0..100 {
        match bpf::link_create(program, target, attach_type) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => thread::sleep(Duration::from_millis(5)),
            other => return other,
        }
    }
    bpf::link_create(program, target, attach_type)
}

fn attach_filter(programs: &Programs, name: &'static str, ifindex: u32, side: TcAttachType) -> Result<()> {
    let failed = |source| Error::Program { program: name.to_owned(), source };
    let device = interface_name(ifindex)?;
    // There already is what we need; any other failure shows at once below.
    let _ = qdisc_add_clsact(&device);
    let mut program = SchedClassifier::from_pin(programs.pin_path(name)).map_err(failed)?;
    let existing = SchedClassifierLink::attached(&device, side, PRIORITY, HANDLE, None);
    let replaced = existing.ok().map(|link| program.attach_to_link(link));
    let id = match replaced {
        Some(Ok(id)) => id,
        _ => {
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            program.attach_with_options(&device, side, TcAttachOptions::Netlink(options)).map_err(failed)?
        }
    };
    // The filter must outlive this object, whose links detach when dropped.
    std::mem::forget(program.take_link(id).map_err(failed)?);
    Ok(())
}

/// Before 6.6 there is no link to forget: the filter itself goes. One that is not there is done.
fn detach_filter(ifindex: u32, side: TcAttachType) {
    let device = interface_name(ifindex).ok();
    // Dropped, it detaches.
    drop(device.map(|device| SchedClassifierLink::attached(&device, side, PRIORITY, HANDLE, None)));
}
