//! What the container runtime finds on disk: the plugin's binary and the network configuration that names it.
//!
//! Called by the network once the node can serve; the configuration's appearance is what makes the runtime report
//! `NetworkReady`. Every file is replaced in one step and only when it differs.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::Context as _;
use serde_json::json;

use super::Config;

/// Sorts before what other plugins leave: the runtime takes the first file.
pub const FILE: &str = "10-leme.conflist";

pub fn install(config: &Config) -> anyhow::Result<()> {
    if let Some(plugin) = &config.cni_plugin {
        install_plugin(plugin, &config.cni_bin_dir)?;
    }
    replace(&config.cni_conf_dir.join(FILE), &conflist(&config.cni_socket), 0o644)
}

/// `cniVersion` is the newest that containerd 1.6 knows; runtimes that know better choose from `cniVersions`.
fn conflist(socket: &Path) -> Vec<u8> {
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": leme_cni::spec::VERSIONS,
        "name": "leme",
        "plugins": [{"type": leme_cni::PLUGIN, "socket": socket, "capabilities": {"portMappings": true}}],
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
}
