//! The registry on this machine's loopback from which nodes pull where there is no internet.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::step::{command, say};
use crate::{oci, place};

/// Away from 5000, where a person's own registry would be.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5089);

/// Upstream registries this one stands in for.
const HOSTS: [&str; 2] = ["docker.io", "registry.k8s.io"];

pub(crate) fn runs() -> bool {
    oci::answers(ADDRESS)
}

/// Starts the registry if it does not answer yet.
pub(crate) fn start() -> Result<SocketAddr> {
    if runs() {
        return Ok(ADDRESS);
    }
    say(&format!("Starting the image registry on {ADDRESS}"));
    let folder = folder();
    fs::create_dir_all(&folder)?;
    let config = folder.join("config.yml");
    fs::write(&config, configuration(&folder.join("store")))?;
    let log = fs::File::create(folder.join("registry.log"))?;
    let program = place::on_path("docker-registry").context("no docker-registry: run `cargo xtask setup`")?;
    let child = command(program)
        .args(["serve", &config.to_string_lossy()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("cannot start docker-registry")?;
    fs::write(pid_file(), child.id().to_string())?;
    wait()?;
    Ok(ADDRESS)
}

/// Stops the registry that `start` started; absent is stopped.
pub(crate) fn stop() -> Result<()> {
    let Ok(pid) = fs::read_to_string(pid_file()) else { return Ok(()) };
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if comm.trim().starts_with("docker-registry".get(..15).unwrap_or_default()) {
        let _ = command("kill").arg(&pid).status();
    }
    fs::remove_file(pid_file()).context("cannot remove the registry's pid file")
}

/// `--registry-mirror` arguments for `leme up`.
pub(crate) fn mirror_arguments() -> Vec<String> {
    HOSTS.iter().flat_map(|host| ["--registry-mirror".to_owned(), format!("{host}=http://{ADDRESS}")]).collect()
}

fn folder() -> PathBuf {
    place::cache().join("registry")
}

fn pid_file() -> PathBuf {
    folder().join("registry.pid")
}

fn configuration(store: &std::path::Path) -> String {
    format!(
        "version: 0.1\nlog: {{ level: warn }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  delete: {{ enabled: true }}\n\
         http: {{ addr: \"{ADDRESS}\" }}\n",
        store.display()
    )
}

fn wait() -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !oci::answers(ADDRESS) {
        if Instant::now() > deadline {
            let log = fs::read_to_string(folder().join("registry.log")).unwrap_or_default();
            bail!("the image registry does not answer on {ADDRESS}:\n{log}");
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}
