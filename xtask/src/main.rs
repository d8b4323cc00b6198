//! `cargo xtask <verb>`: the only command surface of this repository; CI calls nothing else.
//!
//! Each verb is one file. This program compiles in seconds and knows nothing of what it builds: it installs tools,
//! calls cargo and starts the `leme` it has built.

mod artifacts;
mod bench;
mod build;
mod debian;
mod dist;
mod fuzz;
mod images;
mod kernels;
mod oci;
mod place;
mod registry;
mod setup;
mod step;
mod test;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set up, build, try and test Leme.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building and running need and this machine lacks (Debian 12, as root)
    Setup,
    /// Build the eBPF programs, `leme` and `leme-cni`
    Build(build::Options),
    /// Assemble the images for machines without internet into the local registry's store
    Images,
    /// A three-node cluster with an nginx deployment behind a NodePort
    Up(up::Options),
    /// Remove the cluster of `up`, its registry and every trace of both
    Down,
    /// Run all tests: units, stores, packets, scenarios, CNI, kernels, clusters, survival
    Test(test::Options),
    /// Throw hostile packets at the datapath
    Fuzz(fuzz::Options),
    /// Make what people install: a tarball and a Debian package of the release
    Dist(dist::Options),
    /// Measure the released build
    #[command(subcommand)]
    Bench(bench::What),
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Setup => setup::run(),
        Verb::Build(options) => build::run(&options).map(drop),
        Verb::Images => images::run(),
        Verb::Up(options) => up::run(&options),
        Verb::Down => up::down(),
        Verb::Test(options) => test::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Dist(options) => dist::run(&options),
        Verb::Bench(what) => bench::run(&what),
    }
}
