//! What one measurement leaves, here or as a line of `leme-bench`.

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Measurement {
    pub(crate) metric: String,
    pub(crate) subject: String,
    pub(crate) unit: String,
    pub(crate) samples: Vec<f64>,
    pub(crate) baseline: Option<Baseline>,
}

/// Taken in turn with the samples: the n-th belongs to the n-th.
#[derive(Deserialize)]
pub(crate) struct Baseline {
    pub(crate) name: String,
    pub(crate) samples: Vec<f64>,
}

impl Measurement {
    pub(crate) fn new(metric: &str, subject: impl Into<String>, unit: &str, samples: Vec<f64>) -> Self {
        Self { metric: metric.into(), subject: subject.into(), unit: unit.into(), samples, baseline: None }
    }
}

pub(crate) fn parse(lines: &str) -> Result<Vec<Measurement>> {
    lines.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not a measurement: {line}"))).collect()
}
