//! How long a server takes from exec until `/readyz` says so: on an empty data directory, where it makes its keys and
//! first objects, and on a filled one.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use kube::Client;
use leme_measure::Measurement;

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    bin: PathBuf,
    /// An empty directory
    #[arg(long)]
    folder: PathBuf,
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn run(options: Options) -> Result<()> {
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for run in 0..options.runs {
        let data = options.folder.join(run.to_string());
        first.push(measure(&options.bin, &data).await?);
        again.push(measure(&options.bin, &data).await?);
    }
    for (subject, samples) in [("leme, first start", first), ("leme, restart", again)] {
        Measurement::new("server: exec to ready", subject, "s", samples).print()?;
    }
    Ok(())
}

async fn measure(bin: &Path, data: &Path) -> Result<f64> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut config = kube::Config::new(format!("https://127.0.0.1:{port}").parse()?);
    config.accept_invalid_certs = true;
    let client = Client::try_from(config)?;
    let began = Instant::now();
    let mut server = start(bin, data, port)?;
    let outcome = tokio::time::timeout(LIMIT, ready(&client, &mut server)).await;
    let took = began.elapsed();
    stop(&mut server)?;
    outcome.context("the server does not become ready")??;
    Ok(took.as_secs_f64())
}

fn start(bin: &Path, data: &Path, port: u16) -> Result<Child> {
    let mut command = Command::new(bin);
    command.args(["server", "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1"]);
    command.args(["--secure-port", &port.to_string(), "--data-dir"]).arg(data);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("cannot start {}", bin.display()))
}

async fn ready(client: &Client, server: &mut Child) -> Result<()> {
    loop {
        let request = http_get("/readyz")?;
        if client.request_text(request).await.is_ok() {
            return Ok(());
        }
        if let Some(status) = server.try_wait()? {
            bail!("the server ended: {status}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

/// At once: how it ends is not what is measured.
fn stop(server: &mut Child) -> Result<()> {
    server.kill()?;
    server.wait().map(drop).context("cannot wait for the server")
}
