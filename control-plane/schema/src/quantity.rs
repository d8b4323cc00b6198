//! Quantities (`500m`, `1Gi`, `1e3`): parsing and upstream's canonical form. Strategies and the scheduler's sums use it too.
//!
//! The grammar and the canonical form are those of `io.k8s.apimachinery.pkg.api.resource.Quantity`.

/// Upstream's words for a text that is no quantity.
pub const SYNTAX: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const NANO: i128 = 1_000_000_000;
/// No quantity is larger than this many units.
const LARGEST: i128 = i64::MAX as i128;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

/// A parsed quantity: an exact number of billionths, and the family of suffixes it was written with.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

impl Quantity {
    /// # Errors
    /// [`SYNTAX`] when the text is none.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(SYNTAX);
        }
        let (format, base, exponent) = scale(suffix).ok_or(SYNTAX)?;
        let nano = nanos(whole, fraction, base, exponent);
        Ok(Self { nano: if negative { -nano } else { nano }, format })
    }

    /// Rounded up to whole units, as upstream's `Value`.
    pub fn value(self) -> i64 {
        ceiling(self.nano, NANO)
    }

    /// Rounded up to thousandths, as upstream's `MilliValue`.
    pub fn milli_value(self) -> i64 {
        ceiling(self.nano, NANO / 1000)
    }

    /// Billionths, exact: what sums and comparisons should use.
    pub fn nano_value(self) -> i128 {
        self.nano
    }

    /// Up to the next thousandth: nothing finer is stored of a resource.
    pub fn rounded_to_milli(self) -> Self {
        let milli = NANO / 1000;
        let nano = (self.nano.div_euclid(milli) + i128::from(self.nano.rem_euclid(milli) != 0)) * milli;
        Self { nano, ..self }
    }

    pub fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// The text upstream would write.
    pub fn canonical(self) -> String {
        match self.format {
            Format::Binary if self.nano.abs() >= 1024 * NANO && self.nano % NANO == 0 => binary(self.nano / NANO),
            Format::Exponent => {
                self.decimal(|exponent| if exponent == 0 { String::new() } else { format!("e{exponent}") })
            }
            _ => self.decimal(|exponent| {
                DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(suffix, _)| suffix).to_owned()
            }),
        }
    }

    fn decimal(self, suffix: impl Fn(i32) -> String) -> String {
        if self.nano == 0 {
            return "0".to_owned();
        }
        let (mut mantissa, mut exponent) = (self.nano, -9);
        while mantissa % 1000 == 0 && exponent < 18 {
            mantissa /= 1000;
            exponent += 3;
        }
        format!("{mantissa}{}", suffix(exponent))
    }
}

/// The canonical form of a quantity's text.
pub fn canonical(text: &str) -> Result<String, &'static str> {
    Quantity::parse(text).map(Quantity::canonical)
}

fn scale(suffix: &str) -> Option<(Format, i128, i32)> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((Format::Decimal, 10, *exponent));
    }
    if let Some(power) = BINARY.iter().skip(1).position(|name| *name == suffix) {
        return Some((Format::Binary, 1024, i32::try_from(power).ok()? + 1));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    Some((Format::Exponent, 10, exponent))
}

/// The number in billionths: what is finer is rounded up, what is too large is capped.
fn nanos(whole: &str, fraction: &str, base: i128, exponent: i32) -> i128 {
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let cap = LARGEST * NANO;
    let places = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let Ok(mantissa) = digits.parse::<i128>() else { return cap };
    let (factor, shift) =
        if base == 10 { (1, exponent - places + 9) } else { (base.pow(exponent.unsigned_abs()), 9 - places) };
    let Some(scaled) = mantissa.checked_mul(factor) else { return cap };
    if shift >= 0 {
        return 10i128.checked_pow(shift.unsigned_abs()).and_then(|by| scaled.checked_mul(by)).unwrap_or(cap).min(cap);
    }
    match 10i128.checked_pow(shift.unsigned_abs()) {
        Some(by) => ((scaled + by - 1) / by).min(cap),
        None => 1,
    }
}

fn ceiling(nano: i128, unit: i128) -> i64 {
    let rounded = nano.div_euclid(unit) + i128::from(nano.rem_euclid(unit) != 0);
    i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
}

fn binary(mut units: i128) -> String {
    let mut power = 0;
    while units % 1024 == 0 && power + 1 < BINARY.len() {
        units /= 1024;
        power += 1;
    }
    format!("{units}{}", BINARY[power])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms_are_upstreams() {
        for (given, wanted) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("100m", "100m"),
            ("0.1m", "100u"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("0", "0"),
            ("0Gi", "0"),
            ("-1000m", "-1"),
            ("0.5Ki", "512"),
            ("1.", "1"),
            (".5", "500m"),
            ("0.0000000001", "1n"),
            ("100Mi", "100Mi"),
            ("1500000", "1500k"),
        ] {
            assert_eq!(canonical(given).as_deref(), Ok(wanted), "{given}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for given in ["", "abc", "1GB", "1.2.3", "--1", "1 Gi", "e3", "1KI"] {
            assert_eq!(canonical(given), Err(SYNTAX), "{given}");
        }
    }

    #[test]
    fn values_round_up() {
        let half = Quantity::parse("1500m").expect("valid");
        assert_eq!((half.value(), half.milli_value()), (2, 1500));
        let negative = Quantity::parse("-1500m").expect("valid");
        assert_eq!(negative.value(), -1);
    }
}
