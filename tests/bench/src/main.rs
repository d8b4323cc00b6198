//! `leme-bench`: the measuring part of `cargo xtask bench`, which starts it and makes rows of what it prints.
//!
//! Each verb measures one thing from outside, as a client of the API, of containerd or of a socket, and prints one
//! JSON line per measurement. Of the product it imports one crate, the datapath, and only for `net`.

mod agent;
mod api;
mod cri;
mod enter;
mod load;
mod net;
mod pods;
mod ready;
mod serve;
mod services;
mod store;

use anyhow::Result;
use clap::Parser;

/// Measures a running cluster, or a server of its own.
#[derive(Parser)]
#[command(disable_help_subcommand = true)]
enum Verb {
    /// From a server's exec to its readiness, with an empty and with a filled data directory
    Ready(ready::Options),
    /// From a pod's creation to Running, beside the same calls made to the runtime alone
    Pods(pods::Options),
    /// A Service's address beside its only pod's own
    Services(services::Options),
    /// Load two addresses in turn, from inside a pod
    Load(load::Options),
    /// Answer `load`, inside a pod
    Serve(serve::Options),
    /// The datapath beside rules of iptables and nftables and a plain bridge, in namespaces of its own
    Net(net::Options),
    /// A node's agent with many Services: memory and processor time
    Agent(agent::Options),
    /// The embedded store beside etcd
    Store(store::Options),
    /// Load what standard input says, inside a node of `net`
    Client(net::worker::Options),
}

fn main() -> Result<()> {
    // An error only says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Verb::parse() {
        Verb::Ready(options) => wait(ready::run(options)),
        Verb::Pods(options) => wait(pods::run(options)),
        Verb::Services(options) => wait(services::run(options)),
        Verb::Load(options) => load::run(&options),
        Verb::Serve(options) => serve::run(&options),
        Verb::Agent(options) => wait(agent::run(options)),
        Verb::Net(options) => net::run(&options),
        Verb::Store(options) => store::run(&options),
        Verb::Client(options) => net::worker::run(&options),
    }
}

/// Entering a pod wants a single thread, so only the verbs that wait for others get a runtime.
fn wait(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
