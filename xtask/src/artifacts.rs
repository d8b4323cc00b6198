//! One build of everything that tests need, and what came out of it. Cargo chooses the features of dependencies anew for
//! every selection of packages: several builds compile half of the world several times.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::step::cargo;

/// What `cargo build` says of each thing it has made; other messages have none of these fields.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    src_path: PathBuf,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// A test runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runner {
    pub(crate) executable: PathBuf,
    /// Where cargo would run it.
    pub(crate) folder: PathBuf,
    /// Its source, from there.
    pub(crate) source: PathBuf,
}

#[derive(Debug, Default)]
pub(crate) struct Artifacts {
    programs: BTreeMap<String, PathBuf>,
    runners: Vec<Runner>,
}

impl Artifacts {
    pub(crate) fn build() -> Result<Self> {
        let mut child = cargo()
            .args([
                "build",
                "--profile",
                "ci",
                "--workspace",
                "--exclude",
                "leme-programs",
                "--bins",
                "--tests",
                "--examples",
            ])
            .args(["--message-format", "json-render-diagnostics"])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start cargo")?;
        let artifacts = Self::read(BufReader::new(child.stdout.take().expect("piped")))?;
        if !child.wait()?.success() {
            bail!("the tests do not build");
        }
        Ok(artifacts)
    }

    fn read(messages: impl BufRead) -> Result<Self> {
        let mut artifacts = Self::default();
        for line in messages.lines() {
            let message: Message = serde_json::from_str(&line?).context("cargo says something that is no message")?;
            artifacts.add(message);
        }
        artifacts.runners.sort_by(|one, other| (&one.folder, &one.source).cmp(&(&other.folder, &other.source)));
        Ok(artifacts)
    }

    fn add(&mut self, message: Message) {
        let (Some(executable), Some(target), Some(manifest)) =
            (message.executable, message.target, message.manifest_path)
        else {
            return;
        };
        let folder = manifest.parent().expect("a manifest lies in a folder").to_path_buf();
        if message.profile.is_some_and(|profile| profile.test) {
            let source = target.src_path.strip_prefix(&folder).unwrap_or(&target.src_path).to_path_buf();
            self.runners.push(Runner { executable, folder, source });
        } else {
            self.programs.insert(target.name, executable);
        }
    }

    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        self.programs.get(name).cloned().with_context(|| format!("the build made no {name}"))
    }

    /// In an order that stays.
    pub(crate) fn runners(&self, wanted: impl Fn(&Runner) -> bool) -> Vec<Runner> {
        self.runners.iter().filter(|runner| wanted(runner)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_runners_are_told_apart() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/cli/Cargo.toml","target":{"name":"leme","src_path":"/w/cli/src/main.rs"},"profile":{"test":false},"executable":"/t/leme"}
{"reason":"compiler-artifact","manifest_path":"/w/cli/Cargo.toml","target":{"name":"leme","src_path":"/w/cli/src/main.rs"},"profile":{"test":true},"executable":"/t/deps/leme-1"}
{"reason":"compiler-artifact","manifest_path":"/w/a/Cargo.toml","target":{"name":"a","src_path":"/w/a/src/lib.rs"},"profile":{"test":false},"executable":null}
{"reason":"build-finished","success":true}
"#;
        let artifacts = Artifacts::read(messages.as_bytes()).unwrap();
        assert_eq!(artifacts.program("leme").unwrap(), PathBuf::from("/t/leme"));
        assert!(artifacts.program("a").is_err());
        let runner =
            Runner { executable: "/t/deps/leme-1".into(), folder: "/w/cli".into(), source: "src/main.rs".into() };
        assert_eq!(artifacts.runners(|_| true), [runner]);
    }
}
