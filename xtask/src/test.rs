//! `cargo xtask test`: everything that can fail, cheapest first, ending with the ordinary runner's lines.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::step::{self, cargo, require_root, say};
use crate::{build, images, kernels, registry, setup};

#[derive(Args)]
pub(crate) struct Options {
    /// Only these suites, in this order
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// Passed to the test runner: names of tests
    #[arg(last = true)]
    filter: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Suite {
    /// `cargo test` of everything that needs neither root nor a BPF toolchain, the stores' contract on etcd included
    Unit,
    /// Programs in the kernel: packets in, verdicts and packets out
    Packets,
    /// The programs on other kernels, in virtual machines
    Kernels,
    /// Real clusters with the real kubectl
    Cluster,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let all = [Suite::Unit, Suite::Packets, Suite::Kernels, Suite::Cluster];
    let suites = if options.suites.is_empty() { &all[..] } else { &options.suites };
    require_root("testing the data path")?;
    setup::for_tests()?;
    let built = build::build(&build::Options::default())?;
    let mut failed = Vec::new();
    for suite in suites {
        let (name, outcome) = match suite {
            Suite::Unit => ("unit", unit(&options.filter)),
            Suite::Packets => ("packets", package("leme-tests-packets", &built, &options.filter)),
            Suite::Kernels => {
                ("kernels", kernels::fetch().and_then(|()| package("leme-tests-kernels", &built, &options.filter)))
            }
            Suite::Cluster => ("cluster", cluster(&built, &options.filter)),
        };
        if let Err(error) = outcome {
            eprintln!("{error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn unit(filter: &[String]) -> Result<()> {
    say("Unit tests, and the stores' contract on both engines");
    step::run(
        cargo()
            .args(["test", "--profile", "ci", "--"])
            .args(filter)
            .env("LEME_ETCD", setup::etcd()?)
            .env("LEME_TEST_ETCD", "1"),
    )
}

fn package(name: &str, built: &build::Built, filter: &[String]) -> Result<()> {
    say(&format!("Tests of {name}"));
    step::run(
        cargo()
            .args(["test", "--profile", "ci", "-p", name, "--", "--test-threads=1"])
            .args(filter)
            .env("LEME_BIN", &built.leme)
            .env("LEME_CNI_BIN", &built.cni)
            .env("LEME_ETCD", setup::etcd()?)
            .env("LEME_KUBECTL", setup::kubectl()?)
            .env("LEME_KERNELS", kernels::folders()?)
            .env("LEME_TEST_MIRRORS", registry::mirror_arguments().join(" ")),
    )
}

fn cluster(built: &build::Built, filter: &[String]) -> Result<()> {
    let registry = registry::start()?;
    let outcome = images::push_all(registry).and_then(|()| package("leme-tests-cluster", built, filter));
    registry::stop()?;
    outcome
}
