//! Names: labels, subdomains, qualified names, ports, addresses, each with upstream's words for what is wrong.
//!
//! Strategies' validation calls these; an empty list means that the text is right. Nothing here knows a field's path.

use std::net::IpAddr;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const CONFIG_KEY: &str = "[-._a-zA-Z0-9]+";
const C_IDENTIFIER: &str = "[A-Za-z_][A-Za-z0-9_]*";
const WILDCARD: &str = "\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";

/// Upstream's words for a text that misses a regular expression.
pub fn regex_error(message: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    let examples: Vec<String> = examples.iter().map(|one| format!("'{one}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

pub fn max_len_error(length: usize) -> String {
    format!("must be no more than {length} bytes")
}

pub fn empty_error() -> String {
    "must be non-empty".to_owned()
}

/// `InclusiveRangeError`
pub fn range_error(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

pub fn dns1123_label(value: &str) -> Vec<String> {
    let message = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
                   and must start and end with an alphanumeric character";
    let dotted = !is_label(value) && is_subdomain(value);
    check(value, 63, is_label(value), || match dotted {
        true => "must not contain dots".to_owned(),
        false => regex_error(message, LABEL, &["my-name", "123-abc"]),
    })
}

pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                   and must start and end with an alphanumeric character";
    check(value, 253, is_subdomain(value), || regex_error(message, SUBDOMAIN, &["example.com"]))
}

pub fn dns1035_label(value: &str) -> Vec<String> {
    let message = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', \
                   start with an alphabetic character, and end with an alphanumeric character";
    let fits = is_label(value) && value.starts_with(|c: char| c.is_ascii_lowercase());
    check(value, 63, fits, || regex_error(message, DNS1035, &["my-name", "abc-123"]))
}

pub fn wildcard_dns1123_subdomain(value: &str) -> Vec<String> {
    let message = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist \
                   of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
    let fits = value.strip_prefix("*.").is_some_and(is_subdomain);
    check(value, 253, fits, || regex_error(message, WILDCARD, &["*.example.com"]))
}

/// A label's or annotation's key: `name` or `example.com/name`.
pub fn qualified_name(value: &str) -> Vec<String> {
    let message = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let examples = ["MyName", "my.name", "123-abc"];
    let parts: Vec<&str> = value.split('/').collect();
    let mut errors = Vec::new();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push(format!("prefix part {}", empty_error()));
            } else {
                errors.extend(dns1123_subdomain(prefix).iter().map(|error| format!("prefix part {error}")));
            }
            name
        }
        _ => {
            let shape = regex_error(&format!("a qualified name {message}"), QUALIFIED, &examples);
            return vec![format!("{shape} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
    };
    if name.is_empty() {
        errors.push(format!("name part {}", empty_error()));
    } else if name.len() > 63 {
        errors.push(format!("name part {}", max_len_error(63)));
    }
    if !is_qualified(name) {
        errors.push(format!("name part {}", regex_error(message, QUALIFIED, &examples)));
    }
    errors
}

pub fn label_value(value: &str) -> Vec<String> {
    let message = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                   and must start and end with an alphanumeric character";
    check(value, 63, value.is_empty() || is_qualified(value), || {
        regex_error(message, LABEL_VALUE, &["MyValue", "my_value", "12345"])
    })
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(value: &str) -> Vec<String> {
    let message = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
    let fits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let mut errors =
        check(value, 253, fits, || regex_error(message, CONFIG_KEY, &["key.name", "KEY_NAME", "key-name"]));
    match value {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if value.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

pub fn c_identifier(value: &str) -> Vec<String> {
    let message = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'";
    let fits = value.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    check(value, usize::MAX, fits, || regex_error(message, C_IDENTIFIER, &["my_name", "MY_NAME", "MyName"]))
}

/// Environment variables may have any printable ASCII name without `=`.
pub fn env_var_name(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec![empty_error()];
    }
    let fits = value.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=');
    let message = "a valid environment variable name must consist only of printable ASCII characters other than '='";
    check(value, usize::MAX, fits, || message.to_owned())
}

/// An IANA service name, what a named port must be.
pub fn port_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 15 {
        errors.push(max_len_error(15));
    }
    if !value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') || value.is_empty() {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

pub fn port_number(value: i64) -> Vec<String> {
    if (1..=65535).contains(&value) { Vec::new() } else { vec![range_error(1, 65535)] }
}

/// `10%`
pub fn percent(value: &str) -> Vec<String> {
    let fits =
        value.strip_suffix('%').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()));
    let message = "a valid percent string must be a numeric string followed by an ending '%'";
    check(value, usize::MAX, fits, || regex_error(message, "[0-9]+%", &["1%", "93%"]))
}

pub fn ip(value: &str) -> Vec<String> {
    let message = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
    check(value, usize::MAX, value.parse::<IpAddr>().is_ok(), || message.to_owned())
}

pub fn cidr(value: &str) -> Vec<String> {
    let message = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    check(value, usize::MAX, parse_cidr(value).is_some(), || message.to_owned())
}

fn parse_cidr(value: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = value.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let length: u8 = length.parse().ok().filter(|_| digits)?;
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
}

fn check(value: &str, longest: usize, fits: bool, otherwise: impl FnOnce() -> String) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > longest {
        errors.push(max_len_error(longest));
    }
    if !fits {
        errors.push(otherwise());
    }
    errors
}

fn is_label(value: &str) -> bool {
    !value.is_empty()
        && !value.starts_with('-')
        && !value.ends_with('-')
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_subdomain(value: &str) -> bool {
    value.split('.').all(is_label)
}

fn is_qualified(value: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric();
    value.starts_with(ends)
        && value.ends_with(ends)
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_names_have_no_errors_and_wrong_ones_some() {
        type Check = fn(&str) -> Vec<String>;
        let rows: [(Check, &[&str], &[&str]); 9] = [
            (dns1123_label, &["a", "a-1", "0"], &["", "-a", "a.b", "A"]),
            (dns1123_subdomain, &["a.b", "a"], &["", "a..b", "A", "a-.b"]),
            (dns1035_label, &["a1"], &["1a", "a-"]),
            (qualified_name, &["a", "x.y/A_b.c"], &["", "a/b/c", "/a", "a/", "X/y", "-a"]),
            (label_value, &["", "A_b.c"], &["-a", "a b"]),
            (config_map_key, &["a.b_c-D"], &["", ".", "..", "..a", "a/b"]),
            (port_name, &["http", "a-1"], &["", "1", "-a", "a--b", "abcdefghijklmnop", "A"]),
            (ip, &["10.0.0.1", "::1"], &["10.0.0", "010.0.0.1", ""]),
            (cidr, &["10.0.0.0/8"], &["10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8"]),
        ];
        for (check, right, wrong) in rows {
            right.iter().for_each(|name| assert_eq!(check(name), Vec::<String>::new(), "{name}"));
            wrong.iter().for_each(|name| assert!(!check(name).is_empty(), "{name}"));
        }
    }

    #[test]
    fn texts_are_upstreams() {
        let subdomain = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
                         start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
                         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
        assert_eq!(dns1123_subdomain("Not_Valid"), [subdomain]);
        let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
                     end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
        assert_eq!(dns1123_label("A"), [label]);
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(port_number(0), ["must be between 1 and 65535, inclusive"]);
    }
}
