//! Rows as one page that needs nothing else: no script, no font, no file beside it. Light and dark follow the reader.

mod plots;
mod svg;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::machine::Machine;
use crate::row::{Row, count_of, number};
use plots::{Curve, Group};
use svg::escape;

pub struct Report<'a> {
    pub title: &'a str,
    /// One sentence on what was compared, and how.
    pub about: &'a str,
    /// What was measured: a commit, a version.
    pub subject: &'a str,
    pub machine: &'a Machine,
    pub date: &'a str,
    /// What repeats it.
    pub commands: &'a [String],
    pub rows: &'a [Row],
}

/// Colours that the style sheet has.
const COLOURS: usize = 6;
/// Where ratios are shown for one number of Services only.
const USUAL: u32 = 10_000;

impl Report<'_> {
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, self.html()).with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn html(&self) -> String {
        let style = include_str!("report/style.css");
        let (title, body) =
            (escape(self.title), [self.head(), self.curves(), self.ratios(), self.bars(), self.table()]);
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{style}</style>\n</head>\n\
             <body>\n{}</body>\n</html>\n",
            body.concat()
        )
    }

    fn head(&self) -> String {
        let machine = self.machine.to_string();
        let commands = self.commands.iter().map(|it| format!("<code>{}</code>", escape(it))).collect::<Vec<_>>();
        let facts = [("Measured", self.subject), ("Machine", &machine), ("Date", self.date)];
        let facts: String =
            facts.iter().map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>\n", escape(value))).collect();
        format!(
            "<h1>{}</h1>\n<p class=\"soft\">{}</p>\n<dl>\n{facts}<dt>Repeat it</dt><dd>{}</dd>\n</dl>\n",
            escape(self.title),
            escape(self.about),
            commands.join("<br>\n")
        )
    }

    /// Metrics that were measured with several numbers of Services.
    fn curves(&self) -> String {
        let metrics: Vec<_> = self.metrics().into_iter().filter(|metric| self.sizes(metric).len() > 1).collect();
        if metrics.is_empty() {
            return String::new();
        }
        let subjects = self.curve_subjects(&metrics);
        let keys: String = subjects
            .iter()
            .enumerate()
            .map(|(n, subject)| format!("<li class=\"c{}\"><span>{}</span></li>\n", n % COLOURS, escape(subject)))
            .collect();
        let figures: String = metrics.iter().map(|metric| self.curve_figure(metric, &subjects)).collect();
        format!(
            "<h2>With more Services loaded</h2>\n<p class=\"soft\">Medians over the number of Services. Flat is what they \
             should be.</p>\n<ul class=\"keys\">\n{keys}<li class=\"dashed even\"><span>what the figure is compared with, \
             no Service loaded</span></li>\n</ul>\n<div class=\"pair\">\n{figures}</div>\n"
        )
    }

    fn curve_figure(&self, metric: &str, subjects: &[&str]) -> String {
        let sizes: Vec<_> = self.sizes(metric).into_iter().collect();
        let curves: Vec<_> = subjects
            .iter()
            .enumerate()
            .map(|(n, subject)| Curve { colour: n % COLOURS, rows: self.along(metric, subject) })
            .filter(|curve| curve.rows.len() > 1)
            .collect();
        let unit = curves.first().and_then(|curve| curve.rows.first()).map(|row| row.unit.as_str()).unwrap_or_default();
        let better = if unit.ends_with("/s") { "more is better" } else { "less is better" };
        figure(metric, &format!("{unit}, {better}"), &plots::curves(&curves, &sizes, metric))
    }

    /// One row per number of Services: the first, whose baseline is the plain one.
    fn along<'a>(&'a self, metric: &str, subject: &str) -> Vec<&'a Row> {
        let mut rows: Vec<&Row> =
            self.of(metric).filter(|row| row.subject == subject && row.services.is_some()).collect();
        rows.sort_by_key(|row| row.services);
        rows.dedup_by_key(|row| row.services);
        rows
    }

    fn ratios(&self) -> String {
        let shown: Vec<_> = self.rows.iter().filter(|row| row.ratio.is_some() && self.is_usual(row)).collect();
        let mut subjects: Vec<&str> = shown.iter().map(|row| split(&row.metric).0).collect();
        subjects.dedup();
        let figures: String = subjects.iter().map(|subject| ratio_figure(subject, &shown)).collect();
        if figures.is_empty() {
            return figures;
        }
        format!(
            "<h2>Side by side</h2>\n<p class=\"soft\">How many times as good as what was measured in turn with it: dots are \
             medians of the pairs' ratios, bars hold the true median with a confidence of 95 %. Grey is no difference that \
             can be told.</p>\n{figures}"
        )
    }

    /// Of several numbers of Services, the usual one, or the largest below it.
    fn is_usual(&self, row: &Row) -> bool {
        let sizes = self.sizes(&row.metric);
        let usual = sizes.iter().rev().find(|size| **size <= USUAL).or(sizes.first());
        row.services.is_none() || row.services.as_ref() == usual
    }

    /// What is told for one size only, with the baselines' values beside.
    fn bars(&self) -> String {
        let metrics: Vec<_> = self.metrics().into_iter().filter(|metric| self.sizes(metric).is_empty()).collect();
        let figures: String = metrics.iter().map(|metric| self.bar_figure(metric)).collect();
        match figures.is_empty() {
            true => figures,
            false => format!("<h2>Figures</h2>\n<p class=\"soft\">Medians.</p>\n{figures}"),
        }
    }

    fn bar_figure(&self, metric: &str) -> String {
        let mut values: Vec<(String, f64, usize)> = Vec::new();
        for row in self.of(metric) {
            let base = row.baseline.as_ref().map(|base| (base.name.clone(), base.value, COLOURS - 1));
            let all = [Some((row.subject.clone(), row.value, 0)), base];
            for value in all
                .into_iter()
                .flatten()
                .filter(|value| !values.iter().any(|known| known.0 == value.0))
                .collect::<Vec<_>>()
            {
                values.push(value);
            }
        }
        let unit = self.of(metric).next().map(|row| row.unit.clone()).unwrap_or_default();
        figure(metric, "", &plots::bars(&values, &unit, metric))
    }

    fn table(&self) -> String {
        let rows: String = self.rows.iter().map(table_row).collect();
        let titles = ["metric", "subject", "median", "min–max", "baseline", "ratio (95 %)", "runs"];
        let titles: String = titles.iter().map(|title| format!("<th>{title}</th>")).collect();
        format!(
            "<h2>All rows</h2>\n<details{}>\n<summary>{} rows</summary>\n<div class=\"scroll\">\n<table>\n<tr>{titles}</tr>\n\
             {rows}</table>\n</div>\n</details>\n",
            if self.rows.len() <= 60 { " open" } else { "" },
            self.rows.len()
        )
    }

    /// In the order in which they were measured.
    fn metrics(&self) -> Vec<&str> {
        let mut seen = BTreeSet::new();
        self.rows.iter().map(|row| row.metric.as_str()).filter(|metric| seen.insert(*metric)).collect()
    }

    fn of<'a>(&'a self, metric: &str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.metric == metric)
    }

    fn sizes(&self, metric: &str) -> BTreeSet<u32> {
        self.of(metric).filter_map(|row| row.services).collect()
    }

    fn curve_subjects(&self, metrics: &[&str]) -> Vec<&str> {
        let mut seen = BTreeSet::new();
        let rows = self.rows.iter().filter(|row| metrics.contains(&row.metric.as_str()));
        // What was measured with one number of Services only is a point, not a curve.
        let curved = rows.filter(|row| self.along(&row.metric, &row.subject).len() > 1);
        curved.map(|row| row.subject.as_str()).filter(|subject| seen.insert(*subject)).collect()
    }
}

/// `same node: requests` is about the same node.
fn split(metric: &str) -> (&str, &str) {
    metric.split_once(": ").unwrap_or((metric, ""))
}

fn ratio_figure(about: &str, shown: &[&Row]) -> String {
    let rows: Vec<_> = shown.iter().filter(|row| split(&row.metric).0 == about).copied().collect();
    let mut groups: Vec<Group> = Vec::new();
    for row in &rows {
        let metric = split(&row.metric).1;
        match groups.last_mut().filter(|group| group.metric == metric) {
            Some(group) => group.rows.push(row),
            None => groups.push(Group { metric, rows: vec![row] }),
        }
    }
    let services = rows.iter().find_map(|row| row.services).map(count_of).unwrap_or_default();
    figure(about, &services, &plots::ratios(&groups, about))
}

fn figure(title: &str, caption: &str, plot: &str) -> String {
    let caption =
        if caption.is_empty() { String::new() } else { format!(" <span class=\"soft\">· {}</span>", escape(caption)) };
    format!("<figure>\n<h3>{}{caption}</h3>\n{plot}</figure>\n", escape(title))
}

fn table_row(row: &Row) -> String {
    let base = row.baseline.as_ref().map(|base| format!("{} {}", base.name, number(base.value))).unwrap_or_default();
    let interval = row.ratio_interval.map(|[low, high]| format!(" ({low:.3}–{high:.3})")).unwrap_or_default();
    let ratio = row.ratio.map(|ratio| format!("{ratio:.3}{interval}")).unwrap_or_default();
    let value = format!("{} {}", number(row.value), row.unit);
    let range = format!("{}–{}", number(row.min), number(row.max));
    format!(
        "<tr><td>{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{range}</td><td>{}</td><td \
         class=\"number\">{ratio}</td><td class=\"number\">{}</td></tr>\n",
        escape(&row.metric),
        escape(&row.full_subject()),
        escape(&value),
        escape(&base),
        row.runs
    )
}

#[cfg(test)]
mod tests;
