//! `leme supervise`: one small process per local node that holds its processes: containerd, the agent and, on the
//! first node, the control plane. It restarts what dies, reaps what they leave behind, and knows nothing more.
//!
//! Started by `up` and `node start`; killed with its node. Without it a node's processes go on, and a new one adopts
//! them.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::mirror::{self, Forwards};
use super::{Cluster, Node, cgroup, containerd, nic, process};

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    node: String,
    #[arg(long)]
    folder: PathBuf,
}

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A process that ran this long starts with the first pause again.
const STEADY: Duration = Duration::from_secs(2);

/// One process of the node.
pub(crate) struct Component {
    name: &'static str,
    command: Vec<String>,
    pid_file: PathBuf,
    log: PathBuf,
    pid: Option<Pid>,
    started: Instant,
    pause: Duration,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let cluster =
        Cluster::load(&options.folder)?.with_context(|| format!("no cluster in {}", options.folder.display()))?;
    let node = cluster.node(&options.node)?;
    let signals = block_signals()?;
    nix::sys::prctl::set_child_subreaper(true)?;
    let mut forwards = enter(&cluster, node)?;
    let gateway = cluster.gateway();
    thread::Builder::new().name("nic".into()).spawn(move || nic::keep(gateway))?;
    let mut components = components(&cluster, node);
    fs::write(cluster.supervisor_pid_file(node), std::process::id().to_string())?;
    watch(&mut components, &listen(signals)?, || {
        // Somebody has added mirrors.
        let added = Cluster::load(&options.folder).and_then(|cluster| match cluster {
            Some(cluster) => forwards.add(loopback_addresses(&cluster)),
            None => Ok(()),
        });
        if let Err(error) = added {
            eprintln!("mirrors: {error:#}");
        }
    })?;
    end(&node.cgroup())
}

/// Into the node's cgroup and namespaces, leaving behind threads that forward to the machine's loopback.
fn enter(cluster: &Cluster, node: &Node) -> Result<Forwards> {
    cgroup::join(&node.cgroup())?;
    let namespaces = cluster.namespaces(node);
    // The pins are not visible from within.
    let net = cluster.namespaces(node).open_net()?;
    let machine = fs::File::open("/proc/self/ns/net")?;
    namespaces.enter_mounts()?;
    nix::sched::setns(net.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).context("cannot enter the node's network")?;
    let mut forwards = Forwards::new(net, machine);
    forwards.add(loopback_addresses(cluster))?;
    Ok(forwards)
}

fn loopback_addresses(cluster: &Cluster) -> BTreeSet<SocketAddr> {
    mirror::loopback_addresses(cluster.mirrors.values().chain(&cluster.etcd_endpoints))
}

/// Blocks the signals that matter in this and every later thread.
pub(crate) fn block_signals() -> Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    signals.thread_block()?;
    Ok(signals)
}

/// Turns blocked signals into messages.
pub(crate) fn listen(signals: SigSet) -> Result<Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("signals".into()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

fn components(cluster: &Cluster, node: &Node) -> Vec<Component> {
    let folder = cluster.node_dir(node);
    let make = |name, command| {
        Component::new(name, command, folder.join(format!("pids/{name}.pid")), folder.join(format!("log/{name}.log")))
    };
    let runtime = containerd::find("containerd").unwrap_or_else(|| "containerd".into());
    let mut all =
        vec![make("containerd", vec![text(&runtime), "--config".into(), text(&folder.join("containerd.toml"))])];
    if node.control_plane {
        all.insert(0, make("server", server_command(cluster, node)));
    }
    all.push(make("agent", agent_command(cluster, node, &folder)));
    all
}

fn server_command(cluster: &Cluster, node: &Node) -> Vec<String> {
    let mut command = vec![text(&cluster.binary("leme")), "server".into()];
    command.extend(flags(&[
        ("--data-dir", text(&cluster.server_dir())),
        ("--advertise-address", node.address.to_string()),
        ("--cluster-cidr", cluster.pod_subnet.to_string()),
        ("--service-cluster-ip-range", cluster.service_subnet.to_string()),
        ("--tls-san", format!("{},{}", cluster.gateway(), node.name)),
    ]));
    if !cluster.etcd_endpoints.is_empty() {
        command.extend(flags(&[("--etcd-endpoints", cluster.etcd_endpoints.join(","))]));
        let etcd = &cluster.etcd_files;
        let files =
            [("--etcd-cafile", &etcd.ca), ("--etcd-certfile", &etcd.certificate), ("--etcd-keyfile", &etcd.key)];
        let given = files.into_iter().filter_map(|(flag, file)| Some((flag, text(file.as_deref()?))));
        command.extend(given.flat_map(|pair| flags(&[pair])));
    }
    command
}

fn agent_command(cluster: &Cluster, node: &Node, folder: &Path) -> Vec<String> {
    let (labels, _) = node.labels();
    let labels = labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    let dns = cluster.service_subnet.nth(10).expect("a service range holds more than ten addresses");
    let mut command = vec![text(&cluster.binary("leme")), "agent".into()];
    command.extend(flags(&[
        ("--kubeconfig", text(&folder.join("kubelet.kubeconfig"))),
        ("--hostname-override", node.name.clone()),
        ("--node-ip", node.address.to_string()),
        ("--root-dir", text(&folder.join("kubelet"))),
        ("--pod-log-dir", text(&folder.join("log/pods"))),
        ("--container-runtime-endpoint", containerd::SOCKET.into()),
        ("--cgroup-root", format!("/{}", node.cgroup())),
        ("--cluster-cidr", cluster.pod_subnet.to_string()),
        ("--cluster-dns", dns.to_string()),
        ("--resolv-conf", text(&folder.join("resolv.conf"))),
        ("--tls-cert-file", text(&folder.join("pki/kubelet.crt"))),
        ("--tls-private-key-file", text(&folder.join("pki/kubelet.key"))),
        ("--client-ca-file", text(&folder.join("pki/ca.crt"))),
        ("--cni-conf-dir", text(&folder.join("cni/net.d"))),
        ("--cni-bin-dir", text(&folder.join("cni/bin"))),
        // A person's disk may well be nearly full: that is no reason to refuse their pods or to take their images away.
        ("--image-gc-high-threshold", "100".into()),
        ("--eviction-hard", "memory.available<100Mi,pid.available<5%".into()),
        ("--cni-plugin", text(&cluster.binary("leme-cni"))),
    ]));
    if !labels.is_empty() {
        command.extend(flags(&[("--node-labels", labels)]));
    }
    command
}

fn flags(pairs: &[(&str, String)]) -> Vec<String> {
    pairs.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Starts, reaps and restarts until told to end; a hangup is passed on.
pub(crate) fn watch(components: &mut [Component], signals: &Receiver<Signal>, mut hung_up: impl FnMut()) -> Result<()> {
    loop {
        for component in components.iter_mut().filter(|component| component.is_due()) {
            component.start();
        }
        let timeout = components.iter().map(Component::until_due).min().unwrap_or(LONGEST_PAUSE);
        match signals.recv_timeout(timeout) {
            Ok(Signal::SIGTERM) => return Ok(()),
            Ok(Signal::SIGHUP) => hung_up(),
            Ok(_) | Err(RecvTimeoutError::Timeout) => reap(components),
            Err(RecvTimeoutError::Disconnected) => bail!("the thread that waits for signals is gone"),
        }
    }
}

/// Told to end: the node's plug is pulled, and nobody is left for PID 1 to reap, which in containers often does not.
fn end(cgroup: &str) -> Result<()> {
    cgroup::kill_all(cgroup)?;
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some()) {}
    Ok(())
}

/// Takes every dead child, ours and those that shims and agents left to us, and notices adopted ones that are gone.
fn reap(components: &mut [Component]) {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        let Some(pid) = status.pid() else { break };
        if let Some(component) = components.iter_mut().find(|component| component.pid == Some(pid)) {
            component.ended(&describe(&status));
        }
    }
    for component in components.iter_mut().filter(|component| component.pid.is_some_and(|pid| !process::alive(pid))) {
        component.ended("gone");
    }
}

fn describe(status: &WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exit code {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("killed by {signal}"),
        other => format!("{other:?}"),
    }
}

impl Component {
    pub(crate) fn new(name: &'static str, command: Vec<String>, pid_file: PathBuf, log: PathBuf) -> Self {
        Self { name, command, pid_file, log, pid: None, started: Instant::now(), pause: FIRST_PAUSE }
    }

    fn is_due(&self) -> bool {
        self.pid.is_none() && self.until_due().is_zero()
    }

    /// `started` lies in the future while a restart is pending. Adopted processes are no children, so they are looked
    /// at every second.
    fn until_due(&self) -> Duration {
        match self.pid {
            Some(_) => Duration::from_secs(1),
            None => self.started.saturating_duration_since(Instant::now()),
        }
    }

    fn start(&mut self) {
        self.started = Instant::now();
        let program = Path::new(&self.command[0]).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.pid = process::running(&self.pid_file, program);
        if self.pid.is_some() {
            return;
        }
        match self.spawn() {
            Ok(pid) => self.pid = Some(pid),
            Err(error) => self.ended(&format!("cannot start: {error:#}")),
        }
    }

    fn spawn(&self) -> Result<Pid> {
        let log = fs::File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // What this process blocks for itself its children must hear: they and their containers would ignore SIGTERM.
        // SAFETY: changing the mask is async-signal-safe and touches nothing of the parent's.
        unsafe { command.pre_exec(|| SigSet::all().thread_unblock().map_err(Into::into)) };
        // The child is reaped by `reap`, through its process id.
        let pid = command.spawn()?.id();
        fs::write(&self.pid_file, pid.to_string())?;
        Ok(Pid::from_raw(i32::try_from(pid).context("a process id beyond its range")?))
    }

    fn ended(&mut self, how: &str) {
        let ran = self.started.elapsed();
        self.pause = if ran > STEADY { FIRST_PAUSE } else { self.pause };
        eprintln!("{} ended after {:.1} s ({how}), starting again in {:?}", self.name, ran.as_secs_f32(), self.pause);
        self.pid = None;
        self.started = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}
