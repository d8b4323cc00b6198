//! Quantities as whole thousandths, rounded up: exact enough to compare, small enough to add.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const SUFFIXES: [(&str, i128); 12] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
];

/// Thousandths, as many as fit; the API has validated the text, so what cannot be read counts as nothing.
pub fn milli(quantity: &Quantity) -> i64 {
    let milli = parse(quantity.0.trim()).unwrap_or(0);
    i64::try_from(milli).unwrap_or(if milli > 0 { i64::MAX } else { i64::MIN })
}

fn parse(text: &str) -> Option<i128> {
    if let Some((mantissa, exponent)) = text.split_once(['e', 'E']).filter(|(_, exponent)| !exponent.is_empty()) {
        let exponent: i32 = exponent.parse().ok()?;
        return scale(mantissa, power(exponent.checked_add(3)?)?);
    }
    if let Some(number) = text.strip_suffix('m') {
        return scale(number, (1, 1));
    }
    if let Some(number) = text.strip_suffix('u') {
        return scale(number, (1, 1_000));
    }
    if let Some(number) = text.strip_suffix('n') {
        return scale(number, (1, 1_000_000));
    }
    for (suffix, factor) in SUFFIXES {
        if let Some(number) = text.strip_suffix(suffix) {
            return scale(number, (factor * 1000, 1));
        }
    }
    scale(text, (1000, 1))
}

fn power(exponent: i32) -> Option<(i128, i128)> {
    let size = 10i128.checked_pow(exponent.unsigned_abs())?;
    Some(if exponent >= 0 { (size, 1) } else { (1, size) })
}

fn scale(number: &str, (times, by): (i128, i128)) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = by.checked_mul(10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let product = digits.checked_mul(times)?;
    Some(product.div_euclid(divisor) + i128::from(product.rem_euclid(divisor) != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let cases = [
            ("1", 1000),
            ("100m", 100),
            ("0.5", 500),
            ("1.5Gi", 1_610_612_736_000),
            ("128Mi", 134_217_728_000),
            ("1k", 1_000_000),
            ("1e3", 1_000_000),
            ("1E", i64::MAX),
            ("100n", 1),
            ("-1", -1000),
            ("", 0),
        ];
        for (text, expected) in cases {
            assert_eq!(milli(&Quantity(text.into())), expected, "{text}");
        }
    }
}
