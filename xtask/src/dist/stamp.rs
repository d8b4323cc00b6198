//! What a build is called and when it is from: both follow from the commit.

use std::env;

use anyhow::{Context, Result};

use crate::place;
use crate::step::{command, output, say};

/// The version that is being packed; Cargo.toml's is the only place it stands.
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// As Debian orders them: what is built on the way to 0.2.0 is `0.2.0~20261125.1a2b3c4`, older than 0.2.0.
    pub(crate) version: String,
    /// Seconds since 1970: the time of everything that is packed.
    pub(crate) time: u64,
}

impl Stamp {
    /// `SOURCE_DATE_EPOCH` overrides the commit's time, as <https://reproducible-builds.org/specs/source-date-epoch/> has it.
    pub(crate) fn of_commit() -> Result<Self> {
        let told =
            env::var("SOURCE_DATE_EPOCH").ok().map(|text| text.parse().context("SOURCE_DATE_EPOCH is no number"));
        let commit = git(&["log", "-1", "--format=%ct %cd %h", "--abbrev=10", "--date=format-local:%Y%m%d"]);
        let Ok(commit) = commit else {
            let time = told.context("this is no git repository: say when it is from with SOURCE_DATE_EPOCH")??;
            return Ok(Self { version: VERSION.to_owned(), time });
        };
        let mut words = commit.split_whitespace();
        let mut word = || words.next().context("git log says less than it was asked for");
        let (time, day, hash) = (word()?.parse()?, word()?, word()?);
        let dirty = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
        if dirty {
            say("There are uncommitted changes: nobody else can build these bytes");
        }
        let released =
            git(&["describe", "--tags", "--exact-match"]).is_ok_and(|tag| tag.trim() == format!("v{VERSION}"));
        Ok(Self { version: version(released && !dirty, day, hash, dirty), time: told.transpose()?.unwrap_or(time) })
    }
}

fn version(released: bool, day: &str, hash: &str, dirty: bool) -> String {
    match (released, dirty) {
        (true, _) => VERSION.to_owned(),
        (false, false) => format!("{VERSION}~{day}.{hash}"),
        (false, true) => format!("{VERSION}~{day}.{hash}.changed"),
    }
}

fn git(arguments: &[&str]) -> Result<String> {
    // Days are those of Greenwich for everybody.
    output(command("git").current_dir(place::workspace()).env("TZ", "UTC").args(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_tagged_commit_without_changes_is_the_version_itself() {
        assert_eq!(version(true, "20261125", "1a2b3c4d5e", false), VERSION);
        assert_eq!(version(false, "20261125", "1a2b3c4d5e", false), format!("{VERSION}~20261125.1a2b3c4d5e"));
        assert_eq!(version(false, "20261125", "1a2b3c4d5e", true), format!("{VERSION}~20261125.1a2b3c4d5e.changed"));
    }
}
