//! `cargo xtask bench <what>`: measures the released build and prints rows that all look alike (`row`), as a table
//! and with `--json FILE` as JSON lines too.
//!
//! What is measured and how is in `smoke`; what needs a client of Kubernetes or containerd is in `tests/bench`, whose
//! program this one starts.

mod cluster;
mod measurement;
mod memory;
mod row;
mod smoke;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum What {
    /// A cluster's start, memory at rest, pods' start, Services beside pods' own addresses; some five minutes
    Smoke(smoke::Options),
}

pub(crate) fn run(what: &What) -> Result<()> {
    match what {
        What::Smoke(options) => smoke::run(options),
    }
}
