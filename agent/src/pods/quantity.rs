//! Quantities as Kubernetes writes them (`250m`, `64Mi`, `1e3`), exact in thousandths.

/// Thousandths, rounded up; none where the text is no quantity.
pub fn milli(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, digits) = match number.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (numerator, denominator) = scale(suffix)?;
    let denominator = denominator.checked_mul(10i128.checked_pow(fraction.len() as u32)?)?;
    let scaled = mantissa.checked_mul(numerator)?.checked_mul(1000)?;
    let rounded = (scaled + denominator - 1) / denominator;
    Some(if negative { -rounded } else { rounded })
}

/// Whole units, rounded up: bytes, pods.
pub fn units(text: &str) -> Option<i64> {
    let milli = milli(text)?;
    i64::try_from((milli + 999).div_euclid(1000)).ok()
}

fn scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (10i128.pow(12), 1),
        "P" => (10i128.pow(15), 1),
        "E" => (10i128.pow(18), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10i128.checked_pow(power.unsigned_abs())?;
            if power < 0 { (1, factor) } else { (factor, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_quantity_is_read_exactly() {
        for (text, expected) in [
            ("0", 0),
            ("250m", 250),
            ("1.5", 1500),
            ("64Mi", 67_108_864_000),
            ("1e3", 1_000_000),
            ("1E", 10i128.pow(21)),
            ("100u", 1),
            (".5Gi", 536_870_912_000),
        ] {
            assert_eq!(milli(text), Some(expected), "{text}");
        }
        assert_eq!(milli("12x"), None);
        assert_eq!(milli(""), None);
        assert_eq!(units("1500m"), Some(2));
    }
}
