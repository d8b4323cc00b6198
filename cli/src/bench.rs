//! `leme bench`: measures the network of the cluster that kubectl talks to, whoever's it is.
//!
//! `net` runs pods that are `leme` itself (`serve` and `load`), in an image that `image` makes of the running binary; so
//! nothing has to be published anywhere, and what measures is what the user has.

mod image;
mod load;
mod net;
mod pods;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
#[command(after_help = "Example:
  leme bench net --html report.html     the network of the cluster that kubectl talks to")]
pub(crate) struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure the pod network and Services of a cluster, beside pods' own addresses
    Net(net::Options),
    /// Write the image that `net` runs, as an archive to load or push
    Image(image::Options),
    /// Answer load (in a pod of `net`)
    #[command(hide = true)]
    Serve(load::Serve),
    /// Load some addresses in turn (in a pod of `net`)
    #[command(hide = true)]
    Load(load::Options),
}

pub(crate) fn run(options: Options) -> Result<ExitCode> {
    match options.verb {
        Verb::Net(options) => crate::small_runtime()?.block_on(net::run(options)),
        Verb::Image(options) => image::run(&options),
        Verb::Serve(options) => load::serve(&options),
        Verb::Load(options) => load::run(&options),
    }
    .map(|()| ExitCode::SUCCESS)
}
