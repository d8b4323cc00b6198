//! `leme-bench`: the measuring part of `cargo xtask bench`, which starts it and makes rows of what it prints.
//!
//! Each verb measures one thing from outside, as a client of the API, of containerd or of a socket, and prints one
//! JSON line per measurement (`measurement`). It never imports the product.

mod api;
mod cri;
mod enter;
mod load;
mod measurement;
mod pods;
mod ready;
mod serve;
mod services;

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
    }
}

/// Entering a pod wants a single thread, so only the verbs that wait for others get a runtime.
fn wait(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
