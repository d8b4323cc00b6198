//! What the container runtime finds on disk: the plugin's binary and the network configuration that names it.
//!
//! Called by the network once the node can serve; the configuration's appearance is what makes the runtime report
//! `NetworkReady`. Every file is replaced in one step and only when it differs; what others delete or change is put back
//! within seconds. It stays when the agent goes: pods are attached again when the next one comes, and until then the
//! plugin says "try again later". Other plugins' files are left alone.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use super::Status;

/// Sorts before what other plugins leave: the runtime takes the first file.
pub const FILE: &str = "10-leme.conflist";

/// Where the runtime looks, and what it is to find there.
#[derive(Clone, Debug)]
pub struct Files {
    pub conf_dir: PathBuf,
    pub bin_dir: PathBuf,
    /// The plugin to install into `bin_dir`; none: it is there already.
    pub plugin: Option<PathBuf>,
    /// Where the plugin finds the agent.
    pub socket: PathBuf,
}

/// How often the files are looked at: one is read, two are asked for their length.
const LOOK: Duration = Duration::from_secs(3);

/// Keeps the files in place from the first time that the network is ready.
pub async fn keep(files: Files, mut status: watch::Receiver<Status>) {
    if status.wait_for(|status| *status == Status::Ready).await.is_err() {
        return;
    }
    loop {
        if !files.are_whole() {
            match files.install() {
                Ok(()) => info!("put the CNI configuration and plugin back"),
                Err(error) => warn!("failed to put the CNI configuration back: {error:#}"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Files {
    pub fn install(&self) -> anyhow::Result<()> {
        if let Some(plugin) = &self.plugin {
            install_plugin(plugin, &self.bin_dir)?;
        }
        replace(&self.conf_dir.join(FILE), &conflist(&self.socket), 0o644)
    }

    /// The plugin by its length alone: it is looked at often.
    fn are_whole(&self) -> bool {
        let conf = fs::read(self.conf_dir.join(FILE)).is_ok_and(|found| found == conflist(&self.socket));
        let length = |path: &Path| fs::metadata(path).ok().map(|file| file.len());
        let plugin = self.plugin.as_deref();
        conf && plugin.is_none_or(|plugin| length(plugin) == length(&self.bin_dir.join(leme_cni::PLUGIN)))
    }
}

/// `cniVersion` is the newest that containerd 1.6 knows; runtimes that know better choose from `cniVersions`.
fn conflist(socket: &Path) -> Vec<u8> {
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": leme_cni::spec::VERSIONS,
        "name": "leme",
        "plugins": [{"type": leme_cni::PLUGIN, "socket": socket, "capabilities": {"portMappings": true, "bandwidth": true}}],
    });
    format!("{list:#}\n").into_bytes()
}

/// containerd also runs a plugin named `loopback` for every pod: ours plays it where the node has none.
fn install_plugin(plugin: &Path, dir: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(plugin).with_context(|| format!("failed to read the CNI plugin {}", plugin.display()))?;
    replace(&dir.join(leme_cni::PLUGIN), &bytes, 0o755)?;
    let loopback = dir.join("loopback");
    match loopback.exists() {
        true => Ok(()),
        false => replace(&loopback, &bytes, 0o755),
    }
}

/// Writes a file whole or not at all.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let context = || format!("failed to write {}", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(context)?;
    }
    let fresh = path.with_extension("leme-new");
    fs::write(&fresh, bytes).with_context(context)?;
    fs::set_permissions(&fresh, Permissions::from_mode(mode)).with_context(context)?;
    fs::rename(&fresh, path).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn files(root: &TempDir) -> Files {
        let plugin = root.path().join("leme-cni");
        fs::write(&plugin, "a plugin").unwrap();
        let (conf_dir, bin_dir) = (root.path().join("net.d"), root.path().join("bin"));
        Files { conf_dir, bin_dir, plugin: Some(plugin), socket: root.path().join("cni.sock") }
    }

    #[test]
    fn the_configuration_is_one_that_the_plugin_accepts() {
        let list: serde_json::Value = serde_json::from_slice(&conflist(Path::new("/run/x/cni.sock"))).unwrap();
        assert_eq!(list["plugins"][0]["type"], "leme-cni");
        let mut conf = list["plugins"][0].clone();
        (conf["cniVersion"], conf["name"]) = ("1.1.0".into(), list["name"].clone());
        let env = |name: &str| (name == "CNI_COMMAND").then(|| "STATUS".to_owned());
        let call = leme_cni::spec::parse(env, conf.to_string().as_bytes()).unwrap();
        assert!(matches!(call, leme_cni::spec::Call::Ask { socket, .. } if socket == "/run/x/cni.sock"));
    }

    #[tokio::test(start_paused = true)]
    async fn files_come_when_the_network_is_ready_and_come_back_when_they_go() {
        let root = TempDir::new().unwrap();
        let files = files(&root);
        let (conf, plugin) = (files.conf_dir.join(FILE), files.bin_dir.join("leme-cni"));
        let (tell, told) = watch::channel(Status::NotReady("starting".into()));
        let keeper = tokio::spawn(keep(files, told));
        tokio::time::sleep(LOOK * 2).await;
        assert!(!conf.exists() && !plugin.exists());
        tell.send_replace(Status::Ready);
        for path in [&conf, &plugin] {
            tokio::time::sleep(LOOK * 2).await;
            let whole = fs::read(path).unwrap();
            fs::remove_file(path).unwrap();
            tokio::time::sleep(LOOK * 2).await;
            assert_eq!(fs::read(path).unwrap(), whole);
        }
        fs::write(&conf, "{}").unwrap();
        tokio::time::sleep(LOOK * 2).await;
        assert!(fs::read_to_string(&conf).unwrap().contains("portMappings"));
        keeper.abort();
    }
}
