//! Pods' network namespaces. A socket hook sees a namespace's cookie and nothing else of who asks; `namespaces` leads from
//! there to the pod's address, which is what the same pod's packets come from. Their paths lead to the pods' sockets.

use crate::{Error, Result, device::netns_cookie, table::Table};
use leme_abi::Addr;
use nix::sched::{CloneFlags, setns};
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
};

pub(crate) struct Namespaces {
    table: Table<u64, Addr>,
    paths: BTreeMap<IpAddr, PathBuf>,
}

impl Namespaces {
    pub(crate) fn open(pins: &Path) -> Result<Self> {
        Ok(Self { table: Table::open(pins, "namespaces")?, paths: BTreeMap::new() })
    }

    /// Absent where the kernel gives namespaces no cookies that user space sees (before 5.14).
    pub(crate) fn add(&mut self, addr: IpAddr, path: &Path) -> Result<()> {
        let cookie = inside(path, netns_cookie)?;
        self.paths.insert(addr, path.to_owned());
        if cookie == 0 { Ok(()) } else { self.table.put(&cookie, &addr.into()) }
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.paths.values().cloned().collect()
    }

    /// Absent is done. The namespace itself may be gone already.
    pub(crate) fn remove(&mut self, addr: IpAddr) -> Result<()> {
        self.paths.remove(&addr);
        let mut cookies = Vec::new();
        let addr = Addr::from(addr);
        self.table.visit(|cookie, of| {
            if *of == addr {
                cookies.push(*cookie);
            }
        })?;
        self.table.delete_all(&cookies)
    }
}

/// Runs `work` in another namespace, on a thread that ends with it.
pub(crate) fn inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let failed = |source| Error::Namespace { path: PathBuf::from(path), source };
    let namespace = File::open(path).map_err(failed)?;
    let enter = || setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map(|()| work());
    let entered = thread::scope(|scope| scope.spawn(enter).join());
    let entered = entered.map_err(|_| failed(io::Error::other("the thread in it died")))?;
    entered.map_err(|errno| failed(errno.into()))
}
