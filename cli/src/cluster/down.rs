//! `leme down`: removes a cluster and every trace. It works on half-made and half-broken state and says what it could
//! not remove; doing it twice is doing it once.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use leme_datapath::Lan;
use nix::mount::{MntFlags, umount2};

use super::{BPFFS, Cluster, Which, kubeconfig, machine, require_root};
use crate::output::bold;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    which: Which,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    require_root()?;
    let Some(cluster) = Cluster::load(&options.which.folder())? else {
        println!("There is no cluster {}.", bold(&options.which.name));
        return Ok(());
    };
    let mut failures = Vec::new();
    let mut note = |outcome: Result<()>| failures.extend(outcome.err().map(|error| format!("{error:#}")));
    for node in &cluster.nodes {
        note(machine::stop(&cluster, node).await.with_context(|| format!("node {}", node.name)));
    }
    if cluster.lan_pins().exists() {
        note(Lan::remove(&cluster.lan_pins()).context("the program that joins the nodes"));
    }
    note(cluster.traces.kubeconfig.as_ref().map_or(Ok(()), |trace| kubeconfig::restore(trace, &cluster.context())));
    note(remove_bpffs(&cluster));
    if !failures.is_empty() {
        bail!(
            "not everything could be removed; run `leme down` again when this is solved:\n  {}",
            failures.join("\n  ")
        );
    }
    remove_files(&cluster)?;
    println!("Cluster {} is removed.", bold(&cluster.name));
    Ok(())
}

fn remove_bpffs(cluster: &Cluster) -> Result<()> {
    // Other clusters' pins keep it.
    let _ = fs::remove_dir(Path::new(BPFFS).join("leme"));
    let empty = fs::read_dir(BPFFS).is_ok_and(|mut entries| entries.next().is_none());
    if cluster.traces.mounted_bpffs && empty && super::namespace::is_mount(Path::new(BPFFS)) {
        umount2(BPFFS, MntFlags::empty()).context("cannot unmount the BPF file system")?;
    }
    Ok(())
}

/// The cluster's directory last: it says what there is to remove.
fn remove_files(cluster: &Cluster) -> Result<()> {
    match fs::remove_dir_all(&cluster.folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", cluster.folder.display()));
        }
        _ => {}
    }
    for folder in cluster.traces.folders.iter().rev() {
        // Not empty: somebody else uses it by now.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}
