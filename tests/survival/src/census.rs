//! Everything that could be left behind, counted: before an ordeal and after it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use leme_tests_cluster::cluster::binary;
use leme_tests_cluster::wait::eventually;
use leme_tests_cluster::{Cluster, command, tables};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// What → how much of it, and how much more of it means nothing.
pub struct Census(BTreeMap<String, (usize, usize)>);

impl Census {
    pub fn take(cluster: &Cluster) -> Result<Self> {
        let mut census = Self(BTreeMap::new());
        census.count("BPF programs", aya::programs::loaded_programs().count());
        census.count("BPF maps", aya::maps::loaded_maps().count());
        census.count("BPF links", aya::programs::loaded_links().count());
        census.count("links of the machine", entries(Path::new("/sys/class/net")));
        for node in &cluster.nodes {
            census.count_node(cluster, &node.name).with_context(|| format!("cannot count on {}", node.name))?;
        }
        Ok(census)
    }

    fn count(&mut self, what: impl Into<String>, found: usize) {
        self.count_about(what, found, 0);
    }

    fn count_about(&mut self, what: impl Into<String>, found: usize, slack: usize) {
        self.0.insert(what.into(), (found, slack));
    }

    fn count_node(&mut self, cluster: &Cluster, node: &str) -> Result<()> {
        let on =
            |words: &str| command::output(&mut cluster.on_node(node, &words.split(' ').collect::<Vec<_>>()), LIMIT);
        for (what, words) in [
            ("links", "ip -o link"),
            ("addresses", "ip -o -4 address"),
            ("routes", "ip -4 route show table all"),
            ("permanent neighbours", "ip -4 neighbour show nud permanent"),
        ] {
            self.count(format!("{what} of {node}"), on(words)?.lines().count());
        }
        for table in ["endpoints", "routes"] {
            self.count(format!("{table} in {node}'s maps"), rows(cluster, node, table)?);
        }
        self.count(format!("Services in {node}'s maps"), tables::found(cluster, node)?.len());
        let folder = cluster.node_folder(node);
        self.count(format!("addresses in use of {node}"), entries(&folder.join("kubelet/network/ipam/attachments")));
        self.count(format!("network namespaces of {node}"), entries(&folder.join("run/netns")));
        self.count(format!("pods' directories of {node}"), entries(&folder.join("kubelet/pods")));
        self.count(format!("pins of {node}"), files(&Path::new("/sys/fs/bpf/leme").join(node)));
        self.count_cgroups(node);
        self.count_agent(cluster, node)
    }

    fn count_cgroups(&mut self, node: &str) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let roots = table.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
        let folders = roots.map(|root| folders(&Path::new(root).join("leme").join(node))).sum();
        self.count(format!("cgroups of {node}"), folders);
        let inside = |entry: &fs::DirEntry| {
            let cgroups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            cgroups.lines().any(|line| line.contains(&format!("/leme/{node}")))
        };
        self.count(format!("processes of {node}"), children(Path::new("/proc")).filter(inside).count());
    }

    /// Threads that work may block come and go; connections are opened when they are needed.
    fn count_agent(&mut self, cluster: &Cluster, node: &str) -> Result<()> {
        let process = Path::new("/proc").join(cluster.process(node, "agent")?.to_string());
        self.count_about(format!("descriptors of {node}'s agent"), entries(&process.join("fd")), 8);
        self.count_about(format!("threads of {node}'s agent"), entries(&process.join("task")), 8);
        let status = fs::read_to_string(process.join("status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        self.count_about(format!("kB of {node}'s agent"), memory.trim().trim_end_matches(" kB").parse()?, 6 << 10);
        let listening = |file: &str| {
            let table = fs::read_to_string(process.join("net").join(file)).unwrap_or_default();
            table
                .lines()
                .filter(|line| line.split_whitespace().nth(3).is_some_and(|state| matches!(state, "0A" | "07")))
                .count()
        };
        self.count_about(format!("listening sockets of {node}"), listening("tcp") + listening("udp"), 2);
        Ok(())
    }

    /// Fails with everything of which there is more now. What the kernel and the runtime remove later than they are told
    /// to has a while for it.
    pub fn expect_nothing_more(&self, cluster: &Cluster) -> Result<()> {
        tables::check(cluster)?;
        eventually(LIMIT, "nothing is left behind", || {
            let now = Self::take(cluster)?;
            let more = now.0.iter().filter_map(|(what, (found, _))| {
                let (before, slack) = self.0.get(what).copied().unwrap_or_default();
                (*found > before + slack).then(|| format!("{what}: {before} before, {found} now"))
            });
            let more: Vec<_> = more.collect();
            if more.is_empty() { Ok(()) } else { bail!("left behind:\n  {}", more.join("\n  ")) }
        })
    }
}

fn rows(cluster: &Cluster, node: &str, table: &str) -> Result<usize> {
    let mut command = std::process::Command::new(binary());
    command.args(["bpf", table, "--node", node, "-o", "json"]).env("PATH", cluster.path("bin"));
    let rows: Value = serde_json::from_str(&command::output(&mut command, LIMIT)?)?;
    Ok(rows.as_array().with_context(|| format!("{table} are no list"))?.len())
}

fn children(folder: &Path) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(folder).into_iter().flatten().flatten()
}

fn entries(folder: &Path) -> usize {
    children(folder).count()
}

fn files(folder: &Path) -> usize {
    let count = |entry: fs::DirEntry| if entry.path().is_dir() { files(&entry.path()) } else { 1 };
    children(folder).map(count).sum()
}

fn folders(folder: &Path) -> usize {
    children(folder).filter(|entry| entry.path().is_dir()).map(|entry| 1 + folders(&entry.path())).sum()
}
