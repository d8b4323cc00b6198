//! `cargo xtask test`: everything that can fail, cheapest first, ending with the ordinary runner's lines.
//!
//! One build makes all of it, then the runners are started one by one. (No documentation here has tests in it.)

use std::process::Command;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::artifacts::{Artifacts, Runner};
use crate::step::{self, command, require_root, say};
use crate::{build, dist, images, kernels, place, registry, setup};

#[derive(Args)]
pub(crate) struct Options {
    /// Only these suites, in this order
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// Passed to the test runner: names of tests
    #[arg(last = true)]
    filter: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// `cargo test` of everything that needs neither root nor a BPF toolchain, the stores' contract on etcd included
    Unit,
    /// Programs in the kernel: packets in, verdicts and packets out
    Packets,
    /// The CNI plugin and the agent's server, with real links and programs in namespaces
    Cni,
    /// The programs on other kernels, in virtual machines: they load, decide as the packet tests say, carry traffic
    Kernels,
    /// Real clusters with the real kubectl
    Cluster,
    /// The packages: installed, upgraded and purged in a copy of this machine
    Dist,
    /// A cluster that much happens to while clients go on asking: LEME_SURVIVAL=full for all of it
    Survival,
}

/// Test packages that are suites of their own; all others are units.
const SUITES: [(Suite, &str); 6] = [
    (Suite::Packets, "tests/packets"),
    (Suite::Cni, "tests/cni"),
    (Suite::Kernels, "tests/kernels"),
    (Suite::Dist, "tests/package"),
    (Suite::Cluster, "tests/cluster"),
    (Suite::Survival, "tests/survival"),
];

pub(crate) fn run(options: &Options) -> Result<()> {
    let all = [Suite::Unit, Suite::Packets, Suite::Cni, Suite::Dist, Suite::Kernels, Suite::Cluster, Suite::Survival];
    let suites = if options.suites.is_empty() { &all[..] } else { &options.suites };
    require_root("testing the data path")?;
    setup::for_tests()?;
    build::programs()?;
    say("Building everything and its tests (profile ci)");
    let artifacts = Artifacts::build()?;
    let mut failed = Vec::new();
    for suite in suites {
        if let Err(error) = suite.run(&artifacts, &options.filter) {
            eprintln!("{error:#}");
            failed.push(suite.name());
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Suite::Unit => "unit",
            Suite::Packets => "packets",
            Suite::Cni => "cni",
            Suite::Kernels => "kernels",
            Suite::Dist => "dist",
            Suite::Cluster => "cluster",
            Suite::Survival => "survival",
        }
    }

    fn run(self, artifacts: &Artifacts, filter: &[String]) -> Result<()> {
        match self {
            Suite::Unit => say("Unit tests, and the stores' contract on both engines"),
            Suite::Packets => say("Packets through the programs in the kernel"),
            Suite::Cni => say("The CNI plugin against an agent's server"),
            Suite::Dist => say("Packages: installed, upgraded and purged in a copy of this machine"),
            Suite::Kernels => {
                kernels::fetch()?;
                say("The programs on other kernels");
            }
            Suite::Cluster | Suite::Survival => return self.run_with_registry(artifacts, filter),
        }
        self.run_runners(artifacts, filter)
    }

    fn run_with_registry(self, artifacts: &Artifacts, filter: &[String]) -> Result<()> {
        // One that runs is somebody's: a cluster of `up` pulls from it.
        let ours = !registry::runs();
        let registry = registry::start()?;
        let outcome = images::push_all(registry).and_then(|()| {
            say(if self == Suite::Survival { "What a cluster survives" } else { "Clusters" });
            self.run_runners(artifacts, filter)
        });
        if ours {
            registry::stop()?;
        }
        outcome
    }

    /// As `cargo test --no-fail-fast` would.
    fn run_runners(self, artifacts: &Artifacts, filter: &[String]) -> Result<()> {
        let mut failed = Vec::new();
        for runner in artifacts.runners(|runner| self.holds(runner)) {
            let source = runner.folder.strip_prefix(place::workspace()).unwrap_or(&runner.folder).join(&runner.source);
            eprintln!("     Running {}", source.display());
            if step::run(self.command(&runner, artifacts)?.args(filter)).is_err() {
                failed.push(source.display().to_string());
            }
        }
        if !failed.is_empty() {
            bail!("tests failed in {}", failed.join(", "));
        }
        Ok(())
    }

    fn holds(self, runner: &Runner) -> bool {
        let within = |folder: &str| runner.folder == place::workspace().join(folder);
        match SUITES.iter().find(|(suite, _)| *suite == self) {
            Some((_, folder)) => within(folder),
            None => !SUITES.iter().any(|(_, folder)| within(folder)),
        }
    }

    fn command(self, runner: &Runner, artifacts: &Artifacts) -> Result<Command> {
        let mut command = command(&runner.executable);
        command.current_dir(&runner.folder).env("LEME_ETCD", setup::etcd()?);
        if self == Suite::Unit {
            command.env("LEME_TEST_ETCD", "1");
            return Ok(command);
        }
        command
            .arg("--test-threads=1")
            .env("LEME_BIN", artifacts.program("leme")?)
            .env("LEME_CNI_BIN", artifacts.program("leme-cni")?)
            .env("LEME_KUBECTL", setup::kubectl()?)
            .env("LEME_KERNELS", kernels::folders()?)
            .env("LEME_TEST_MIRRORS", registry::mirror_arguments().join(" "));
        if self == Suite::Dist {
            command.envs(dist::pack_for_tests(artifacts.program("leme")?, artifacts.program("leme-cni")?)?);
        }
        if self == Suite::Kernels {
            // The machines run the packet tests as they are.
            let tests = artifacts.runners(|runner| Suite::Packets.holds(runner));
            command.env("LEME_PACKET_TESTS", std::env::join_paths(tests.iter().map(|test| &test.executable))?);
        }
        Ok(command)
    }
}
