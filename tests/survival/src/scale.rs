//! How often an ordeal happens.

/// Whether everything is asked for that the project promises.
pub fn in_full() -> bool {
    std::env::var_os("LEME_SURVIVAL").is_some_and(|value| value == "full")
}

/// As often as promised, or a part of that.
pub fn scale(full: usize, short: usize) -> usize {
    if in_full() { full } else { short }
}
