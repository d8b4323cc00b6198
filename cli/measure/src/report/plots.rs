//! Three plots: a figure over the number of Services, ratios with their intervals, and plain bars.

use super::svg::{Anchor, Svg};
use crate::row::{Row, grouped, number};

/// One line of `curves`: a subject's rows by ascending number of Services.
pub(super) struct Curve<'a> {
    pub(super) colour: usize,
    pub(super) rows: Vec<&'a Row>,
}

const PLOT: (f64, f64) = (430.0, 230.0);
const LEFT: f64 = 58.0;
const BOTTOM: f64 = 34.0;
const TOP: f64 = 14.0;

/// The figure over the number of Services, from zero; the dashed line is the baseline of the first subject.
pub(super) fn curves(curves: &[Curve], sizes: &[u32], title: &str) -> String {
    let rows = || curves.iter().flat_map(|curve| &curve.rows);
    let baseline = rows().find_map(|row| row.baseline.as_ref());
    let highest = rows().map(|row| row.value).chain(baseline.map(|base| base.value)).fold(0.0, f64::max);
    let top = round_up(highest);
    let mut svg = Svg::new(PLOT.0, PLOT.1);
    let (right, base) = (PLOT.0 - 16.0, PLOT.1 - BOTTOM);
    let y = |value: f64| base - value / top * (base - TOP);
    let step = (right - LEFT - 40.0) / (sizes.len().max(2) - 1) as f64;
    let x = |services: u32| LEFT + 20.0 + step * sizes.iter().position(|size| *size == services).unwrap_or(0) as f64;
    for part in 0..=4 {
        let value = top * f64::from(part) / 4.0;
        svg.line("grid", (LEFT, y(value)), (right, y(value)));
        svg.text("tick", (LEFT - 6.0, y(value) + 4.0), Anchor::End, &short(value));
    }
    for size in sizes {
        svg.text("tick", (x(*size), base + 18.0), Anchor::Middle, &grouped(*size));
    }
    if let Some(baseline) = baseline {
        svg.line("baseline", (LEFT, y(baseline.value)), (right, y(baseline.value)));
    }
    for Curve { colour, rows } in curves {
        let points: Vec<_> = rows.iter().map(|row| (x(row.services.unwrap_or(0)), y(row.value))).collect();
        svg.path(&format!("curve c{colour}"), &points);
        for (row, point) in rows.iter().zip(points) {
            let told = format!("{}: {} {}", row.full_subject(), number(row.value), row.unit);
            svg.dot(&format!("dot c{colour}"), point, &told);
        }
    }
    svg.finish(title)
}

const ROW: f64 = 22.0;
/// Room for the names, and for the figures.
const NAMES: f64 = 470.0;
const FIGURES: f64 = 150.0;
const WIDE: f64 = 1000.0;

/// Comparisons of one metric, under its name.
pub(super) struct Group<'a> {
    pub(super) metric: &'a str,
    pub(super) rows: Vec<&'a Row>,
}

/// How much better or worse than the baseline, on a logarithmic scale, right of the line being better.
pub(super) fn ratios(groups: &[Group], title: &str) -> String {
    let rows = groups.iter().flat_map(|group| &group.rows);
    let farthest = rows.clone().filter_map(|row| advantage(row)).flat_map(|it| [it.low, it.high, it.middle]);
    let reach = farthest.map(|ratio| ratio.log2().abs()).fold(0.5, f64::max).ceil().min(6.0);
    let height = (rows.count() + groups.len()) as f64 * ROW + 48.0;
    let mut svg = Svg::new(WIDE, height);
    let (left, right) = (NAMES, WIDE - FIGURES);
    let x = |ratio: f64| left + (right - left) * ((ratio.log2().clamp(-reach, reach)) / reach + 1.0) / 2.0;
    for power in (-reach as i32)..=(reach as i32) {
        let ratio = f64::from(power).exp2();
        svg.line(if power == 0 { "unity" } else { "grid" }, (x(ratio), 20.0), (x(ratio), height - 20.0));
        svg.text("tick", (x(ratio), 14.0), Anchor::Middle, &times(ratio));
    }
    let mut y = 20.0 + ROW * 0.7;
    for group in groups {
        svg.text("metric", (0.0, y + 4.0), Anchor::Start, group.metric);
        for row in &group.rows {
            y += ROW;
            comparison(&mut svg, row, y, x);
        }
        y += ROW;
    }
    svg.text("tick", (x(1.0) - 8.0, height - 6.0), Anchor::End, "← worse");
    svg.text("tick", (x(1.0) + 8.0, height - 6.0), Anchor::Start, "better →");
    svg.finish(title)
}

/// One line: who beside whom, the ratio with its interval, the value.
fn comparison(svg: &mut Svg, row: &Row, y: f64, x: impl Fn(f64) -> f64) {
    let Some(Advantage { low, middle, high }) = advantage(row) else { return };
    let class = match row.ratio_interval {
        Some(_) if low > 1.0 => "better",
        Some(_) if high < 1.0 => "worse",
        _ => "even",
    };
    let base = row.baseline.as_ref().map(|base| base.name.as_str()).unwrap_or_default();
    let name = format!("{} beside {base}", row.subject);
    svg.text("name", (NAMES - 10.0, y + 4.0), Anchor::End, &name);
    svg.line(&format!("interval {class}"), (x(low), y), (x(high), y));
    svg.dot(&format!("dot {class}"), (x(middle), y), &name);
    svg.text("figure", (WIDE - FIGURES + 10.0, y + 4.0), Anchor::Start, &times(middle));
    svg.text("tick", (WIDE - 4.0, y + 4.0), Anchor::End, &format!("{} {}", number(row.value), row.unit));
}

/// Turned so that more is better.
struct Advantage {
    low: f64,
    middle: f64,
    high: f64,
}

fn advantage(row: &Row) -> Option<Advantage> {
    let middle = row.ratio.filter(|ratio| *ratio > 0.0)?;
    let [low, high] = row.ratio_interval.unwrap_or([middle, middle]);
    Some(match row.more_is_better() {
        true => Advantage { low, middle, high },
        false => Advantage { low: 1.0 / high, middle: 1.0 / middle, high: 1.0 / low },
    })
}

fn times(ratio: f64) -> String {
    match ratio {
        ratio if ratio >= 9.95 => format!("{ratio:.0}×"),
        ratio if ratio >= 1.995 => format!("{ratio:.1}×"),
        ratio => format!("{ratio:.2}×"),
    }
}

/// Values side by side on a logarithmic scale where they differ by more than 20 times, else from zero.
pub(super) fn bars(values: &[(String, f64, usize)], unit: &str, title: &str) -> String {
    let mut svg = Svg::new(WIDE, values.len() as f64 * ROW + 8.0);
    let highest = values.iter().map(|value| value.1).fold(0.0, f64::max);
    let lowest = values.iter().map(|value| value.1).filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
    let (left, room) = (NAMES, WIDE - FIGURES - NAMES);
    let logarithmic = highest > lowest * 20.0;
    let length = |value: f64| match logarithmic {
        true => room * ((value / lowest).ln() + 1.0).max(0.0) / ((highest / lowest).ln() + 1.0),
        false => room * value / highest.max(f64::MIN_POSITIVE),
    };
    for (at, (name, value, colour)) in values.iter().enumerate() {
        let y = ROW * at as f64 + 4.0;
        svg.text("name", (left - 10.0, y + 14.0), Anchor::End, name);
        svg.bar(&format!("bar c{colour}"), (left, y + 2.0), (length(*value), ROW - 6.0));
        svg.text(
            "figure",
            (left + length(*value) + 8.0, y + 14.0),
            Anchor::Start,
            &format!("{} {unit}", number(*value)),
        );
    }
    svg.finish(title)
}

/// The next of 1, 2, 4, 6, 8 times a power of ten: quarters of it are round, too.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0];
    steps.into_iter().map(|step| step * power).find(|top| *top >= value).unwrap_or(10.0 * power)
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        value if value >= 1e4 => format!("{}k", trimmed(value / 1e3)),
        value => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Measurement;

    #[test]
    fn axes_end_on_round_numbers() {
        assert_eq!([0.0, 3.0, 61_000.0, 80.0, 9.5].map(round_up), [1.0, 4.0, 80_000.0, 80.0, 10.0]);
        assert_eq!([0.0, 2.5, 15_000.0, 1_500_000.0].map(short), ["0", "2.5", "15k", "1.5M"]);
    }

    #[test]
    fn less_time_is_an_advantage() {
        let samples = vec![1.0; 6];
        let row = |unit| Row::of(Measurement::new("m", "s", unit, samples.clone()).against("b", vec![2.0; 6])).unwrap();
        assert_eq!(advantage(&row("µs")).unwrap().middle, 2.0);
        assert_eq!(advantage(&row("1/s")).unwrap().middle, 0.5);
    }
}
