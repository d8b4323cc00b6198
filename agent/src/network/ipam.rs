//! Pod addresses: which attachment holds which address of the node's pod CIDRs, on disk before it is told.
//!
//! Called by `cni_server` under its lock. One small file per attachment under the agent's state directory, written by
//! rename; that file is the reservation, so a kill at any instruction leaves either a whole reservation, which DEL, CHECK
//! and GC find, or none. A released address leaves a tombstone whose time stamp makes it rest before reuse: peers may
//! still hold connections to the pod that had it. Never touches interfaces or maps.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ipnetwork::Ipv4Network;
use leme_cni::{AttachmentId, PodRef, RuntimeConfig};
use serde::{Deserialize, Serialize};

/// How long a released address is not given out again.
pub const REST: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no address is left in {}: {held} are in use", list_of(pools))]
    Exhausted { pools: Vec<Ipv4Network>, held: usize },
    #[error("every free address in {} was released less than {REST:?} ago: {resting} become free soon", list_of(pools))]
    Resting { pools: Vec<Ipv4Network>, resting: usize },
    #[error("failed to {action} {path}")]
    File { action: &'static str, path: PathBuf, source: io::Error },
}

type Result<T> = std::result::Result<T, Error>;

fn list_of(pools: &[Ipv4Network]) -> String {
    pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// One reservation, as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    pub attachment: AttachmentId,
    pub address: Ipv4Addr,
    pub network: String,
    pub netns: String,
    pub pod: PodRef,
    /// What the datapath must do for the pod again after a restart.
    #[serde(default)]
    pub runtime: RuntimeConfig,
}

#[derive(Debug)]
pub struct Ipam {
    attachments: PathBuf,
    resting_dir: PathBuf,
    pools: Vec<Ipv4Network>,
    held: BTreeMap<AttachmentId, Reservation>,
    taken: HashSet<Ipv4Addr>,
    resting: BTreeMap<Ipv4Addr, SystemTime>,
    /// The address given out last: the search for the next one starts behind it.
    cursor: Option<Ipv4Addr>,
}

impl Ipam {
    /// Adopts what the directory holds. Reservations outside of `pools` stay valid until they are released.
    pub fn open(dir: &Path, pools: Vec<Ipv4Network>) -> Result<Self> {
        let (attachments, resting_dir) = (dir.join("attachments"), dir.join("resting"));
        for path in [&attachments, &resting_dir] {
            fs::create_dir_all(path).map_err(failed("create", path))?;
        }
        let mut ipam = Self {
            attachments,
            resting_dir,
            pools,
            held: BTreeMap::new(),
            taken: HashSet::new(),
            resting: BTreeMap::new(),
            cursor: None,
        };
        ipam.adopt()?;
        Ok(ipam)
    }

    fn adopt(&mut self) -> Result<()> {
        let mut newest = SystemTime::UNIX_EPOCH;
        for (path, written) in list(&self.attachments)? {
            let parsed = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Reservation>(&bytes).ok());
            // Half a temporary file: the reservation was never told to anybody.
            let Some(reservation) = parsed.filter(|held| self.file(&held.attachment) == path) else {
                remove(&path)?;
                continue;
            };
            if written >= newest {
                (newest, self.cursor) = (written, Some(reservation.address));
            }
            self.taken.insert(reservation.address);
            self.held.insert(reservation.attachment.clone(), reservation);
        }
        for (path, released) in list(&self.resting_dir)? {
            let address = path.file_name().and_then(|name| name.to_str()?.parse::<Ipv4Addr>().ok());
            match address.filter(|address| !self.taken.contains(address)) {
                Some(address) => drop(self.resting.insert(address, released)),
                None => remove(&path)?,
            }
        }
        Ok(())
    }

    /// The attachment's address; the same one however often it is asked for. On disk when this returns.
    pub fn reserve(&mut self, wanted: Wanted, now: SystemTime) -> Result<Reservation> {
        if let Some(held) = self.held.get(&wanted.attachment) {
            let again = wanted.at(held.address);
            return if again == *held { Ok(again) } else { self.store(again) };
        }
        let address = self.choose(now)?;
        let reservation = self.store(wanted.at(address))?;
        self.cursor = Some(address);
        if self.resting.remove(&address).is_some() {
            remove(&self.tombstone(address))?;
        }
        Ok(reservation)
    }

    fn choose(&self, now: SystemTime) -> Result<Ipv4Addr> {
        let rested = |address: &Ipv4Addr| match self.resting.get(address) {
            // A clock that was set back must not make an address rest for ever.
            Some(released) => now.duration_since(*released).is_ok_and(|rest| rest >= REST) || *released > now + REST,
            None => true,
        };
        let free = |address: &Ipv4Addr| !self.taken.contains(address) && rested(address);
        let behind = |cursor| self.addresses().skip_while(move |address| *address != cursor).skip(1);
        // Without a cursor, or with one outside of the pools, the second pass covers everything.
        let found = self.cursor.into_iter().flat_map(behind).chain(self.addresses()).find(free);
        found.ok_or_else(|| self.nothing_left())
    }

    fn nothing_left(&self) -> Error {
        let pools = self.pools.clone();
        match self.resting.len() {
            0 => Error::Exhausted { pools, held: self.held.len() },
            resting => Error::Resting { pools, resting },
        }
    }

    /// Every address for pods: not the network's own, not the router's (the first), not the broadcast address.
    fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.pools.iter().flat_map(|pool| {
            let (first, last) = (u32::from(pool.network()), u32::from(pool.broadcast()));
            (first.saturating_add(2)..last).map(Ipv4Addr::from)
        })
    }

    fn store(&mut self, reservation: Reservation) -> Result<Reservation> {
        let path = self.file(&reservation.attachment);
        let temporary = path.with_extension("tmp");
        let bytes = serde_json::to_vec(&reservation).expect("a reservation is plain data");
        fs::write(&temporary, bytes).map_err(failed("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(failed("rename", &temporary))?;
        self.taken.insert(reservation.address);
        self.held.insert(reservation.attachment.clone(), reservation.clone());
        Ok(reservation)
    }

    /// Forgets an attachment once its interface and endpoint are gone; one that is not known is done already.
    pub fn release(&mut self, attachment: &AttachmentId, now: SystemTime) -> Result<()> {
        let Some(address) = self.held.get(attachment).map(|held| held.address) else { return Ok(()) };
        let tombstone = self.tombstone(address);
        fs::write(&tombstone, b"").map_err(failed("write", &tombstone))?;
        remove(&self.file(attachment))?;
        self.held.remove(attachment);
        self.taken.remove(&address);
        self.resting.insert(address, now);
        Ok(())
    }

    /// Takes back a reservation that nobody has been told of: its address may be given out again at once.
    pub fn forget(&mut self, attachment: &AttachmentId) -> Result<()> {
        remove(&self.file(attachment))?;
        if let Some(held) = self.held.remove(attachment) {
            self.taken.remove(&held.address);
        }
        Ok(())
    }

    pub fn get(&self, attachment: &AttachmentId) -> Option<&Reservation> {
        self.held.get(attachment)
    }

    pub fn reservations(&self) -> impl Iterator<Item = &Reservation> {
        self.held.values()
    }

    /// Addresses in use and addresses that exist, for metrics.
    pub fn usage(&self) -> (usize, usize) {
        (self.held.len(), self.pools.iter().map(|pool| (pool.size() as usize).saturating_sub(3)).sum())
    }

    fn file(&self, attachment: &AttachmentId) -> PathBuf {
        self.attachments.join(format!("{}@{}.json", attachment.container_id, attachment.ifname))
    }

    fn tombstone(&self, address: Ipv4Addr) -> PathBuf {
        self.resting_dir.join(address.to_string())
    }
}

/// What ADD says about the interface that wants an address.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub attachment: AttachmentId,
    pub network: String,
    pub netns: String,
    pub pod: PodRef,
    pub runtime: RuntimeConfig,
}

impl Wanted {
    fn at(self, address: Ipv4Addr) -> Reservation {
        let Self { attachment, network, netns, pod, runtime } = self;
        Reservation { attachment, address, network, netns, pod, runtime }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}

fn list(dir: &Path) -> Result<Vec<(PathBuf, SystemTime)>> {
    let entry = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.path(), entry.metadata()?.modified()?))
    };
    fs::read_dir(dir).and_then(|entries| entries.map(entry).collect()).map_err(failed("list", dir))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("leme-ipam-{test}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }

        fn open(&self) -> Ipam {
            Ipam::open(&self.0, vec!["10.244.1.0/29".parse().unwrap()]).unwrap()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn id(name: &str) -> AttachmentId {
        AttachmentId { container_id: name.into(), ifname: "eth0".into() }
    }

    fn wanted(name: &str) -> Wanted {
        let (netns, pod, runtime) = (format!("/ns/{name}"), PodRef::default(), RuntimeConfig::default());
        Wanted { attachment: id(name), network: "leme".into(), netns, pod, runtime }
    }

    fn last(ipam: &mut Ipam, name: &str, now: SystemTime) -> u8 {
        ipam.reserve(wanted(name), now).unwrap().address.octets()[3]
    }

    #[test]
    fn addresses_go_round_and_skip_network_router_and_broadcast() {
        let dir = Dir::new("round");
        let (mut ipam, now) = (dir.open(), SystemTime::now());
        let given: Vec<u8> = ["a", "b", "c", "d", "e"].iter().map(|name| last(&mut ipam, name, now)).collect();
        assert_eq!(given, [2, 3, 4, 5, 6]);
        assert!(matches!(ipam.reserve(wanted("f"), now), Err(Error::Exhausted { held: 5, .. })));
    }

    #[test]
    fn asking_again_gives_the_same_address_also_after_a_restart() {
        let dir = Dir::new("again");
        let now = SystemTime::now();
        let first = last(&mut dir.open(), "a", now);
        let mut ipam = dir.open();
        assert_eq!(last(&mut ipam, "a", now), first);
        assert_eq!(last(&mut ipam, "b", now), first + 1);
        assert_eq!(ipam.reservations().count(), 2);
    }

    #[test]
    fn a_released_address_rests_also_after_a_restart() {
        let dir = Dir::new("rest");
        let (mut ipam, now) = (dir.open(), SystemTime::now());
        for name in ["a", "b", "c", "d", "e"] {
            last(&mut ipam, name, now);
        }
        ipam.release(&id("b"), now).unwrap();
        ipam.release(&id("b"), now).unwrap();
        assert!(matches!(ipam.reserve(wanted("f"), now), Err(Error::Resting { resting: 1, .. })));
        let mut ipam = dir.open();
        assert!(matches!(ipam.reserve(wanted("f"), now), Err(Error::Resting { resting: 1, .. })));
        assert_eq!(last(&mut ipam, "f", SystemTime::now() + REST), 3);
        assert_eq!(fs::read_dir(dir.0.join("resting")).unwrap().count(), 0);
    }

    #[test]
    fn an_address_that_nobody_was_told_of_need_not_rest() {
        let dir = Dir::new("forget");
        let (mut ipam, now) = (dir.open(), SystemTime::now());
        for name in ["a", "b", "c", "d", "e"] {
            last(&mut ipam, name, now);
        }
        ipam.forget(&id("b")).unwrap();
        assert_eq!(last(&mut ipam, "f", now), 3);
        assert_eq!(dir.open().usage().0, 5);
    }

    /// Every prefix of the file operations of reserve and release, as a kill would leave them.
    #[test]
    fn a_kill_between_any_two_writes_neither_leaks_nor_doubles_an_address() {
        let dir = Dir::new("crash");
        let now = SystemTime::now();
        last(&mut dir.open(), "a", now);
        let file = dir.0.join("attachments/a@eth0.json");
        let bytes = fs::read(&file).unwrap();

        // reserve: the temporary file is written in part, then in whole, but not renamed
        for size in [0, bytes.len() / 2, bytes.len()] {
            fs::remove_file(&file).ok();
            fs::write(file.with_extension("tmp"), &bytes[..size]).unwrap();
            assert_eq!(dir.open().usage().0, 0, "{size} bytes");
            assert!(!file.with_extension("tmp").exists());
        }
        // reserve: renamed, but the address's old tombstone is not removed yet
        fs::write(&file, &bytes).unwrap();
        fs::write(dir.0.join("resting/10.244.1.2"), b"").unwrap();
        assert_eq!(dir.open().get(&id("a")).unwrap().address, Ipv4Addr::new(10, 244, 1, 2));
        assert!(!dir.0.join("resting/10.244.1.2").exists());
        // release: the tombstone is written, the reservation is still there: DEL comes again
        fs::write(dir.0.join("resting/10.244.1.2"), b"").unwrap();
        let mut ipam = dir.open();
        ipam.release(&id("a"), now).unwrap();
        assert_eq!(dir.open().usage().0, 0);
        assert_eq!(last(&mut dir.open(), "b", now), 3, "the released address rests");
    }
}
