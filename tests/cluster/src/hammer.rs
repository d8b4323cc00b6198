//! A client that goes on asking while a test does something to the cluster.

use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{Cluster, Place};

pub struct Hammer {
    child: Child,
    what: String,
    /// Fewer requests than this mean nothing.
    least: u64,
}

/// How it went.
#[derive(Debug)]
pub struct Tally {
    pub requests: u64,
    pub failures: Vec<String>,
}

impl Hammer {
    /// At an address.
    pub fn start(cluster: &Cluster, place: Place<'_>, target: SocketAddr) -> Result<Self> {
        Self::spawn(cluster, place, &["hammer", &target.to_string(), "/"])
    }

    /// At an address, over a single connection.
    pub fn hold(cluster: &Cluster, place: Place<'_>, target: SocketAddr) -> Result<Self> {
        let mut hammer = Self::spawn(cluster, place, &["hold", &target.to_string(), "/"])?;
        hammer.least = 10;
        Ok(hammer)
    }

    /// At a name, which is asked for anew for each request.
    pub fn start_by_name(cluster: &Cluster, place: Place<'_>, name: &str, port: u16) -> Result<Self> {
        Self::spawn(cluster, place, &["hammer", name, &port.to_string(), "/", "--dns", "10.96.0.10:53"])
    }

    fn spawn(cluster: &Cluster, place: Place<'_>, words: &[&str]) -> Result<Self> {
        let mut command = place.client(cluster, words)?;
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(Self { child, least: 100, what: format!("{} from {place}", words.join(" ")) })
    }

    /// Ends it: what it counted.
    pub fn stop(mut self) -> Result<Tally> {
        drop(self.child.stdin.take());
        // Read while it ends: what it has to say may be more than a pipe holds.
        let (mut output, mut errors) =
            (self.child.stdout.take().context("no output")?, self.child.stderr.take().context("no output")?);
        let said = thread::spawn(move || {
            let (mut text, mut complaint) = (String::new(), String::new());
            output.read_to_string(&mut text).and_then(|_| errors.read_to_string(&mut complaint))?;
            std::io::Result::Ok((text, complaint))
        });
        let deadline = Instant::now() + Duration::from_secs(15);
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "{} does not end", self.what);
            thread::sleep(Duration::from_millis(10));
        }
        let (text, complaint) = said.join().expect("a reader does not panic")?;
        let value: Value = serde_json::from_str(&text).with_context(|| format!("{}: {complaint}", self.what))?;
        let failures = value["failures"].as_array().into_iter().flatten();
        Ok(Tally {
            requests: value["requests"].as_u64().context("no count")?,
            failures: failures.filter_map(|it| it.as_str().map(str::to_owned)).collect(),
        })
    }

    /// Ends it: there must have been enough requests to mean something, and not one failure.
    pub fn stop_without_failure(self) -> Result<()> {
        let (what, least) = (self.what.clone(), self.least);
        let tally = self.stop()?;
        ensure!(tally.requests > least, "{what}: only {} requests", tally.requests);
        if !tally.failures.is_empty() {
            let shown = tally.failures.iter().take(10).cloned().collect::<Vec<_>>().join("\n  ");
            bail!("{what}: {} of {} requests failed:\n  {shown}", tally.failures.len(), tally.requests);
        }
        Ok(())
    }
}

impl Drop for Hammer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
