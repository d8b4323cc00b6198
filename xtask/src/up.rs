//! `cargo xtask up` and `down`: from nothing to an answering nginx on three nodes, and back.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::step::{self, command, output, require_root, say};
use crate::{build, images, place, registry, setup};

#[derive(Args)]
pub(crate) struct Options {
    /// How many nodes
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    #[command(flatten)]
    build: build::Options,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    require_root("a local cluster")?;
    setup::run()?;
    let built = build::build(&options.build)?;
    let registry = registry::start()?;
    images::push_all(registry)?;
    say("Starting the cluster");
    let nodes = options.nodes.to_string();
    step::run(command(&built.leme).args(["up", "--nodes", &nodes]).args(registry::mirror_arguments()))?;
    deploy()?;
    explain(&built.leme.display().to_string())
}

/// Removes the cluster and the registry; what is not there is removed.
pub(crate) fn down() -> Result<()> {
    require_root("removing a local cluster")?;
    let leme = ["ci", "release", "debug"].map(|profile| place::target().join(profile).join("leme"));
    let removed = match leme.iter().find(|path| path.exists()) {
        Some(leme) => step::run(command(leme).arg("down")),
        None => {
            bail!("no built leme in {}: run `cargo xtask build`, then `cargo xtask down`", place::target().display())
        }
    };
    registry::stop()?;
    removed
}

fn kubectl(arguments: &[&str]) -> Result<String> {
    output(command(setup::kubectl()?).args(arguments))
}

fn deploy() -> Result<()> {
    say("Deploying nginx with three replicas behind a NodePort");
    if kubectl(&["get", "deployment", "nginx"]).is_err() {
        kubectl(&["create", "deployment", "nginx", "--image=nginx", "--replicas=3"])?;
    }
    if kubectl(&["get", "service", "nginx"]).is_err() {
        kubectl(&["expose", "deployment", "nginx", "--port=8000", "--target-port=80", "--type=NodePort"])?;
    }
    kubectl(&["rollout", "status", "deployment/nginx", "--timeout=120s"]).map(drop)
}

fn explain(leme: &str) -> Result<()> {
    let port = kubectl(&["get", "service", "nginx", "-o", "jsonpath={.spec.ports[0].nodePort}"])?;
    let node = r#"jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}"#;
    let address = format!("{}:{port}", kubectl(&["get", "nodes", "-o", node])?);
    let answer = request(&address)?;
    println!("\n{}\n{}", kubectl(&["get", "nodes,pods,services", "-o", "wide"])?, answer.trim());
    println!(
        "\nThat was http://{address}, a NodePort forwarded by eBPF to one of three pods.\n\n\
         Use it:      kubectl get pods -o wide          (the context `leme` is set)\n\
         A node:      {leme} node exec leme-2 -- bash\n\
         Its health:  {leme} status\n\
         Remove it:   cargo xtask down"
    );
    Ok(())
}

/// The NodePort answers as soon as the nodes' tables show the new endpoints.
fn request(address: &str) -> Result<String> {
    use std::io::{Read, Write};
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let attempt = || -> Result<String> {
            let target = address.parse().context("not an address")?;
            let mut stream = std::net::TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            write!(stream, "GET / HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        match attempt() {
            Ok(text) if text.contains(" 200 ") => return Ok(text),
            outcome if Instant::now() > deadline => bail!("http://{address} did not answer: {outcome:?}"),
            _ => sleep(Duration::from_millis(100)),
        }
    }
}
