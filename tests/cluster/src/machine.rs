//! The machine as the kernel shows it: taken before `leme up` and after `leme down`, nothing may have come to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::rules;
use crate::wait::eventually;

/// Kind of thing → those that exist.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    things: BTreeMap<&'static str, BTreeSet<String>>,
    rules: String,
}

/// Folders in which nothing may be left, and how deep to look.
const FOLDERS: [(&str, usize); 9] = [
    ("/etc", 3),
    ("/opt", 2),
    ("/run", 4),
    ("/var/lib", 2),
    ("/var/log", 2),
    ("/usr/libexec", 2),
    ("/usr/local", 2),
    ("/sys/fs/bpf", 4),
    ("/dev/shm", 1),
];

impl Machine {
    pub fn look() -> Self {
        let things = BTreeMap::from([
            ("process", processes()),
            ("mount", mounts()),
            ("network namespace", networks()),
            ("link", names("/sys/class/net")),
            ("address or route", routes()),
            ("cgroup", cgroups()),
            ("BPF program", programs()),
            ("BPF link", links()),
            ("file", FOLDERS.iter().flat_map(|(folder, depth)| files(Path::new(folder), *depth)).collect()),
        ]);
        Self { things, rules: rules::dump().unwrap_or_else(|error| format!("{error:#}")) }
    }

    /// Fails with everything that has come since. The kernel frees programs and namespaces a little later than it is
    /// told to, so this looks again for a while.
    pub fn expect_nothing_new(&self) -> Result<()> {
        eventually(Duration::from_secs(15), "nothing is left behind", || {
            let now = Self::look();
            let mut new = Vec::new();
            for (kind, things) in &now.things {
                let before = self.things.get(kind);
                new.extend(
                    things
                        .iter()
                        .filter(|it| before.is_none_or(|set| !set.contains(*it)))
                        .map(|it| format!("{kind} {it}")),
                );
            }
            if now.rules != self.rules {
                new.push(format!("rules:\n{}\ninstead of\n{}", now.rules, self.rules));
            }
            if new.is_empty() { Ok(()) } else { bail!("left behind:\n  {}", new.join("\n  ")) }
        })
    }

    pub fn rules(&self) -> &str {
        &self.rules
    }
}

/// Processes that belong to some cluster: by their program, their arguments or their cgroup.
fn processes() -> BTreeSet<String> {
    let ours = |pid: &str| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let program = command.split(' ').next()?.rsplit('/').next()?.to_owned();
        let known = ["leme", "leme-cni", "containerd", "containerd-shim-runc-v2", "runc", "pause"];
        (known.contains(&program.as_str()) || cgroups.contains("/leme/")).then(|| format!("{pid} {command}"))
    };
    names("/proc")
        .iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter_map(|pid| ours(pid))
        .collect()
}

fn mounts() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
}

/// Networks that some process is in or that are pinned.
fn networks() -> BTreeSet<String> {
    let of_processes = names("/proc").into_iter().map(|pid| format!("/proc/{pid}/ns/net"));
    let pinned = names("/run/netns").into_iter().map(|name| format!("/run/netns/{name}"));
    of_processes.chain(pinned).filter_map(|path| Some(fs::metadata(path).ok()?.ino().to_string())).collect()
}

fn routes() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let addresses = table.lines().filter_map(|line| line.trim().strip_prefix("|-- ")).map(str::to_owned);
    addresses.chain(v6.lines().map(str::to_owned)).collect()
}

fn cgroups() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let roots = table.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let folders = roots.flat_map(|root| tree(Path::new(root), 6, true));
    folders.filter(|path| path.contains("leme") || path.contains("kubepods")).collect()
}

fn programs() -> BTreeSet<String> {
    let name = |info: &aya::programs::ProgramInfo| format!("{} {}", info.id(), info.name_as_str().unwrap_or_default());
    aya::programs::loaded_programs().flatten().map(|info| name(&info)).collect()
}

fn links() -> BTreeSet<String> {
    aya::programs::loaded_links().flatten().map(|link| link.id().to_string()).collect()
}

fn files(folder: &Path, depth: usize) -> BTreeSet<String> {
    tree(folder, depth, false)
}

/// Everything below a folder, or only the folders.
fn tree(folder: &Path, depth: usize, folders_only: bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder || !folders_only {
            found.insert(entry.path().to_string_lossy().into_owned());
        }
        if is_folder && depth > 1 {
            found.extend(tree(&entry.path(), depth - 1, folders_only));
        }
    }
    found
}

fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
