//! One row of every benchmark: medians, their range, and the ratio to a baseline that was measured in turn.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::measurement::Measurement;

/// As in the JSON lines; what does not apply is null.
#[derive(Serialize)]
pub(crate) struct Row {
    metric: String,
    subject: String,
    /// Median of the runs.
    value: f64,
    min: f64,
    max: f64,
    unit: String,
    baseline: Option<Baseline>,
    /// Median of value ÷ baseline, pair by pair.
    ratio: Option<f64>,
    /// Holds the true median of the ratios with a confidence of 95 %.
    ratio_interval: Option<[f64; 2]>,
    runs: usize,
}

#[derive(Serialize)]
struct Baseline {
    name: String,
    value: f64,
}

impl Row {
    /// `None` without a sample.
    pub(crate) fn of(measurement: Measurement) -> Option<Self> {
        let samples = sorted(measurement.samples.clone());
        let ratios = measurement.baseline.as_ref().map(|baseline| {
            sorted(measurement.samples.iter().zip(&baseline.samples).map(|(value, base)| value / base).collect())
        });
        Some(Self {
            metric: measurement.metric,
            subject: measurement.subject,
            value: median(&samples)?,
            min: *samples.first()?,
            max: *samples.last()?,
            unit: measurement.unit,
            baseline: measurement
                .baseline
                .and_then(|baseline| Some(Baseline { name: baseline.name, value: median(&sorted(baseline.samples))? })),
            ratio: ratios.as_deref().and_then(median),
            ratio_interval: ratios.as_deref().and_then(interval),
            runs: samples.len(),
        })
    }

    fn cells(&self) -> [String; 7] {
        let baseline = self.baseline.as_ref().map(|base| format!("{} {}", base.name, number(base.value)));
        let interval = self.ratio_interval.map(|[low, high]| format!(" ({low:.3}–{high:.3})")).unwrap_or_default();
        let ratio = self.ratio.map(|ratio| format!("{ratio:.3}{interval}"));
        [
            self.metric.clone(),
            self.subject.clone(),
            format!("{} {}", number(self.value), self.unit),
            format!("{}–{}", number(self.min), number(self.max)),
            baseline.unwrap_or_default(),
            ratio.unwrap_or_default(),
            self.runs.to_string(),
        ]
    }
}

const TITLES: [&str; 7] = ["metric", "subject", "median", "min–max", "baseline", "ratio (95 %)", "runs"];

/// The rows under each other, as a table that is also Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    let lines: Vec<_> = std::iter::once(TITLES.map(str::to_owned)).chain(rows.iter().map(Row::cells)).collect();
    let widths: Vec<_> =
        (0..TITLES.len()).map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0)).collect();
    let print = |cells: &[String]| {
        let padded: Vec<_> = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let rule: Vec<_> = widths.iter().map(|&width| "-".repeat(width)).collect();
    let body: String = lines[1..].iter().map(|line| print(line)).collect();
    print(&lines[0]) + &print(&rule) + &body
}

pub(crate) fn write_json(rows: &[Row], path: &Path) -> Result<()> {
    let mut file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    for row in rows {
        writeln!(file, "{}", serde_json::to_string(row)?)?;
    }
    Ok(())
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_by(f64::total_cmp);
    samples
}

fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => Some(sorted[middle]),
        _ => Some((sorted.get(middle.checked_sub(1)?)? + sorted[middle]) / 2.0),
    }
}

/// Order statistics: assumes nothing about how samples are distributed. `None` where there are too few (under 6).
fn interval(sorted: &[f64]) -> Option<[f64; 2]> {
    let count = sorted.len();
    // Of the ways in which samples fall on either side of the median, those with fewer than `skip` on one side.
    let (mut ways, mut outside, mut skip) = (1.0, 0.0, 0);
    let all = 2_f64.powi(i32::try_from(count).ok()?);
    while skip < count / 2 && outside + ways <= all * 0.025 {
        outside += ways;
        skip += 1;
        ways *= (count + 1 - skip) as f64 / skip as f64;
    }
    (skip > 0).then(|| [sorted[skip - 1], sorted[count - skip]])
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_twenty_is_from_the_sixth_to_the_fifteenth() {
        let samples: Vec<_> = (1..=20).map(f64::from).collect();
        assert_eq!(interval(&samples), Some([6.0, 15.0]));
        assert_eq!(interval(&samples[..5]), None);
        assert_eq!(interval(&samples[..6]), Some([1.0, 6.0]));
    }

    #[test]
    fn a_row_compares_pair_by_pair() {
        let baseline = super::super::measurement::Baseline { name: "base".into(), samples: vec![1.0, 10.0, 4.0] };
        let mut measurement = Measurement::new("m", "s", "u", vec![2.0, 20.0, 4.0]);
        measurement.baseline = Some(baseline);
        let row = Row::of(measurement).unwrap();
        assert_eq!((row.value, row.min, row.max, row.runs), (4.0, 2.0, 20.0, 3));
        assert_eq!((row.baseline.unwrap().value, row.ratio, row.ratio_interval), (4.0, Some(2.0), None));
    }

    #[test]
    fn nothing_measured_makes_no_row() {
        assert!(Row::of(Measurement::new("m", "s", "u", vec![])).is_none());
        assert_eq!(median(&[1.0, 2.0]), Some(1.5));
    }
}
