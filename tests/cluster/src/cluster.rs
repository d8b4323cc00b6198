//! A cluster under test: made by the `leme` binary in a directory of its own, asked through the real kubectl with a
//! kubeconfig and a home of its own, and always taken down.

use std::env;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::command::{self, Outcome};
use crate::etcd::Etcd;
use crate::machine::Machine;

/// Where a cluster keeps its state.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Embedded,
    Etcd,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub address: Ipv4Addr,
}

pub struct Cluster {
    /// Its own for each run: names of nodes are names of links and namespaces of the whole machine.
    pub name: String,
    pub nodes: Vec<Node>,
    /// What `leme up` printed, and how long it took.
    pub greeting: String,
    pub took: Duration,
    /// The machine before any of this.
    pub before: Machine,
    pub folder: TempDir,
    /// What its commands are given to.
    pub binary: PathBuf,
    etcd: Option<Etcd>,
}

/// No command of kubectl's may take longer; those that wait say themselves how long.
const LIMIT: Duration = Duration::from_secs(180);

/// What the product may call. `ip`, `tc`, `nft` and `iptables` are not among it.
const PROGRAMS: [&str; 4] = ["containerd", "containerd-shim-runc-v2", "runc", "ctr"];

/// A kubeconfig that somebody already has, with its own mind about layout.
const OTHERS_KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
# somebody's comment
clusters: [{name: elsewhere, cluster: {server: 'https://elsewhere.example:6443'}}]
contexts: [{name: elsewhere, context: {cluster: elsewhere, user: me}}]
users: [{name: me, user: {token: abc}}]
current-context: elsewhere
";

impl Cluster {
    /// Makes a cluster of three nodes.
    pub fn up(store: Store) -> Result<Self> {
        Self::up_with(store, binary())
    }

    /// Makes one of another version.
    pub fn up_with(store: Store, binary: PathBuf) -> Result<Self> {
        let kind = if store == Store::Etcd { "etcd" } else { "tests" };
        let name = format!("{kind}-{:05}", std::process::id() % 100_000);
        let folder = tempfile::Builder::new().prefix("leme-tests-").tempdir()?;
        // Before anything of ours: not even the etcd that the state is in.
        let before = Machine::look();
        let etcd = (store == Store::Etcd).then(|| Etcd::start(folder.path())).transpose()?;
        let (nodes, greeting, took) = (Vec::new(), String::new(), Duration::ZERO);
        let mut cluster = Self { name, nodes, greeting, took, before, folder, binary, etcd };
        cluster.prepare()?;
        cluster.start()?;
        Ok(cluster)
    }

    /// Directories, the product's PATH and the kubeconfig that is already there.
    fn prepare(&self) -> Result<()> {
        fs::create_dir_all(self.path("bin"))?;
        fs::create_dir_all(self.path("home"))?;
        for program in PROGRAMS {
            let search = env::var("PATH").unwrap_or_default() + ":/usr/local/bin:/usr/bin:/usr/sbin";
            let found = env::split_paths(&search).map(|folder| folder.join(program)).find(|file| file.is_file());
            symlink(found.with_context(|| format!("no {program} on PATH"))?, self.path("bin").join(program))?;
        }
        Ok(fs::write(self.kubeconfig(), OTHERS_KUBECONFIG)?)
    }

    /// Brings it up, whether it was there before or not.
    pub fn start(&mut self) -> Result<()> {
        let began = Instant::now();
        self.greeting = self.run_up()?;
        self.took = began.elapsed();
        self.nodes = self.find_nodes()?;
        ensure!(self.nodes.len() == 3, "{} nodes instead of three", self.nodes.len());
        Ok(())
    }

    /// `leme up`: what it printed.
    pub fn run_up(&self) -> Result<String> {
        let mut up = self.leme("up");
        up.args(["--nodes", "3"]).args(env::var("LEME_TEST_MIRRORS").unwrap_or_default().split_whitespace());
        if let Some(etcd) = &self.etcd {
            up.args(["--etcd-endpoints", &etcd.endpoint]);
        }
        let outcome = command::run(&mut up, LIMIT)?;
        ensure!(outcome.success, "leme up failed:\n{}{}\n{}", outcome.stdout, outcome.stderr, self.logs());
        Ok(outcome.stdout + &outcome.stderr)
    }

    fn find_nodes(&self) -> Result<Vec<Node>> {
        let list = self.get(&["nodes"])?;
        let node = |item: &Value| {
            let addresses = item["status"]["addresses"].as_array().into_iter().flatten();
            let internal =
                addresses.filter(|address| address["type"] == "InternalIP").find_map(|it| it["address"].as_str());
            let name = item["metadata"]["name"].as_str().context("a node without a name")?.to_owned();
            Ok(Node { address: internal.with_context(|| format!("{name} has no InternalIP"))?.parse()?, name })
        };
        list["items"].as_array().into_iter().flatten().map(node).collect()
    }

    /// `leme down`.
    pub fn down(&self) -> Result<()> {
        command::output(&mut self.leme("down"), LIMIT).map(drop)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// Whether the kubeconfig is again what it was before `up`.
    pub fn kubeconfig_is_untouched(&self) -> bool {
        fs::read_to_string(self.kubeconfig()).is_ok_and(|text| text == OTHERS_KUBECONFIG)
    }

    /// The machine's address in the nodes' network.
    pub fn gateway(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.nodes[0].address.octets();
        Ipv4Addr::new(a, b, c, 1)
    }

    /// A command of the `leme` binary for this cluster, with a PATH on which there is next to nothing.
    pub fn leme(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(verb.split(' ')).args(["--name", &self.name, "--state-dir"]).arg(self.path("clusters"));
        command.env("PATH", self.path("bin")).env("HOME", self.path("home")).env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// A command inside a node, with the usual PATH: it is ours, not the product's.
    pub fn on_node(&self, node: &str, words: &[&str]) -> Command {
        let mut command = self.leme("node exec");
        command.arg(node).arg("--").args(words).env("PATH", env::var_os("PATH").unwrap_or_default());
        command
    }

    /// The directory the product keeps a node in.
    pub fn node_folder(&self, node: &str) -> PathBuf {
        self.path("clusters").join(&self.name).join("nodes").join(node)
    }

    /// The process id of a node's `server`, `agent` or `containerd`.
    pub fn process(&self, node: &str, name: &str) -> Result<i32> {
        let file = self.node_folder(node).join(format!("pids/{name}.pid"));
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(text.trim().parse()?)
    }

    /// kubectl as a command, for those that run for long.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env::var_os("LEME_KUBECTL").unwrap_or_else(|| "kubectl".into()));
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).env("HOME", self.path("home"));
        command
    }

    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<Outcome> {
        command::run(&mut self.kubectl_command(arguments), LIMIT)
    }

    /// kubectl, which must succeed: what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let outcome = self.try_kubectl(arguments)?;
        ensure!(outcome.success, "kubectl {} failed:\n{}{}", arguments.join(" "), outcome.stdout, outcome.stderr);
        Ok(outcome.stdout)
    }

    /// kubectl, which must refuse: what it complained.
    pub fn kubectl_refuses(&self, arguments: &[&str]) -> Result<String> {
        let outcome = self.try_kubectl(arguments)?;
        ensure!(!outcome.success, "kubectl {} succeeded:\n{}", arguments.join(" "), outcome.stdout);
        Ok(outcome.stderr)
    }

    /// `kubectl get … -o json`.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get"], arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {} gave no JSON", arguments.join(" ")))
    }

    /// Reasons of the events about an object.
    pub fn events(&self, object: &str) -> Result<Vec<(String, String)>> {
        let list = self.get(&["events", "--field-selector", &format!("involvedObject.name={object}")])?;
        let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let items = list["items"].as_array().into_iter().flatten();
        Ok(items.map(|event| (text(event, "reason"), text(event, "message"))).collect())
    }

    /// The end of what every process said, for a person who looks at a failure.
    pub fn logs(&self) -> String {
        let logs = glob(&self.path("clusters").join(&self.name).join("nodes"));
        let tail = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            format!("== {}\n{}\n", path.display(), lines[lines.len().saturating_sub(12)..].join("\n"))
        };
        logs.iter().map(tail).collect()
    }

    /// What a person would look at first.
    pub fn overview(&self) -> String {
        let views: [&[&str]; 3] = [
            &["get", "nodes,services,endpointslices", "-A", "-o", "wide"],
            &["get", "pods", "-A", "-o", "wide"],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
        ];
        let show = |view: &&[&str]| match self.try_kubectl(view) {
            Ok(outcome) => outcome.stdout + &outcome.stderr,
            Err(error) => format!("{error:#}\n"),
        };
        views.iter().map(show).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if env::var_os("LEME_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.folder.path().display());
            self.folder.disable_cleanup(true);
            return;
        }
        if let Err(error) = self.down() {
            eprintln!("cluster {} could not be removed: {error:#}", self.name);
            // What is left names itself in there.
            self.folder.disable_cleanup(true);
        }
    }
}

/// The binary under test.
pub fn binary() -> PathBuf {
    env::var_os("LEME_BIN").map_or_else(|| "leme".into(), PathBuf::from)
}

/// A manifest of ours.
pub fn manifest(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests").join(name).to_string_lossy().into_owned()
}

/// Checks that what a program printed holds all these.
pub fn expect_all(text: &str, parts: &[&str]) -> Result<()> {
    let missing: Vec<_> = parts.iter().filter(|part| !text.contains(*part)).collect();
    if !missing.is_empty() {
        bail!("{missing:?} not in:\n{text}");
    }
    Ok(())
}

fn glob(nodes: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(nodes).into_iter().flatten().flatten().map(|entry| entry.path().join("log"));
    let files = folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let mut logs: Vec<_> = files.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    logs.sort();
    logs
}
