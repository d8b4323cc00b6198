//! The pod's own cgroup, above those that the runtime makes for its containers: bounds for the pod as a whole, and its
//! removal from every hierarchy, which no runtime does.
//!
//! Works on cgroup v2, on v1, and on the hybrid of both.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;

use super::resources::{self, CPU_PERIOD};

const ROOT: &str = "/sys/fs/cgroup";

/// Whether the unified hierarchy is the one that bounds resources.
pub fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Bounds the pod; best effort, as the containers are bounded one by one in any case.
pub fn bound(cgroup: &str, pod: &core::Pod) -> io::Result<()> {
    let (shares, quota, memory) = resources::of_pod(pod);
    if is_unified() {
        let path = unified(cgroup)?;
        write(&path, "cpu.weight", &weight(shares).to_string())?;
        if quota > 0 {
            write(&path, "cpu.max", &format!("{quota} {CPU_PERIOD}"))?;
        }
        return if memory > 0 { write(&path, "memory.max", &memory.to_string()) } else { Ok(()) };
    }
    let cpu = hierarchy("cpu", cgroup)?;
    write(&cpu, "cpu.shares", &shares.to_string())?;
    if quota > 0 {
        write(&cpu, "cpu.cfs_quota_us", &quota.to_string())?;
    }
    if memory > 0 {
        write(&hierarchy("memory", cgroup)?, "memory.limit_in_bytes", &memory.to_string())?;
    }
    Ok(())
}

/// The kernel's own formula from shares (2…262144) to weight (1…10000).
fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn hierarchy(controller: &str, cgroup: &str) -> io::Result<PathBuf> {
    let path = join(&Path::new(ROOT).join(controller), cgroup);
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// Controllers must be handed down level by level.
fn unified(cgroup: &str) -> io::Result<PathBuf> {
    let mut path = PathBuf::from(ROOT);
    for part in cgroup.split('/').filter(|part| !part.is_empty()) {
        for controller in ["+cpu", "+memory", "+pids", "+cpuset", "+io"] {
            // Refused one by one where a controller is missing.
            let _ = fs::write(path.join("cgroup.subtree_control"), controller);
        }
        path.push(part);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(path)
}

fn write(cgroup: &Path, file: &str, value: &str) -> io::Result<()> {
    fs::write(cgroup.join(file), value)
}

/// Where BPF programs are attached so that they cover the node's pods: in the unified hierarchy, wherever it is.
pub fn unified_directory(cgroup_root: &str) -> PathBuf {
    let root = if is_unified() { PathBuf::from(ROOT) } else { Path::new(ROOT).join("unified") };
    join(&root, cgroup_root)
}

fn join(root: &Path, cgroup: &str) -> PathBuf {
    root.join(cgroup.trim_start_matches('/'))
}

fn roots() -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from(ROOT)];
    let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    if !is_unified() {
        roots.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()));
    }
    roots
}

/// Removes the cgroup and what is left below it, everywhere; false while processes live in it.
pub fn remove(cgroup: &str) -> bool {
    // All are tried, whatever the first says.
    roots().iter().filter(|root| !remove_tree(&join(root, cgroup))).count() == 0
}

fn remove_tree(path: &Path) -> bool {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    for child in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&child.path());
    }
    match fs::remove_dir(path) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(()) => true,
    }
}

/// Whatever class of service the pod was put into.
pub fn remove_pod(cgroup_root: &str, uid: &str) -> bool {
    let own = pods(cgroup_root).into_iter().filter(|(other, _)| other == uid);
    own.filter(|(_, cgroup)| !remove(cgroup)).count() == 0
}

/// The pods that have a cgroup, by uid, with the path of each.
pub fn pods(cgroup_root: &str) -> Vec<(String, String)> {
    let base = format!("{}/kubepods", cgroup_root.trim_end_matches('/'));
    let mut found = Vec::new();
    for class in ["", "/burstable", "/besteffort"] {
        for root in roots() {
            let entries = fs::read_dir(join(&root, &format!("{base}{class}"))).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            found.extend(
                names.filter_map(|name| Some((name.strip_prefix("pod")?.to_owned(), format!("{base}{class}/{name}")))),
            );
        }
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_map_onto_the_whole_range_of_weights() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
    }
}
