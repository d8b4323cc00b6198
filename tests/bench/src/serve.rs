//! The other end of `load`. Ends with its standard input where it was started with one to end with.

use std::io::Read;

use anyhow::Result;
use clap::Args;
use leme_measure::serve;

use crate::enter::Place;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    port: u16,
    /// End when standard input does
    #[arg(long)]
    until_eof: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    options.place.enter()?;
    serve::start(options.port)?;
    if options.until_eof {
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    loop {
        std::thread::park();
    }
}
