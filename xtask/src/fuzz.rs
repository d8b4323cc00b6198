//! `cargo xtask fuzz`: hostile packets in numbers, against the decisions on the host and the programs in the kernel.

use anyhow::Result;
use clap::Args;

use crate::step::{self, cargo, require_root, say};
use crate::{build, setup};

#[derive(Args)]
pub(crate) struct Options {
    /// How many packets for the parser and the decisions
    #[arg(long, default_value_t = 100_000_000)]
    inputs: u64,
    /// How many for the programs in the kernel
    #[arg(long, default_value_t = 1_000_000)]
    kernel_inputs: u64,
    /// The first seed; a failure names the one to see it again with
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    say(&format!("{} packets against the parser and the decisions", options.inputs));
    let (inputs, seed) = (options.inputs.to_string(), options.seed.to_string());
    step::run(
        cargo()
            .args(["run", "--profile", "fuzz", "-p", "leme-tests-fuzz", "--", "--inputs", &inputs])
            .args(["--seed", &seed]),
    )?;
    if options.kernel_inputs == 0 {
        return Ok(());
    }
    require_root("loading programs")?;
    setup::for_tests()?;
    build::programs()?;
    say(&format!("{} packets against the programs in the kernel", options.kernel_inputs));
    step::run(
        cargo()
            .args(["test", "--profile", "ci", "-p", "leme-tests-packets", "--test", "fuzz", "--", "--test-threads=1"])
            .env("LEME_FUZZ_INPUTS", options.kernel_inputs.to_string())
            .env("LEME_FUZZ_SEED", &seed),
    )
}
