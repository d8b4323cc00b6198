//! The etcd that a cluster keeps its state in, where that is not the embedded store: its flags, and whether it answers.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use leme_control_plane::Etcd;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::valid_url;
use crate::output::bold;

#[derive(Args)]
pub(crate) struct Flags {
    /// Keep the state in this etcd instead of the embedded store
    #[arg(long = "etcd-endpoints", value_delimiter = ',', value_name = "URL", value_parser = valid_url)]
    pub(crate) endpoints: Vec<String>,
    /// Authority of etcd's certificate
    #[arg(long = "etcd-cafile", value_name = "FILE", requires = "endpoints", value_parser = existing_file)]
    ca: Option<PathBuf>,
    /// Client certificate for etcd
    #[arg(long = "etcd-certfile", value_name = "FILE", requires_all = ["endpoints", "key"], value_parser = existing_file)]
    certificate: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long = "etcd-keyfile", value_name = "FILE", requires = "certificate", value_parser = existing_file)]
    key: Option<PathBuf>,
}

/// What speaks TLS with etcd; absolute paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Files {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

impl Flags {
    pub(crate) fn check(&self) -> Result<()> {
        match self.endpoints.iter().find(|url| url.starts_with("https://")) {
            Some(url) if self.ca.is_none() => bail!("who may {url} be? Name its authority with --etcd-cafile"),
            _ => Ok(()),
        }
    }

    pub(crate) fn files(&self) -> Files {
        Files { ca: self.ca.clone(), certificate: self.certificate.clone(), key: self.key.clone() }
    }
}

/// Long enough for one that is being started, too short for a person to wonder.
const LIMIT: Duration = Duration::from_secs(15);
const ONE_CALL: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(500);

/// Before anything is made that would wait for it in vain.
pub(crate) fn await_answer(endpoints: &[String], files: &Files) -> Result<()> {
    if endpoints.is_empty() {
        return Ok(());
    }
    let etcd = Etcd {
        endpoints: endpoints.to_vec(),
        ca_file: files.ca.clone(),
        cert_file: files.certificate.clone(),
        key_file: files.key.clone(),
    };
    // Nodes' namespaces are made by a process with one thread: those of the client end with this one.
    let waiter = thread::spawn(move || crate::small_runtime()?.block_on(wait(&etcd)));
    waiter.join().expect("waiting does not panic")
}

async fn wait(etcd: &Etcd) -> Result<()> {
    let (began, at) = (Instant::now(), format!("etcd at {}", etcd.endpoints.join(",")));
    let mut tell_at = began;
    loop {
        let outcome = timeout(ONE_CALL, etcd.check()).await;
        let outcome = outcome.with_context(|| format!("no answer within {ONE_CALL:?}")).flatten();
        let Err(why) = outcome else { return Ok(()) };
        if began.elapsed() > LIMIT {
            bail!(
                "gave up after {LIMIT:?}: {at} does not serve us ({why:#}). Does it run, and are the --etcd-… flags its own?"
            );
        }
        if Instant::now() >= tell_at {
            eprintln!("{} waiting for {at}: {why:#}", bold("note:"));
            tell_at += LIMIT / 3;
        }
        sleep(PAUSE).await;
    }
}

/// Absolute: the server is started in another directory.
fn existing_file(text: &str) -> Result<PathBuf, String> {
    std::fs::canonicalize(text).map_err(|error| error.to_string())
}
