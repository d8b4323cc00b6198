//! An etcd of our own, for the cluster that keeps its state there.

use std::env;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::eventually;

pub struct Etcd {
    child: Child,
    pub endpoint: String,
}

impl Etcd {
    /// Starts `LEME_ETCD` on free loopback ports, its data in a folder.
    pub fn start(folder: &Path) -> Result<Self> {
        let program = env::var_os("LEME_ETCD").context("LEME_ETCD does not say where etcd is")?;
        let (client, peer) = (free_port()?, free_port()?);
        let (endpoint, peers) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let log = File::create(folder.join("etcd.log"))?;
        let child = Command::new(program)
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}"), "--logger", "zap"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start etcd")?;
        let etcd = Self { child, endpoint };
        eventually(Duration::from_secs(15), "etcd listens", || Ok(TcpStream::connect(("127.0.0.1", client))?))?;
        Ok(etcd)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
