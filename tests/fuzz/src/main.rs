//! Runs sessions until enough packets have been tried; the first that something is wrong with ends it and says how to
//! see it again.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use anyhow::Result;
use clap::Parser;
use leme_tests_fuzz::{PACKETS, Session};

/// Hostile packets against the datapath's parser and decisions
#[derive(Parser)]
struct Arguments {
    /// How many packets
    #[arg(long, default_value_t = 100_000_000)]
    inputs: u64,
    /// The first session's seed; the others follow it
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (began, threads) = (Instant::now(), thread::available_parallelism().map_or(1, usize::from) as u64);
    let sessions = arguments.inputs.div_ceil(PACKETS);
    let failed = &AtomicBool::new(false);
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let run = |n| scope.spawn(move || work(arguments.seed + n, arguments.seed + sessions, threads, failed));
        let workers: Vec<_> = (0..threads).map(run).collect();
        workers.into_iter().map(|worker| worker.join().expect("a panic has been printed")).collect()
    });
    match outcomes.into_iter().find_map(Result::err) {
        None => {
            let seconds = began.elapsed().as_secs_f64();
            println!("{} packets in {sessions} sessions, {seconds:.0} s: all is well", sessions * PACKETS);
            ExitCode::SUCCESS
        }
        Some(error) => {
            println!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn work(first: u64, end: u64, step: u64, failed: &AtomicBool) -> Result<()> {
    let mut session = Session::new();
    for seed in (first..end).step_by(step as usize) {
        if failed.load(Ordering::Relaxed) {
            break;
        }
        if let Err(error) = session.run(seed) {
            failed.store(true, Ordering::Relaxed);
            return Err(error);
        }
    }
    Ok(())
}
