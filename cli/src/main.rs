//! `leme`: the one binary. It parses, wires and waits; what it wires lives in the crates of the control plane, the
//! node and the datapath, and what it adds of its own are local clusters (`cluster`).

mod agent;
mod bench;
mod bpf;
mod cluster;
mod dns;
mod host;
mod manual;
mod output;
mod server;
mod store;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// A Kubernetes cluster in one binary, its network in eBPF.
#[derive(Parser)]
#[command(
    version,
    propagate_version = true,
    after_help = "Examples:
  leme up --nodes 3        a local cluster of three nodes, and a kubeconfig context for it
  leme status              what runs where, and how it is
  leme down                remove it, every trace"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "one value per process")]
enum Command {
    /// Make a local cluster, or bring back one that is stopped or half made
    Up(cluster::up::Options),
    /// Remove a local cluster and every trace of it
    Down(cluster::down::Options),
    /// Show a local cluster's nodes and their processes
    #[command(after_help = "Examples:
  leme status              of the cluster leme
  leme status -o json      for tools")]
    Status(cluster::status::Options),
    /// Enter, stop and start the nodes of a local cluster
    Node(cluster::node::Options),
    /// Images of a local cluster
    Image(cluster::image::Options),
    /// Print the kubeconfig of a local cluster
    Kubeconfig(cluster::kubeconfig::Options),
    /// Make this machine the first of a cluster
    Init(host::init::Options),
    /// Make this machine a node of a cluster
    Join(host::join::Options),
    /// Take this machine out of its cluster and remove what init or join made
    Reset(host::reset::Options),
    /// Tokens with which machines join
    Token(host::token::Options),
    /// Run the control plane: API server, controllers and scheduler
    Server(server::Options),
    /// Snapshots of a server's state, the way back, and the way to another store
    Store(store::Options),
    /// Run a node: kubelet and network
    Agent(agent::Options),
    /// Run a node's name server
    Dns(dns::Options),
    /// Show the tables of a node's datapath as the kernel holds them
    Bpf(bpf::Options),
    /// Measure the network of a cluster, whoever's it is
    Bench(bench::Options),
    /// Print a completion script
    #[command(after_help = "Examples:
  leme completion bash > /etc/bash_completion.d/leme
  leme completion zsh > /usr/local/share/zsh/site-functions/_leme
  leme completion fish > ~/.config/fish/completions/leme.fish")]
    Completion { shell: clap_complete::Shell },
    /// Print the version
    Version,
    /// Write the man pages (for packages)
    #[command(hide = true)]
    Manual(manual::Options),
    /// Hold a local node's processes (started by `up`)
    #[command(hide = true)]
    Supervise(cluster::supervisor::Options),
    /// Hold this machine's server and agent (started by `init` and `join`)
    #[command(hide = true)]
    SuperviseHost,
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    if command.only_prints() {
        restore_sigpipe();
    }
    match dispatch(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{} {}", output::red("error:"), output::causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(options) => small_runtime()?.block_on(cluster::up::run(options)).map(done),
        Command::Down(options) => small_runtime()?.block_on(cluster::down::run(&options)).map(done),
        Command::Status(options) => small_runtime()?.block_on(cluster::status::run(&options)),
        Command::Node(options) => cluster::node::run(options),
        Command::Image(options) => small_runtime()?.block_on(cluster::image::run(options)).map(done),
        Command::Kubeconfig(options) => cluster::kubeconfig::run(&options).map(done),
        Command::Server(options) => serve(|shutdown| server::run(options, shutdown)),
        Command::Store(options) => small_runtime()?.block_on(store::run(options)).map(done),
        Command::Agent(options) => serve_small(|shutdown| agent::run(options, shutdown)),
        Command::Dns(options) => serve_small(|shutdown| dns::run(options, shutdown)),
        Command::Bpf(options) => bpf::run(&options).map(done),
        Command::Bench(options) => bench::run(options),
        Command::Init(options) => small_runtime()?.block_on(host::init::run(options)).map(done),
        Command::Join(options) => small_runtime()?.block_on(host::join::run(options)).map(done),
        Command::Reset(options) => small_runtime()?.block_on(host::reset::run(&options)).map(done),
        Command::Token(options) => small_runtime()?.block_on(host::token::run(options)).map(done),
        Command::SuperviseHost => host::supervisor::run().map(done),
        Command::Supervise(options) => cluster::supervisor::run(&options).map(done),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "leme", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Manual(options) => manual::run(&options, Arguments::command()).map(done),
        Command::Version => {
            println!("leme {} (Kubernetes {})", env!("CARGO_PKG_VERSION"), leme_agent::config::KUBELET_VERSION);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

/// For commands that mostly wait.
fn small_runtime() -> Result<Runtime> {
    install_crypto();
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// A part that was asked to end and has not after this long is left behind: nothing it does needs its consent.
const LAST_MOMENT: Duration = Duration::from_secs(4);

/// Runs a long-lived part until it ends or a signal asks it to.
fn serve<F>(part: impl FnOnce(CancellationToken) -> F) -> Result<ExitCode>
where
    F: Future<Output = Result<()>>,
{
    run_until_ended(Builder::new_multi_thread().enable_all().build()?, part)
}

/// The same for parts that stand on every node of a cluster and mostly wait: two threads, on however many cores.
fn serve_small<F>(part: impl FnOnce(CancellationToken) -> F) -> Result<ExitCode>
where
    F: Future<Output = Result<()>>,
{
    leme_agent::memory::keep_small();
    run_until_ended(Builder::new_multi_thread().worker_threads(2).enable_all().build()?, part)
}

fn run_until_ended<F>(runtime: Runtime, part: impl FnOnce(CancellationToken) -> F) -> Result<ExitCode>
where
    F: Future<Output = Result<()>>,
{
    install_crypto();
    start_logging();
    let outcome = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        tokio::spawn(cancel_on_signal(shutdown.clone()));
        tokio::select! {
            outcome = part(shutdown.clone()) => outcome,
            () = overdue(shutdown) => Ok(()),
        }
    });
    // Before anything can return: dropping a runtime waits for tasks that still block.
    runtime.shutdown_background();
    outcome.map(done)
}

async fn overdue(shutdown: CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(LAST_MOMENT).await;
    tracing::warn!("not everything ended within {LAST_MOMENT:?}; leaving it");
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be handled");
    let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be handled");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    shutdown.cancel();
}

fn install_crypto() {
    // An error only says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// `LEME_LOG` says what is logged, like `info,leme_agent=debug`. Patterns over fields are not among it: they would take an
/// engine for regular expressions into every agent's memory.
fn start_logging() {
    let told = std::env::var("LEME_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let targets = told.unwrap_or_else(|| Targets::new().with_default(tracing::Level::INFO));
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines).with(targets).init();
}

impl Command {
    /// What changes something, or serves, must live when somebody stops reading: from a pipe, but also from a socket.
    fn only_prints(&self) -> bool {
        matches!(self, Self::Status(_) | Self::Bpf(_) | Self::Kubeconfig(_) | Self::Completion { .. } | Self::Version)
    }
}

/// `leme … | head` ends quietly, like any other tool.
fn restore_sigpipe() {
    // SAFETY: restores the default disposition before any thread exists.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_every_command_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn of_a_flag_said_twice_the_last_counts_for_parts_that_units_start() {
        for part in ["server", "agent"] {
            let flags = ["leme", part, "--kubeconfig", "a", "--cluster-domain", "one", "--cluster-domain", "two"];
            let flags = flags.iter().filter(|flag| part == "agent" || !["--kubeconfig", "a"].contains(flag));
            let matches = Arguments::command().try_get_matches_from(flags).unwrap();
            let domain = matches.subcommand().unwrap().1.get_one::<String>("cluster_domain").unwrap();
            assert_eq!(domain, "two", "{part}");
        }
    }

    /// Commands of which there is nothing to show but their name.
    const SELF_EVIDENT: [&str; 1] = ["leme version"];

    #[test]
    fn every_command_shows_examples() {
        let mut command = Arguments::command();
        command.build();
        assert_eq!(without_examples(&command, "leme"), SELF_EVIDENT);
    }

    fn without_examples(command: &clap::Command, name: &str) -> Vec<String> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let shown = help.starts_with("Example") && help.contains(&format!("{name} "));
        let below = command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help");
        let below = below.flat_map(|below| without_examples(below, &format!("{name} {}", below.get_name())));
        (!shown).then(|| name.to_owned()).into_iter().chain(below).collect()
    }
}
