//! `cargo xtask bench store`: the embedded store beside a real etcd on the same disk, with one, fifty and five hundred
//! clients. `leme-bench store` measures; here etcd is started, and lines become rows, a table, JSON and a page.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::{env, fs, process};

use anyhow::{Context, Result};
use clap::Args;
use leme_measure::machine::Machine;
use leme_measure::report::Report;
use leme_measure::{Row, row};

use super::net::{lines_of, repeating};
use super::programs::{self, Programs};
use crate::step::{command, output, say};
use crate::{place, setup};

#[derive(Args)]
pub(crate) struct Options {
    /// Measure with the `leme-bench` beside this `leme` instead of building the release
    #[arg(long, value_name = "FILE")]
    bin: Option<PathBuf>,
    /// Write the rows as JSON lines, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// How many ask at once, each number in turn
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    clients: Vec<u32>,
    /// Bursts on each store
    #[arg(long, default_value_t = 3)]
    rounds: u16,
    /// How long one burst lasts
    #[arg(long, default_value_t = 1500)]
    millis: u32,
}

const ABOUT: &str = "The engines under the API server, asked directly: durable creates of 2 KiB, reads of one key, lists \
    of 500, and events delivered to watchers while 16 write. The stores take turns in bursts of a second and a half; a \
    ratio is of two bursts of the same round.";

pub(crate) fn run(options: &Options) -> Result<()> {
    let programs = Programs::find(options.bin.as_deref())?;
    let directory = Directory::make()?;
    let etcd = Etcd::start(&directory.0)?;
    say("Measuring the stores");
    let mut bench = command(&programs.tool);
    bench.args(["store", "--etcd", &etcd.endpoint, "--directory"]).arg(&directory.0);
    bench.args(["--rounds", &options.rounds.to_string(), "--millis", &options.millis.to_string()]);
    if !options.clients.is_empty() {
        let clients: Vec<_> = options.clients.iter().map(u32::to_string).collect();
        bench.args(["--clients", &clients.join(",")]);
    }
    let rows: Vec<_> = lines_of(bench)?.into_iter().filter_map(Row::of).collect();
    let machine = Machine::here();
    println!("{}, {machine}\n\n{}", programs::subject(options.bin.as_deref()), row::table(&rows));
    if let Some(path) = &options.json {
        row::write_json(&rows, path)?;
    }
    options.html.as_deref().map_or(Ok(()), |path| write_page(options, &machine, &rows, path))
}

fn write_page(options: &Options, machine: &Machine, rows: &[Row], path: &Path) -> Result<()> {
    let date = output(command("date").args(["-u", "+%F"]))?;
    let report = Report {
        title: "Leme's stores, measured",
        about: ABOUT,
        subject: &programs::subject(options.bin.as_deref()),
        machine,
        date: date.trim(),
        commands: &[format!("cargo xtask {}", repeating(env::args().skip(1)))],
        rows,
    };
    report.write(path)?;
    say(&format!("The page is {}", path.display()));
    Ok(())
}

/// On the disk of the build, where other stores would be, too: `/tmp` may be memory.
struct Directory(PathBuf);

impl Directory {
    fn make() -> Result<Self> {
        let path = place::target().join(format!("bench-store-{}", process::id()));
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Etcd {
    process: Child,
    endpoint: String,
}

impl Etcd {
    fn start(directory: &Path) -> Result<Self> {
        let free = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let urls: Vec<_> =
            free.iter().map(|port| port.local_addr().map(|it| format!("http://{it}"))).collect::<Result<_, _>>()?;
        drop(free);
        let (client, peer) = (&urls[0], &urls[1]);
        let process = command(setup::etcd()?)
            .arg("--data-dir")
            .arg(directory.join("etcd"))
            .args(["--listen-client-urls", client, "--advertise-client-urls", client])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
            .args(["--quota-backend-bytes", "8589934592"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start etcd")?;
        Ok(Self { process, endpoint: client.clone() })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
