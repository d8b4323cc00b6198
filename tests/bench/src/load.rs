//! Load on two addresses in turn, A B B A …, in short bursts: whatever else the machine does meets both alike.
//!
//! Started by `services` inside a pod; prints one pair of rates per line.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use leme_measure::Kind;
use leme_measure::load::{burst, wait_for};

use crate::enter::Place;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    kind: Kind,
    a: SocketAddr,
    b: SocketAddr,
    #[arg(long)]
    pairs: usize,
    /// Of one burst
    #[arg(long)]
    millis: u64,
}

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn run(options: &Options) -> Result<()> {
    options.place.enter()?;
    let length = Duration::from_millis(options.millis);
    let rate = |target| Ok::<_, anyhow::Error>(burst(options.kind, target, length)?.rate);
    for target in [options.a, options.b] {
        wait_for(target, PATIENCE)?;
        rate(target)?;
    }
    for pair in 0..options.pairs {
        let (a, b);
        if pair % 2 == 0 {
            (a, b) = (rate(options.a)?, rate(options.b)?);
        } else {
            (b, a) = (rate(options.b)?, rate(options.a)?);
        }
        println!("{a} {b}");
    }
    Ok(())
}
