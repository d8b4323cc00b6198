//! Both ends of the load, inside pods. `load` prints one measurement per line; the log carries them to `net`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use leme_measure::load::{burst, wait_for};
use leme_measure::{Kind, Measurement, serve, turns};
use serde::{Deserialize, Serialize};

#[derive(Args)]
pub(crate) struct Serve {
    #[arg(long)]
    port: u16,
}

#[derive(Args)]
pub(crate) struct Options {
    /// A plan as JSON
    #[arg(value_parser = parse)]
    plan: Plan,
}

/// What one client measures.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    /// Between whom: the first words of each metric.
    pub(crate) between: String,
    /// What all others are compared with.
    pub(crate) baseline: Target,
    pub(crate) targets: Vec<Target>,
    pub(crate) rounds: usize,
    pub(crate) millis: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
}

/// A Service answers a moment after its endpoint is there.
const PATIENCE: Duration = Duration::from_secs(30);

fn parse(text: &str) -> std::result::Result<Plan, serde_json::Error> {
    serde_json::from_str(text)
}

pub(crate) fn serve(options: &Serve) -> Result<()> {
    serve::start(options.port)?;
    loop {
        std::thread::park();
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    measure(&options.plan, PATIENCE, |measurement| measurement.print())
}

/// Every kind of load on every target that answers. One that does not is told and left out; the baseline must answer.
pub(crate) fn measure(plan: &Plan, patience: Duration, mut tell: impl FnMut(&Measurement) -> Result<()>) -> Result<()> {
    let mut subjects = vec![&plan.baseline];
    wait_for(plan.baseline.address, patience)?;
    for target in &plan.targets {
        match wait_for(target.address, patience) {
            Ok(()) => subjects.push(target),
            Err(error) => eprintln!("{}: {} is left out: {error:#}", plan.between, target.name),
        }
    }
    let length = Duration::from_millis(plan.millis);
    for kind in Kind::ALL {
        let bursts = turns::take(subjects.len(), plan.rounds, |at| {
            burst(kind, subjects[at].address, length).with_context(|| subjects[at].name.clone())
        })?;
        for figure in kind.figures() {
            let metric = format!("{}: {}", plan.between, figure.metric);
            let row = |at: usize| {
                Measurement::new(metric.as_str(), &subjects[at].name, figure.unit, figure.samples(&bursts[at]))
            };
            if subjects.len() == 1 {
                tell(&row(0))?;
            }
            for at in 1..subjects.len() {
                tell(&row(at).against(&plan.baseline.name, figure.samples(&bursts[0])))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_is_compared_and_what_does_not_is_left_out() {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let port = serve::start(0).unwrap();
        let silent = std::net::TcpListener::bind(at(0)).unwrap().local_addr().unwrap();
        let target = |name: &str, address| Target { name: name.into(), address };
        let plan = Plan {
            between: "here".into(),
            baseline: target("itself", at(port)),
            targets: vec![target("again", at(port)), target("nobody", silent)],
            rounds: 1,
            millis: 5,
        };
        let text = serde_json::to_string(&plan).unwrap();
        let mut told = Vec::new();
        measure(&parse(&text).unwrap(), Duration::ZERO, |it| {
            told.push(it.clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(told.len(), Kind::ALL.iter().map(|kind| kind.figures().len()).sum::<usize>());
        assert!(told.iter().all(|it| it.subject == "again" && it.baseline.as_ref().unwrap().name == "itself"));
    }
}
