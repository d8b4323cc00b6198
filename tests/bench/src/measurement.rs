//! What one measurement leaves: samples, and beside each the sample of what it is compared with. `cargo xtask bench`
//! reads these lines and makes rows of them.

use anyhow::Result;
use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct Measurement<'a> {
    pub(crate) metric: &'a str,
    pub(crate) subject: &'a str,
    pub(crate) unit: &'a str,
    pub(crate) samples: Vec<f64>,
    pub(crate) baseline: Option<Baseline<'a>>,
}

/// Taken in turn with the samples: the n-th belongs to the n-th.
#[derive(Serialize)]
pub(crate) struct Baseline<'a> {
    pub(crate) name: &'a str,
    pub(crate) samples: Vec<f64>,
}

impl Measurement<'_> {
    pub(crate) fn print(&self) -> Result<()> {
        println!("{}", serde_json::to_string(self)?);
        Ok(())
    }
}
