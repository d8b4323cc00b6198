//! `leme node`: enter a node, list nodes, play a node's failure and return.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use super::{Which, cgroup, containerd, machine, require_root, status, up};
use crate::output::say;

#[derive(Args)]
#[command(after_help = "Examples:
  leme node list
  leme node exec leme-2 -- bash
  leme node stop leme-3 && sleep 60 && leme node start leme-3")]
pub(crate) struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a command in a node: its network, mounts, host name and cgroup
    #[command(after_help = "Examples:
  leme node exec leme-2 -- ip route
  leme node exec leme-2 -- ctr containers list")]
    Exec {
        #[command(flatten)]
        which: Which,
        /// The node's name, as `leme node list` shows it
        node: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Switch a node off, like pulling its plug
    #[command(after_help = "Example:
  leme node stop leme-3")]
    Stop {
        #[command(flatten)]
        which: Which,
        /// The node's name, as `leme node list` shows it
        node: String,
    },
    /// Switch a node on again
    #[command(after_help = "Example:
  leme node start leme-3")]
    Start {
        #[command(flatten)]
        which: Which,
        /// The node's name, as `leme node list` shows it
        node: String,
    },
    /// List the nodes and how they are
    #[command(after_help = "Example:
  leme node list -o json")]
    List(status::Options),
}

pub(crate) fn run(options: Options) -> Result<ExitCode> {
    if let Verb::Exec { which, node, command } = &options.verb {
        return exec(which, node, command);
    }
    crate::small_runtime()?.block_on(async {
        match options.verb {
            Verb::Stop { which, node } => stop(&which, &node).await.map(|()| ExitCode::SUCCESS),
            Verb::Start { which, node } => start(&which, &node).await.map(|()| ExitCode::SUCCESS),
            Verb::List(options) => status::run(&options).await,
            Verb::Exec { .. } => unreachable!("exec needs no runtime and has returned"),
        }
    })
}

/// Becomes the command, inside the node.
fn exec(which: &Which, name: &str, command: &[String]) -> Result<ExitCode> {
    require_root("a local cluster")?;
    let cluster = which.load_own()?;
    let node = cluster.node(name)?;
    let namespaces = cluster.namespaces(node);
    if !namespaces.exist() {
        bail!("node {name} is stopped; start it with `leme node start{} {name}`", which.arguments());
    }
    cgroup::join(&node.cgroup())?;
    namespaces.enter_net()?;
    namespaces.enter_mounts()?;
    let _ = std::env::set_current_dir("/");
    let error = Command::new(&command[0])
        .args(&command[1..])
        .env("CONTAINERD_ADDRESS", containerd::SOCKET)
        .env("CONTAINERD_NAMESPACE", "k8s.io")
        .env("CONTAINER_RUNTIME_ENDPOINT", format!("unix://{}", containerd::SOCKET))
        .exec();
    Err(error).with_context(|| format!("cannot run {} in {name}", command[0]))
}

async fn stop(which: &Which, name: &str) -> Result<()> {
    require_root("a local cluster")?;
    let (_claim, cluster) = which.hold()?;
    machine::stop(&cluster, cluster.node(name)?).await?;
    say(format_args!("Node {name} is off."));
    Ok(())
}

async fn start(which: &Which, name: &str) -> Result<()> {
    require_root("a local cluster")?;
    let (mut claim, cluster) = which.hold()?;
    let _census = claim.census()?;
    up::expect_own_network(&cluster, &claim.others())?;
    claim.record(&cluster.folder)?;
    let node = cluster.node(name)?;
    let authority = leme_control_plane::pki::Authority::open(&cluster.server_dir().join("pki"), "ca", "kubernetes")?;
    machine::clear(&cluster, node).await?;
    machine::prepare(&cluster, node, &authority)?;
    machine::start(&cluster, node).await?;
    say(format_args!("Node {name} is on."));
    Ok(())
}
