//! `leme down`: removes a cluster and every trace. It works on half-made and half-broken state and says what it could
//! not remove; doing it twice is doing it once.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use leme_datapath::Lan;
use nix::mount::{MntFlags, umount2};

use super::claim::Claim;
use super::{BPFFS, Cluster, Which, kubeconfig, machine, require_root};
use crate::output::{bold, say};

#[derive(Args)]
#[command(after_help = "Examples:
  leme down                     the cluster named leme
  leme down --name other")]
pub(crate) struct Options {
    #[command(flatten)]
    which: Which,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    require_root("a local cluster")?;
    let claim = Claim::hold(&options.which.name)?;
    let Some(cluster) = Cluster::load(&options.which.folder())? else {
        say(format_args!(
            "There is no cluster {} in {}.",
            bold(&options.which.name),
            options.which.state_dir.display()
        ));
        return Ok(());
    };
    let mut failures = Vec::new();
    let mut note = |outcome: Result<()>| failures.extend(outcome.err().map(|error| format!("{error:#}")));
    // After a reboot the name may have gone to another cluster, and with it the nodes.
    let own = claim.expect_owner(&cluster.folder).is_ok();
    for node in cluster.nodes.iter().filter(|_| own) {
        note(machine::stop(&cluster, node).await.with_context(|| format!("node {}", node.name)));
    }
    if own && cluster.lan_pins().exists() {
        note(Lan::remove(&cluster.lan_pins()).context("the program that joins the nodes"));
    }
    let census = claim.census()?;
    note(cluster.traces.kubeconfig.as_ref().map_or(Ok(()), |trace| kubeconfig::restore(trace, &cluster.context())));
    drop(census);
    kubeconfig::forget_discovery(cluster.control_plane().address);
    let heir = another(&options.which, &claim)?;
    if heir.is_none() && own {
        note(remove_bpffs(&cluster));
    }
    if !failures.is_empty() {
        bail!(
            "not everything could be removed; run `leme down` again when this is solved:\n  {}",
            failures.join("\n  ")
        );
    }
    remove_files(&cluster, heir)?;
    if own {
        claim.release();
    }
    say(format_args!("Cluster {} is removed.", bold(&cluster.name)));
    Ok(())
}

fn remove_bpffs(cluster: &Cluster) -> Result<()> {
    // An agent that is not of a local cluster keeps it.
    let _ = fs::remove_dir(Path::new(BPFFS).join("leme"));
    let empty = fs::read_dir(BPFFS).is_ok_and(|mut entries| entries.next().is_none());
    if cluster.traces.mounted_bpffs && empty && super::namespace::is_mount(Path::new(BPFFS)) {
        umount2(BPFFS, MntFlags::empty()).context("cannot unmount the BPF file system")?;
    }
    Ok(())
}

/// Another local cluster of this machine: it needs what this one made outside of its own directory.
fn another(which: &Which, claim: &Claim) -> Result<Option<Cluster>> {
    if let Some(other) = claim.others().pop() {
        return Ok(Some(other));
    }
    for entry in fs::read_dir(&which.state_dir).into_iter().flatten().flatten() {
        if entry.path() != which.folder()
            && let Some(cluster) = Cluster::load(&entry.path())?
        {
            return Ok(Some(cluster));
        }
    }
    Ok(None)
}

/// The cluster's directory last: it says what there is to remove. What another cluster still needs becomes its own.
fn remove_files(cluster: &Cluster, heir: Option<Cluster>) -> Result<()> {
    remove_folder(&cluster.folder)?;
    // Not empty: somebody else uses it by now.
    let left: Vec<_> = cluster.traces.folders.iter().rev().filter(|folder| fs::remove_dir(folder).is_err()).collect();
    if let Some(mut heir) = heir {
        heir.traces.mounted_bpffs |= cluster.traces.mounted_bpffs;
        heir.traces.folders.splice(0..0, left.into_iter().rev().filter(|folder| folder.is_dir()).cloned());
        heir.save()?;
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
