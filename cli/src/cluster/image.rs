//! `leme image load`: an image archive into the nodes' containerd, without a registry. containerd's own `ctr` does the
//! work: it reads every archive format and speaks to every version of containerd.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use futures::future::try_join_all;
use tokio::process::Command;

use super::{Cluster, Node, Which, containerd, require_root};
use crate::output::say;

#[derive(Args)]
#[command(after_help = "Example:
  leme image load app.tar")]
pub(crate) struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Load an image archive (of `docker save`, or an OCI layout as tar) into nodes
    #[command(after_help = "Example:
  docker save my/app:1 -o app.tar && leme image load app.tar")]
    Load {
        #[command(flatten)]
        which: Which,
        /// The archive
        #[arg(value_name = "FILE")]
        archive: PathBuf,
        /// Only into these nodes [default: all]
        #[arg(long)]
        node: Vec<String>,
    },
}

pub(crate) async fn run(options: Options) -> Result<()> {
    require_root("a local cluster")?;
    let Verb::Load { which, archive, node } = options.verb;
    let cluster = which.load()?;
    if !archive.is_file() {
        bail!("{} is no file", archive.display());
    }
    let chosen = match node.as_slice() {
        [] => cluster.nodes.iter().collect(),
        names => names.iter().map(|name| cluster.node(name)).collect::<Result<Vec<_>>>()?,
    };
    if let Some(node) = chosen.iter().find(|node| cluster.supervisor(node).is_none()) {
        bail!("node {} is stopped; start it with `leme node start{} {}`", node.name, which.arguments(), node.name);
    }
    try_join_all(chosen.iter().map(|node| load(&cluster, node, &archive))).await?;
    say(format_args!(
        "{} is on {}.",
        archive.display(),
        chosen.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ")
    ));
    Ok(())
}

/// Into every node.
pub(crate) async fn load_all(cluster: &Cluster, archive: &Path) -> Result<()> {
    try_join_all(cluster.nodes.iter().map(|node| load(cluster, node, archive))).await.map(drop)
}

async fn load(cluster: &Cluster, node: &Node, archive: &Path) -> Result<()> {
    let ctr = containerd::find("ctr").context("ctr is not on PATH; it comes with containerd")?;
    let socket = cluster.node_dir(node).join("run/containerd/containerd.sock");
    let output = Command::new(ctr)
        .arg("--address")
        .arg(socket)
        .args(["--namespace", "k8s.io", "images", "import"])
        .arg(archive)
        .stdin(Stdio::null())
        .output()
        .await
        .context("cannot start ctr")?;
    if !output.status.success() {
        bail!(
            "cannot load {} into {}: {}",
            archive.display(),
            node.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
