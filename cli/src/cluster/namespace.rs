//! A node's namespaces: made once, pinned as files, entered by whoever works in the node.
//!
//! They are pinned in the cluster's own directory, and `/run/netns/<node>` links to the network, where `ip netns` finds
//! it. (A mount there would be hidden by the first `ip netns add`, which mounts that directory on itself.) Pins outlive
//! every process, so a node can be repaired.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::process::{Fork, fork};

const NETNS: &str = "/run/netns";
const CNI: &str = "/var/lib/cni";
const NONE: Option<&str> = None;

/// Where a node's namespaces are pinned.
pub(crate) struct Namespaces {
    /// The network's name for `ip netns`.
    link: PathBuf,
    /// A directory mounted on itself and private: a mount namespace can be pinned nowhere else.
    pins: PathBuf,
}

/// Whether something has this name among the machine's network namespaces.
pub(crate) fn is_pinned(name: &str) -> bool {
    Path::new(NETNS).join(name).symlink_metadata().is_ok()
}

/// What a node has of its own in its mount namespace.
pub(crate) struct View<'a> {
    pub(crate) host_name: &'a str,
    /// Becomes `/run`.
    pub(crate) run: &'a Path,
    /// Becomes `/var/lib/cni`, where containerd remembers networks and cannot be told otherwise.
    pub(crate) cni: &'a Path,
    /// Volumes: mounts below propagate between the node and its containers.
    pub(crate) volumes: &'a Path,
}

impl Namespaces {
    pub(crate) fn of(node: &str, pins: PathBuf) -> Self {
        Self { link: Path::new(NETNS).join(node), pins }
    }

    fn net(&self) -> PathBuf {
        self.pins.join("net")
    }

    fn mnt(&self) -> PathBuf {
        self.pins.join("mnt")
    }

    fn uts(&self) -> PathBuf {
        self.pins.join("uts")
    }

    pub(crate) fn exist(&self) -> bool {
        self.link.exists() && [self.net(), self.mnt(), self.uts()].iter().all(|pin| is_mount(pin))
    }

    /// Makes and pins all three. Returns directories that had to be made on the machine.
    pub(crate) fn create(&self, view: &View<'_>) -> Result<Vec<PathBuf>> {
        self.remove()?;
        let made: Vec<_> = [NETNS, CNI].map(PathBuf::from).into_iter().filter(|folder| !folder.is_dir()).collect();
        for folder in &made {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        fs::create_dir_all(&self.pins)?;
        mount(Some(&self.pins), &self.pins, NONE, MsFlags::MS_BIND, NONE)
            .context("cannot mount the pins' directory")?;
        mount(NONE, &self.pins, NONE, MsFlags::MS_PRIVATE, NONE).context("cannot make the pins' directory private")?;
        for file in [self.net(), self.mnt(), self.uts()] {
            File::create(&file).with_context(|| format!("cannot create {}", file.display()))?;
        }
        let child = fork(|| prepare(view))?;
        let pinned = self.pin(&child);
        child.finish()?;
        pinned?;
        symlink(fs::canonicalize(self.net())?, &self.link)
            .with_context(|| format!("cannot create {}", self.link.display()))?;
        Ok(made)
    }

    fn pin(&self, child: &Fork) -> Result<()> {
        for (kind, file) in [("net", self.net()), ("mnt", self.mnt()), ("uts", self.uts())] {
            let source = format!("/proc/{}/ns/{kind}", child.pid);
            mount(Some(source.as_str()), &file, NONE, MsFlags::MS_BIND, NONE)
                .with_context(|| format!("cannot pin {}", file.display()))?;
        }
        Ok(())
    }

    /// Unpins; the namespaces go with their last process. Absent is done.
    pub(crate) fn remove(&self) -> Result<()> {
        for file in [self.net(), self.mnt(), self.uts(), self.pins.clone()] {
            while is_mount(&file) {
                umount2(&file, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", file.display()))?;
            }
        }
        let _ = fs::remove_file(&self.link);
        let _ = fs::remove_dir_all(&self.pins);
        Ok(())
    }

    pub(crate) fn open_net(&self) -> Result<File> {
        let net = self.net();
        File::open(&net).with_context(|| format!("no network namespace {}: is the node stopped?", net.display()))
    }

    /// Moves this process, which must have one thread, into the node's mount and host name namespaces.
    pub(crate) fn enter_mounts(&self) -> Result<()> {
        let open = |path: &Path| {
            File::open(path).with_context(|| format!("no namespace {}: is the node stopped?", path.display()))
        };
        setns(open(&self.uts())?.as_fd(), CloneFlags::CLONE_NEWUTS)?;
        setns(open(&self.mnt())?.as_fd(), CloneFlags::CLONE_NEWNS).context("cannot enter the node's mounts")
    }

    /// Moves this thread into the node's network.
    pub(crate) fn enter_net(&self) -> Result<()> {
        setns(self.open_net()?.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter the node's network")
    }

    /// Runs work in the node's network on a thread of its own.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter_net().and_then(|()| work()));
            thread.join().expect("work in a node does not panic")
        })
    }
}

/// In the child: new namespaces, and the mounts that make the node's view.
fn prepare(view: &View<'_>) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
    nix::unistd::sethostname(view.host_name)?;
    // Mounts of the machine that go away go away here too; nothing made here shows outside.
    mount(NONE, "/", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)?;
    mount(Some(view.volumes), view.volumes, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    mount(NONE, view.volumes, NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE)?;
    mount(Some(view.cni), CNI, NONE, MsFlags::MS_BIND, NONE)?;
    mount(Some(view.run), "/run", NONE, MsFlags::MS_BIND, NONE)?;
    Ok(())
}

/// Whether something is mounted exactly there.
pub(crate) fn is_mount(path: &Path) -> bool {
    let path = path.to_string_lossy();
    let info = fs::read_to_string(format!("/proc/{}/mountinfo", process::id())).unwrap_or_default();
    info.lines().any(|line| line.split(' ').nth(4) == Some(&*path))
}
