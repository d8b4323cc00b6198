//! The person's kubeconfig: our context is merged in at `up` and taken out at `down`. A file that nobody else touched
//! in between comes back byte for byte.

use std::env;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_norway::{Mapping, Value};

use super::{Cluster, Which};

#[derive(Args)]
#[command(after_help = "Examples:
  leme kubeconfig > leme.kubeconfig && kubectl --kubeconfig leme.kubeconfig get nodes
  leme kubeconfig --name other")]
pub(crate) struct Options {
    #[command(flatten)]
    which: Which,
}

/// What was there before, to put it back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Trace {
    file: PathBuf,
    /// `None`: there was no file.
    before: Option<String>,
    /// What we wrote.
    after: String,
    made_folder: bool,
}

/// `leme kubeconfig`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let cluster = options.which.load()?;
    let path = cluster.admin_kubeconfig();
    print!(
        "{}",
        fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}: is the cluster half made?", path.display()))?
    );
    Ok(())
}

/// Merges the cluster's context into the person's kubeconfig and makes it the current one.
pub(crate) fn merge(cluster: &Cluster) -> Result<Trace> {
    let file = location()?;
    let ours = fs::read_to_string(cluster.admin_kubeconfig())?;
    let before = fs::read_to_string(&file).ok();
    // A second `up` must not take our own entries for what was there before.
    let known = cluster.traces.kubeconfig.as_ref().filter(|trace| trace.file == file);
    let base = known
        .filter(|trace| before.as_deref() == Some(&trace.after))
        .map_or(before.clone(), |trace| trace.before.clone());
    let after = merged(before.as_deref().unwrap_or_default(), &ours)
        .with_context(|| format!("{} is no kubeconfig; move it away or set KUBECONFIG", file.display()))?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let made_folder = known.is_some_and(|trace| trace.made_folder) || !folder.is_dir();
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    write(&file, &after)?;
    Ok(Trace { before: base, after, made_folder, file })
}

/// Takes our entries out again.
pub(crate) fn restore(trace: &Trace, context: &str) -> Result<()> {
    let Ok(now) = fs::read_to_string(&trace.file) else { return Ok(()) };
    let text = if now == trace.after { trace.before.clone() } else { Some(without(&now, context, trace)?) };
    match text {
        Some(text) => write(&trace.file, &text)?,
        None => fs::remove_file(&trace.file).with_context(|| format!("cannot remove {}", trace.file.display()))?,
    }
    if trace.made_folder
        && let Some(folder) = trace.file.parent()
    {
        // kubectl keeps a cache of what it discovered in the folder that exists only because of us.
        let _ = fs::remove_dir_all(folder.join("cache"));
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

/// Removes what kubectl remembers of the kinds served at an address that the next cluster will have, too.
pub(crate) fn forget_discovery(server: Ipv4Addr) {
    let cache = env::var_os("KUBECACHEDIR").map(PathBuf::from);
    let cache = cache.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".kube/cache")));
    if let Some(cache) = cache {
        let _ = fs::remove_dir_all(cache.join("discovery").join(format!("{server}_6443")));
    }
}

/// Where kubectl reads: the first file of KUBECONFIG, else `~/.kube/config`.
fn location() -> Result<PathBuf> {
    if let Some(first) = env::var_os("KUBECONFIG")
        .and_then(|list| env::split_paths(&list).next())
        .filter(|path| !path.as_os_str().is_empty())
    {
        return Ok(first);
    }
    let home = env::var_os("HOME").context("neither KUBECONFIG nor HOME is set")?;
    Ok(Path::new(&home).join(".kube/config"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    let owner = fs::metadata(path).ok();
    let temporary = path.with_extension("leme-new");
    fs::write(&temporary, text).with_context(|| format!("cannot write {}", temporary.display()))?;
    fs::set_permissions(
        &temporary,
        fs::Permissions::from_mode(owner.as_ref().map_or(0o600, |meta| meta.mode() & 0o777)),
    )?;
    if let Some(meta) = owner {
        chown(&temporary, Some(meta.uid()), Some(meta.gid()))?;
    }
    fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))
}

const LISTS: [&str; 3] = ["clusters", "users", "contexts"];

fn merged(base: &str, ours: &str) -> Result<String> {
    let mut base = parse(base)?;
    let ours = parse(ours)?;
    for list in LISTS {
        for entry in ours.get(list).and_then(Value::as_sequence).into_iter().flatten() {
            remove_named(&mut base, list, name_of(entry));
            entries(&mut base, list).push(entry.clone());
        }
    }
    base.insert("current-context".into(), ours.get("current-context").cloned().unwrap_or_default());
    base.entry("apiVersion".into()).or_insert("v1".into());
    base.entry("kind".into()).or_insert("Config".into());
    Ok(serde_norway::to_string(&base)?)
}

fn without(text: &str, context: &str, trace: &Trace) -> Result<String> {
    let mut config = parse(text)?;
    for list in LISTS {
        remove_named(&mut config, list, context);
    }
    if config.get("current-context").and_then(Value::as_str) == Some(context) {
        let before = trace.before.as_deref().map(parse).transpose()?;
        let previous = before.and_then(|before| before.get("current-context").cloned());
        // That of a cluster that is gone by now is none.
        let there = |name: &Value| entries(&mut config, "contexts").iter().any(|it| Some(name_of(it)) == name.as_str());
        let previous = previous.filter(there).unwrap_or_else(|| "".into());
        config.insert("current-context".into(), previous);
    }
    Ok(serde_norway::to_string(&config)?)
}

fn parse(text: &str) -> Result<Mapping> {
    if text.trim().is_empty() { Ok(Mapping::new()) } else { Ok(serde_norway::from_str(text)?) }
}

fn entries<'a>(config: &'a mut Mapping, list: &str) -> &'a mut Vec<Value> {
    let value = config.entry(list.into()).or_insert(Value::Null);
    if !value.is_sequence() {
        *value = Value::Sequence(Vec::new());
    }
    value.as_sequence_mut().expect("just made a sequence")
}

fn remove_named(config: &mut Mapping, list: &str, name: &str) {
    entries(config, list).retain(|entry| name_of(entry) != name);
}

fn name_of(entry: &Value) -> &str {
    entry.get("name").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "clusters:\n- name: leme\n  cluster: {server: https://10.89.0.2:6443}\nusers:\n- name: leme\n  user: {}\n\
                        contexts:\n- name: leme\n  context: {cluster: leme, user: leme}\ncurrent-context: leme\n";
    const OTHERS: &str = "apiVersion: v1\nkind: Config\nclusters:\n- name: work\n  cluster: {server: https://work}\nusers: []\n\
                          contexts:\n- name: work\n  context: {cluster: work, user: me}\ncurrent-context: work\npreferences: {colors: true}\n";

    fn trace(before: Option<&str>, after: &str, file: PathBuf) -> Trace {
        Trace { file, before: before.map(str::to_owned), after: after.to_owned(), made_folder: false }
    }

    #[test]
    fn merging_keeps_what_others_wrote() {
        let config = parse(&merged(OTHERS, OURS).unwrap()).unwrap();
        assert_eq!(config["clusters"].as_sequence().unwrap().len(), 2);
        assert_eq!(config["current-context"].as_str(), Some("leme"));
        assert_eq!(config["preferences"]["colors"].as_bool(), Some(true));
    }

    #[test]
    fn merging_twice_is_merging_once() {
        let once = merged(OTHERS, OURS).unwrap();
        assert_eq!(merged(&once, OURS).unwrap(), once);
    }

    #[test]
    fn a_file_nobody_touched_comes_back_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        let after = merged(OTHERS, OURS).unwrap();
        fs::write(&file, &after).unwrap();
        restore(&trace(Some(OTHERS), &after, file.clone()), "leme").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), OTHERS);
    }

    #[test]
    fn the_context_of_a_cluster_that_is_gone_does_not_become_current_again() {
        let gone = OTHERS.replace("contexts:\n- name: work\n", "contexts:\n- name: other\n");
        assert_ne!(gone, OTHERS);
        let now = merged(&gone, OURS).unwrap();
        let left = parse(&without(&now, "leme", &trace(Some(OTHERS), "", "x".into())).unwrap()).unwrap();
        assert_eq!(left["current-context"].as_str(), Some(""));
    }

    #[test]
    fn a_file_that_was_not_there_goes_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        fs::write(&file, OURS).unwrap();
        restore(&trace(None, OURS, file.clone()), "leme").unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn what_others_added_meanwhile_stays() {
        let mut config = parse(&merged(OTHERS, OURS).unwrap()).unwrap();
        entries(&mut config, "clusters").push(serde_norway::from_str("name: new").unwrap());
        let text = serde_norway::to_string(&config).unwrap();
        let left = parse(&without(&text, "leme", &trace(Some(OTHERS), "", "x".into())).unwrap()).unwrap();
        assert_eq!(left["clusters"].as_sequence().unwrap().len(), 2);
        assert_eq!(left["current-context"].as_str(), Some("work"));
    }
}
