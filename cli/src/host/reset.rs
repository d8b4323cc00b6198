//! `leme reset`: takes this machine out of its cluster and removes what `init` or `join` made, and only that. It goes on
//! after failures and says what is left; twice is once.

use std::fs;
use std::io::{BufRead, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use leme_agent::runtime::Cri;
use nix::mount::{MntFlags, umount2};

use super::{
    ADMIN, BOOTSTRAP, BPFFS, CNI_BIN, CNI_CONF, Host, KUBELET, KUBERNETES, LOGS, PKI, POD_LOGS, PODS, RECORD, RUN,
    SERVER, services,
};
use crate::cluster::{cgroup, process};
use crate::output::{bold, say};

/// For all of the pods together; what is left then is killed.
const PODS_LIMIT: Duration = Duration::from_secs(60);

#[derive(Args)]
#[command(after_help = "Examples:
  leme reset              asks first
  leme reset --force")]
pub(crate) struct Options {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    super::require_root("reset")?;
    let Some(host) = Host::load()? else {
        say("This machine is in no cluster of leme's: nothing to do.");
        return Ok(());
    };
    if !options.force && !agreed(&host)? {
        bail!("nothing was changed");
    }
    let mut failures = Vec::new();
    let mut note = |outcome: Result<()>| failures.extend(outcome.err().map(|error| format!("{error:#}")));
    note(services::stop_supervisor());
    note(services::stop("agent"));
    note(end_pods(&host).await.context("the pods"));
    for part in ["server", "dns"] {
        note(services::stop(part));
    }
    note(cgroup::kill_all(&host.pods_cgroup()));
    note(remove_datapath(&host).await.context("the network"));
    note(cgroup::remove(&host.pods_cgroup()));
    note(unmount(Path::new(PODS)));
    note(remove_files(&host));
    if !failures.is_empty() {
        bail!(
            "not everything could be removed; run leme reset again when this is solved:\n  {}",
            failures.join("\n  ")
        );
    }
    forget(&host)?;
    say(format_args!("Node {} is out of its cluster, and what leme made here is gone.", bold(&host.node_name)));
    if host.control_plane.is_none() {
        say(format_args!("In the cluster it is still listed: kubectl delete node {}", host.node_name));
    }
    Ok(())
}

fn agreed(host: &Host) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("reset asks before it removes anything, and nobody can answer here: say --force");
    }
    let what = if host.control_plane.is_some() { ", and with it the whole state of the cluster" } else { "" };
    eprint!("This removes node {} from {}{what}. Go on? [y/N] ", host.node_name, host.server);
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// Ends every pod through the runtime. Its network plugin wants an agent, which must not start the pods again.
async fn end_pods(host: &Host) -> Result<()> {
    if !host.cri_socket.exists() {
        return Ok(());
    }
    let cri = Cri::new(&host.cri_socket);
    let sandboxes = cri.list_sandboxes(None).await.context("the container runtime does not answer")?;
    let ours: Vec<_> =
        sandboxes.into_iter().filter(|sandbox| sandbox.labels.contains_key("io.kubernetes.pod.uid")).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let agent = network_only(host)?;
    let ended = tokio::time::timeout(PODS_LIMIT, async {
        for sandbox in &ours {
            cri.stop_sandbox(&sandbox.id).await?;
            cri.remove_sandbox(&sandbox.id).await?;
        }
        Ok::<_, anyhow::Error>(())
    })
    .await;
    end_child(agent);
    ended.with_context(|| format!("the container runtime did not end them within {} s", PODS_LIMIT.as_secs()))?
}

fn network_only(host: &Host) -> Result<Child> {
    let commands = host.commands()?;
    let (_, command) = commands.iter().find(|(name, _)| *name == "agent").context("a host has an agent")?;
    let mut child = Command::new(&command[0]);
    child.args(&command[1..]).arg("--network-only").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    child.spawn().context("cannot start the network's agent")
}

fn end_child(mut child: Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or_default());
    process::signal(pid, nix::sys::signal::Signal::SIGTERM);
    if !process::wait_until(Duration::from_secs(10), || !process::alive(pid)) {
        let _ = child.kill();
    }
    let _ = child.wait();
}

async fn remove_datapath(host: &Host) -> Result<()> {
    let cgroup = cgroup::unified()?.join(host.cgroup_root.trim_start_matches('/'));
    let config = leme_datapath::Config::new(&host.node_name, cgroup, host.address, host.pod_cidr.into());
    leme_datapath::remove_all(&config).await?;
    let _ = fs::remove_dir(Path::new(BPFFS).join("leme"));
    let empty = fs::read_dir(BPFFS).is_ok_and(|mut entries| entries.next().is_none());
    if host.mounted_bpffs && empty { unmount(Path::new(BPFFS)) } else { Ok(()) }
}

/// Everything that is mounted there or below, deepest first.
fn unmount(folder: &Path) -> Result<()> {
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<_> = info.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new).collect();
    points.retain(|point| point.starts_with(folder));
    for point in points.into_iter().rev() {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    Ok(())
}

/// Files by name where others have theirs, and all that is in the directories that are a node's own.
fn remove_files(host: &Host) -> Result<()> {
    remove_plugins()?;
    for path in [ADMIN, KUBELET, BOOTSTRAP, SERVER] {
        remove(Path::new(path))?;
    }
    let all = [PKI, PODS, POD_LOGS, LOGS, RUN].into_iter().flat_map(entries).map(|entry| entry.path());
    for path in all.filter(|path| !host.found.contains(path)) {
        remove(&path)?;
    }
    Ok(())
}

/// The network's configuration and plugin, and the one that plays `loopback` where the node had none.
fn remove_plugins() -> Result<()> {
    let loopback = Path::new(CNI_BIN).join("loopback");
    let own = fs::read(Path::new(CNI_BIN).join("leme-cni")).ok();
    if own.is_some() && fs::read(&loopback).ok() == own {
        remove(&loopback)?;
    }
    let ours = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().contains("leme");
    for entry in [CNI_CONF, CNI_BIN].into_iter().flat_map(entries).filter(ours) {
        remove(&entry.path())?;
    }
    Ok(())
}

fn entries(folder: &str) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(folder).into_iter().flatten().flatten()
}

fn remove(path: &Path) -> Result<()> {
    let outcome = if path.symlink_metadata().is_ok_and(|file| file.is_dir()) {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match outcome {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The record last: it says what there is to remove. Directories that were there before stay, as do those with others'
/// files in them.
fn forget(host: &Host) -> Result<()> {
    let _ = fs::remove_dir(KUBERNETES);
    remove(Path::new(RECORD))?;
    for folder in host.made.iter().rev() {
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}
