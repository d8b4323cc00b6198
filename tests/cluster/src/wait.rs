//! Waiting for what the cluster brings about in its own time, never longer than a limit.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Tries until it succeeds; past the limit, the last reason why not.
pub fn eventually<T>(limit: Duration, what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("not within {limit:?}: {what}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Tries again and again for a whole while, all of which must succeed.
pub fn throughout(while_: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + while_;
    while Instant::now() < end {
        attempt()?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
