//! `cargo xtask bench <what>`: measures the released build and prints rows that all look alike (`leme_measure::row`), as
//! a table and with `--json FILE` as JSON lines too.
//!
//! What is measured and how is in `smoke` and `net`; what needs a client of Kubernetes or containerd, or the datapath
//! itself, is in `tests/bench`, whose program this one starts.

mod cluster;
mod memory;
mod net;
mod programs;
mod smoke;
mod store;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum What {
    /// A cluster's start, memory at rest, pods' start, Services beside pods' own addresses; some five minutes
    Smoke(smoke::Options),
    /// The datapath beside rules of iptables and nftables, a plain bridge and pods' own addresses; some twenty minutes
    Net(net::Options),
    /// The embedded store beside etcd with one, fifty and five hundred clients; under three minutes
    Store(store::Options),
}

pub(crate) fn run(what: &What) -> Result<()> {
    match what {
        What::Smoke(options) => smoke::run(options),
        What::Net(options) => net::run(options),
        What::Store(options) => store::run(options),
    }
}
