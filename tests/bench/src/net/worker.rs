//! Processes of this very program inside the nodes made for measuring: servers, and clients that wait for commands.
//!
//! Both end when their standard input does, which is when the measuring process is gone, however it went.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use leme_measure::load::{burst, wait_for};
use leme_measure::{Burst, Kind};
use serde::{Deserialize, Serialize};

use super::namespace::Namespace;
use crate::enter::Place;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
}

#[derive(Serialize, Deserialize)]
enum Order {
    Burst { kind: String, target: SocketAddr, millis: u64 },
    Wait { target: SocketAddr },
}

const PATIENCE: Duration = Duration::from_secs(10);

/// `leme-bench client`: one order per line, one answer per line.
pub(crate) fn run(options: &Options) -> Result<()> {
    options.place.enter()?;
    for line in std::io::stdin().lines() {
        let answer = obey(&serde_json::from_str(&line?)?).map_err(|error| format!("{error:#}"));
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

fn obey(order: &Order) -> Result<Option<Burst>> {
    match order {
        Order::Burst { kind, target, millis } => {
            burst(kind.parse()?, *target, Duration::from_millis(*millis)).map(Some)
        }
        Order::Wait { target } => wait_for(*target, PATIENCE).map(|()| None),
    }
}

pub(crate) struct Client {
    process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    pub(crate) fn start(net: &Namespace, cgroup: &Path) -> Result<Self> {
        let mut child = within("client", net, cgroup).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Self { process: Process(child), input, output })
    }

    pub(crate) fn burst(&mut self, kind: Kind, target: SocketAddr, length: Duration) -> Result<Burst> {
        let order = Order::Burst { kind: kind.name().into(), target, millis: length.as_millis() as u64 };
        self.order(&order)?.context("a burst without a result")
    }

    pub(crate) fn wait_for(&mut self, target: SocketAddr) -> Result<()> {
        self.order(&Order::Wait { target }).map(drop)
    }

    fn order(&mut self, order: &Order) -> Result<Option<Burst>> {
        writeln!(self.input, "{}", serde_json::to_string(order)?)?;
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("a client has ended: {:?}", self.process.0.try_wait());
        }
        serde_json::from_str::<std::result::Result<_, String>>(&line)?.map_err(anyhow::Error::msg)
    }
}

/// A server on the port, which may take a moment to listen.
pub(crate) fn serve(net: &Namespace, cgroup: &Path, port: u16) -> Result<Process> {
    let mut command = within("serve", net, cgroup);
    Ok(Process(command.args(["--until-eof", "--port", &port.to_string()]).spawn()?))
}

fn within(verb: &str, net: &Namespace, cgroup: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(verb).arg("--net").arg(net.path()).arg("--cgroup").arg(cgroup).stdin(Stdio::piped());
    command
}

/// Ends with its owner.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
