//! What Go's JSON parser would have said of a text that serde's refused: clients show these words.

use serde_json::error::Category;

/// Upstream's text for a syntax error.
pub(super) fn syntax(error: &serde_json::Error, body: &[u8]) -> String {
    if error.classify() == Category::Eof || body.is_empty() {
        return "unexpected end of JSON input".to_owned();
    }
    let said = error.to_string();
    let place =
        PLACES.iter().find(|(serde, _)| said.starts_with(serde)).map_or("looking for beginning of value", |(_, go)| go);
    match offender(error, body) {
        Some(character) => format!("invalid character '{character}' {place}"),
        None => "unexpected end of JSON input".to_owned(),
    }
}

const PLACES: [(&str, &str); 10] = [
    ("key must be a string", "looking for beginning of object key string"),
    ("expected `:`", "after object key"),
    ("expected `,` or `}`", "after object key:value pair"),
    ("expected `,` or `]`", "after array element"),
    ("trailing characters", "after top-level value"),
    ("trailing comma", "looking for beginning of object key string"),
    ("control character", "in string literal"),
    ("invalid escape", "in string escape code"),
    ("invalid number", "in numeric literal"),
    ("expected ident", "in literal"),
];

/// The character at the error's line and column (both count from one).
fn offender(error: &serde_json::Error, body: &[u8]) -> Option<char> {
    let line = body.split(|byte| *byte == b'\n').nth(error.line().checked_sub(1)?)?;
    line.get(error.column().saturating_sub(1)).map(|byte| char::from(*byte))
}

/// The start of a body for an error's text: text of an object, hexadecimal of anything else.
pub(super) fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let head = &body[..body.len().min(SHOWN)];
    let more = if body.len() > SHOWN { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => format!("{}{more}", head.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}
