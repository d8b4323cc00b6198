//! Which names and networks local clusters have on this machine, in whichever directory each is kept.
//!
//! Names of nodes are names of links, namespaces and cgroups of the whole machine, so a cluster's name may be taken once.
//! `/run/leme/clusters/<name>` names the directory of the cluster that has it, and whoever changes that cluster holds a
//! lock on that file. A claim lives as long as what it claims: a reboot takes both.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::Cluster;
use crate::output::bold;

const RUN: &str = "/run/leme";

/// A cluster's name, held by this process until it is dropped.
pub(crate) struct Claim {
    place: Place,
    name: String,
    lock: Flock<File>,
    owner: Option<PathBuf>,
}

/// Where claims are: a directory of their own in tests.
#[derive(Clone)]
struct Place(PathBuf);

impl Claim {
    /// Waits for any other process that works on a cluster of that name.
    pub(crate) fn hold(name: &str) -> Result<Self> {
        Place(RUN.into()).hold(name)
    }

    /// Fails unless the name is free or belongs to the cluster kept there.
    pub(crate) fn expect_owner(&self, folder: &Path) -> Result<()> {
        match &self.owner {
            Some(owner) if owner != folder && is_cluster(owner) => bail!(
                "the name {} is taken by the cluster in {}: choose another --name, or say {}",
                self.name,
                owner.display(),
                state_dir(owner)
            ),
            _ => Ok(()),
        }
    }

    /// Whether somebody claimed it before, perhaps in a directory that is gone.
    pub(crate) fn is_known(&self) -> bool {
        self.owner.is_some()
    }

    /// The name belongs to the cluster kept there until `release`.
    pub(crate) fn record(&mut self, folder: &Path) -> Result<()> {
        let path = self.place.file(&self.name);
        let written = self.lock.rewind().and_then(|()| self.lock.set_len(0));
        written
            .and_then(|()| self.lock.write_all(folder.as_os_str().as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        self.owner = Some(folder.to_owned());
        Ok(())
    }

    /// The name is free again.
    pub(crate) fn release(mut self) {
        self.owner = None;
    }

    /// The other clusters of this machine. Only complete while [`Claim::census`] is held.
    pub(crate) fn others(&self) -> Vec<Cluster> {
        self.place.others(&self.name)
    }

    /// Held while something is changed that all clusters share: networks are chosen, the kubeconfig is written.
    pub(crate) fn census(&self) -> Result<Census> {
        Ok(Census(self.place.lock(&self.place.0.join("lock"))?))
    }
}

/// The directory of the cluster that has this name on the machine, if it is still there.
pub(crate) fn owner(name: &str) -> Option<PathBuf> {
    let owner = fs::read(Place(RUN.into()).file(name)).ok()?;
    Some(PathBuf::from(std::ffi::OsString::from_vec(owner))).filter(|folder| is_cluster(folder))
}

/// See [`Claim::census`].
pub(crate) struct Census(#[expect(dead_code, reason = "held for its lock")] Flock<File>);

impl Drop for Claim {
    fn drop(&mut self) {
        if self.owner.is_none() {
            // Nothing was made under this name. Waiters find the file gone and make their own.
            let _ = fs::remove_file(self.place.file(&self.name));
            self.place.tidy();
        }
    }
}

impl Place {
    fn file(&self, name: &str) -> PathBuf {
        self.0.join("clusters").join(name)
    }

    fn hold(&self, name: &str) -> Result<Claim> {
        let path = self.file(name);
        let mut lock = self.lock(&path)?;
        let mut owner = Vec::new();
        lock.read_to_end(&mut owner).with_context(|| format!("cannot read {}", path.display()))?;
        let owner = (!owner.is_empty()).then(|| PathBuf::from(std::ffi::OsString::from_vec(owner)));
        Ok(Claim { place: self.clone(), name: name.to_owned(), lock, owner })
    }

    /// A lock on a file that its holder may remove: who then gets the lock on a file without a name tries again.
    fn lock(&self, path: &Path) -> Result<Flock<File>> {
        let cannot = || format!("cannot lock {}", path.display());
        loop {
            fs::create_dir_all(self.0.join("clusters")).with_context(cannot)?;
            let file = match File::options().read(true).write(true).create(true).truncate(false).open(path) {
                // The folder went between the two lines.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                file => file.with_context(cannot)?,
            };
            let lock = wait_for(file, path).with_context(cannot)?;
            let named = fs::metadata(path).is_ok_and(|there| lock.metadata().is_ok_and(|it| it.ino() == there.ino()));
            if named {
                return Ok(lock);
            }
        }
    }

    fn others(&self, name: &str) -> Vec<Cluster> {
        let files = fs::read_dir(self.0.join("clusters")).into_iter().flatten().flatten();
        let owners = files.filter(|file| file.file_name() != name).filter_map(|file| fs::read(file.path()).ok());
        let folders =
            owners.filter(|owner| !owner.is_empty()).map(|it| PathBuf::from(std::ffi::OsString::from_vec(it)));
        folders.filter_map(|folder| Cluster::load(&folder).ok().flatten()).collect()
    }

    /// Removes the folders if nobody has a claim any more.
    fn tidy(&self) {
        if fs::remove_dir(self.0.join("clusters")).is_ok() {
            let _ = fs::remove_file(self.0.join("lock"));
            let _ = fs::remove_dir(&self.0);
        }
    }
}

fn wait_for(file: File, path: &Path) -> Result<Flock<File>> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, Errno::EWOULDBLOCK)) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            eprintln!("{} another leme is at work ({name}); waiting for it", bold("note:"));
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
        }
        Err((_, error)) => Err(error.into()),
    }
}

/// The option that leads to the cluster kept there.
pub(crate) fn state_dir(folder: &Path) -> String {
    format!("--state-dir {}", folder.parent().unwrap_or(folder).display())
}

fn is_cluster(folder: &Path) -> bool {
    folder.join("cluster.json").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like a cluster's.
    fn cluster(folder: &Path) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("cluster.json"), "{}").unwrap();
        folder.to_owned()
    }

    #[test]
    fn a_name_that_another_directory_has_is_refused_and_the_directory_named() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place(folder.path().join("run"));
        let (one, two) = (cluster(&folder.path().join("one/a")), cluster(&folder.path().join("two/a")));
        place.hold("a").unwrap().record(&one).unwrap();
        let claim = place.hold("a").unwrap();
        claim.expect_owner(&one).unwrap();
        let refusal = claim.expect_owner(&two).unwrap_err().to_string();
        assert!(refusal.contains(&*one.to_string_lossy()), "{refusal}");
    }

    #[test]
    fn a_name_whose_owner_was_deleted_can_be_taken() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place(folder.path().join("run"));
        let one = cluster(&folder.path().join("one/a"));
        place.hold("a").unwrap().record(&one).unwrap();
        fs::remove_dir_all(&one).unwrap();
        let claim = place.hold("a").unwrap();
        assert!(claim.is_known());
        claim.expect_owner(&folder.path().join("two/a")).unwrap();
    }

    #[test]
    fn nothing_is_left_of_claims_that_were_never_made_or_released() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place(folder.path().join("run"));
        drop(place.hold("never").unwrap());
        let mut claim = place.hold("a").unwrap();
        claim.record(&folder.path().join("a")).unwrap();
        drop(claim.census().unwrap());
        drop(claim);
        assert!(place.0.exists());
        place.hold("a").unwrap().release();
        assert!(!place.0.exists());
    }

    #[test]
    fn who_waits_for_a_name_that_is_released_gets_a_fresh_one() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place(folder.path().join("run"));
        let mut first = place.hold("a").unwrap();
        first.record(&folder.path().join("a")).unwrap();
        let waiter = std::thread::spawn({
            let place = place.clone();
            move || place.hold("a").unwrap().is_known()
        });
        first.release();
        assert!(!waiter.join().unwrap());
    }
}
