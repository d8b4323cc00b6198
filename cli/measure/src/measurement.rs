//! What one measurement leaves: samples, and beside each the sample of what it is compared with. Travels as JSON lines
//! between the process that measures and the one that makes rows.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Measurement {
    pub metric: String,
    pub subject: String,
    /// How many Services were loaded, where that is what varies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<u32>,
    pub unit: String,
    pub samples: Vec<f64>,
    pub baseline: Option<Baseline>,
}

/// Taken in turn with the samples: the n-th belongs to the n-th.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Baseline {
    pub name: String,
    pub samples: Vec<f64>,
}

impl Measurement {
    pub fn new(metric: impl Into<String>, subject: impl Into<String>, unit: &str, samples: Vec<f64>) -> Self {
        let (metric, subject) = (metric.into(), subject.into());
        Self { metric, subject, services: None, unit: unit.into(), samples, baseline: None }
    }

    pub fn against(self, name: impl Into<String>, samples: Vec<f64>) -> Self {
        Self { baseline: Some(Baseline { name: name.into(), samples }), ..self }
    }

    pub fn with_services(self, services: u32) -> Self {
        Self { services: Some(services), ..self }
    }

    pub fn print(&self) -> Result<()> {
        println!("{}", serde_json::to_string(self)?);
        Ok(())
    }
}

pub fn parse(lines: &str) -> Result<Vec<Measurement>> {
    lines.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not a measurement: {line}"))).collect()
}
