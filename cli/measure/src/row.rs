//! One row of every benchmark: medians, their range, and the ratio to a baseline that was measured in turn.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::Measurement;

/// As in the JSON lines; what does not apply is null.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    pub metric: String,
    pub subject: String,
    /// How many Services were loaded, where that is what varies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<u32>,
    /// Median of the runs.
    pub value: f64,
    pub min: f64,
    pub max: f64,
    pub unit: String,
    pub baseline: Option<Baseline>,
    /// Median of value ÷ baseline, pair by pair.
    pub ratio: Option<f64>,
    /// Holds the true median of the ratios with a confidence of 95 %.
    pub ratio_interval: Option<[f64; 2]>,
    pub runs: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Baseline {
    pub name: String,
    pub value: f64,
}

impl Row {
    /// `None` without a sample.
    pub fn of(measurement: Measurement) -> Option<Self> {
        let samples = sorted(measurement.samples.clone());
        let ratios = measurement.baseline.as_ref().map(|baseline| {
            sorted(measurement.samples.iter().zip(&baseline.samples).map(|(value, base)| value / base).collect())
        });
        Some(Self {
            metric: measurement.metric,
            subject: measurement.subject,
            services: measurement.services,
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

    /// With the number of Services, where that is what varies.
    pub fn full_subject(&self) -> String {
        match self.services {
            Some(services) => format!("{}, {}", self.subject, count_of(services)),
            None => self.subject.clone(),
        }
    }

    /// Rates are better when they are more, times and sizes when they are less.
    pub fn more_is_better(&self) -> bool {
        self.unit.ends_with("/s")
    }

    fn cells(&self) -> [String; 7] {
        let baseline = self.baseline.as_ref().map(|base| format!("{} {}", base.name, number(base.value)));
        let interval = self.ratio_interval.map(|[low, high]| format!(" ({low:.3}–{high:.3})")).unwrap_or_default();
        let ratio = self.ratio.map(|ratio| format!("{ratio:.3}{interval}"));
        [
            self.metric.clone(),
            self.full_subject(),
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
pub fn table(rows: &[Row]) -> String {
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

pub fn write_json(rows: &[Row], path: &Path) -> Result<()> {
    let mut file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    for row in rows {
        writeln!(file, "{}", serde_json::to_string(row)?)?;
    }
    Ok(())
}

/// Rows that `write_json` wrote.
pub fn read_json(path: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not a row: {line}"))).collect()
}

/// `10,000 Services`.
pub fn count_of(services: u32) -> String {
    format!("{} Service{}", grouped(services), if services == 1 { "" } else { "s" })
}

pub(crate) fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let (head, tail) = digits.split_at((digits.len() - 1) % 3 + 1);
    tail.as_bytes().chunks(3).fold(head.to_owned(), |text, group| text + "," + &String::from_utf8_lossy(group))
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_by(f64::total_cmp);
    samples
}

pub(crate) fn median(sorted: &[f64]) -> Option<f64> {
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
pub fn number(value: f64) -> String {
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
        let measurement = Measurement::new("m", "s", "u", vec![2.0, 20.0, 4.0]);
        let measurement = measurement.against("base", vec![1.0, 10.0, 4.0]);
        let row = Row::of(measurement).unwrap();
        assert_eq!((row.value, row.min, row.max, row.runs), (4.0, 2.0, 20.0, 3));
        assert_eq!((row.baseline.unwrap().value, row.ratio, row.ratio_interval), (4.0, Some(2.0), None));
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([1, 999, 1000, 30_000, 1_234_567].map(grouped), ["1", "999", "1,000", "30,000", "1,234,567"]);
        assert_eq!([count_of(1), count_of(1000)], ["1 Service", "1,000 Services"]);
    }

    #[test]
    fn a_row_survives_its_file() {
        let measurement = Measurement::new("m", "s", "1/s", vec![2.0, 3.0]).against("b", vec![1.0, 1.0]);
        let rows = [Row::of(measurement.with_services(10)).unwrap()];
        let file = std::env::temp_dir().join(format!("leme-row-{}", std::process::id()));
        write_json(&rows, &file).unwrap();
        let read = read_json(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!((read[0].ratio, read[0].full_subject().as_str()), (Some(2.5), "s, 10 Services"));
        assert!(read[0].more_is_better());
    }

    #[test]
    fn nothing_measured_makes_no_row() {
        assert!(Row::of(Measurement::new("m", "s", "u", vec![])).is_none());
        assert_eq!(median(&[1.0, 2.0]), Some(1.5));
    }
}
