//! How often an ordeal happens.

use std::path::PathBuf;

/// Whether everything is asked for that the project promises.
fn in_full() -> bool {
    std::env::var_os("LEME_SURVIVAL").is_some_and(|value| value == "full")
}

/// As often as promised, or a part of that.
pub fn scale(full: usize, short: usize) -> usize {
    if in_full() { full } else { short }
}

/// The binary of an earlier version to upgrade from, if somebody has named one.
pub fn earlier() -> Option<PathBuf> {
    std::env::var_os("LEME_SURVIVAL_FROM").map(PathBuf::from)
}
