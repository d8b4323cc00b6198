//! Debian packages: installed with apt, or only downloaded and unpacked where nothing may be installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::place;
use crate::step::{self, command, output, run_quietly};

/// Installs packages of this machine's own suites.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    step::require_root("installing packages")?;
    let Some(apt) = place::on_path("apt-get") else {
        bail!("this machine has no apt-get; install these yourself: {}", packages.join(" "));
    };
    run_quietly("apt-get update", command(&apt).arg("update"))?;
    run_quietly(
        &format!("apt-get install {}", packages.join(" ")),
        command(&apt)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages),
    )
}

/// Whether apt knows a package here.
pub(crate) fn knows(package: &str) -> bool {
    output(command("apt-cache").args(["policy", package]))
        .is_ok_and(|text| text.contains("Candidate: ") && !text.contains("Candidate: (none)"))
}

/// `name=version` of what apt would take, the identity of an image made from packages.
pub(crate) fn version(package: &str) -> Result<String> {
    let policy = output(command("apt-cache").args(["policy", package]))?;
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(format!("{package}={}", candidate.with_context(|| format!("apt knows no package {package}"))?))
}

/// Downloads packages of this machine's suites and unpacks them below `into`.
pub(crate) fn unpack(packages: &[&str], into: &Path) -> Result<()> {
    download_and_extract(&[], packages, into)
}

/// Another suite of Debian than this machine's, with apt lists of its own: the machine's sources stay as they are.
pub(crate) struct Suite {
    options: Vec<String>,
}

impl Suite {
    /// Reads the suite's package lists.
    pub(crate) fn open(name: &'static str) -> Result<Self> {
        let folder = place::cache().join("apt").join(name);
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(folder.join("cache/archives/partial"))?;
        let sources = folder.join("sources.list");
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        fs::write(&sources, format!("deb [signed-by={keys}] {} {name} main\n", mirror()?))?;
        let options = [
            format!("Dir::Etc::SourceList={}", sources.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", folder.join("lists").display()),
            format!("Dir::Cache={}", folder.join("cache").display()),
            "APT::Sandbox::User=root".to_owned(),
        ];
        let options: Vec<_> = options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect();
        run_quietly(&format!("package lists of Debian {name}"), command("apt-get").args(&options).arg("update"))?;
        Ok(Self { options })
    }

    /// The packages that a package depends on.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let text = output(command("apt-cache").args(&self.options).args(["depends", package]))?;
        Ok(text.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned).collect())
    }

    /// Downloads and unpacks packages into a folder that then is complete.
    pub(crate) fn unpack(&self, packages: &[&str], into: &Path) -> Result<()> {
        let mut parts = into.as_os_str().to_owned();
        parts.push(".partial");
        let parts = PathBuf::from(parts);
        let _ = fs::remove_dir_all(&parts);
        download_and_extract(&self.options, packages, &parts)?;
        fs::rename(&parts, into).with_context(|| format!("cannot make {}", into.display()))
    }
}

/// Where this machine gets its own Debian from; other suites are there, too.
fn mirror() -> Result<String> {
    let format = "$(REPO_URI) $(CODENAME)";
    let text =
        output(command("apt-get").args(["indextargets", "--format", format, "Created-By: Packages", "Label: Debian"]))?;
    // `bookworm` and not `bookworm-updates`: the archive itself.
    let own = text.lines().filter_map(|line| line.split_once(' ')).find(|(_, suite)| !suite.contains('-'));
    let (uri, _) = own.context("apt's sources name no Debian archive: run `apt-get update` and try again")?;
    Ok(uri.to_owned())
}

/// Unpacks a tool that Debian 12 has in too old a version; returns its directory.
pub(crate) fn unpack_newer(package: &str) -> Result<PathBuf> {
    let folder = place::tool(package);
    if !folder.is_dir() {
        Suite::open("trixie")?.unpack(&[package], &folder)?;
    }
    Ok(folder)
}

fn download_and_extract(apt: &[String], packages: &[&str], into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    let archives = tempfile::tempdir()?;
    run_quietly(
        &format!("download {}", packages.join(" ")),
        command("apt-get")
            .current_dir(archives.path())
            .args(apt)
            .args(["-o", "APT::Sandbox::User=root", "download"])
            .args(packages),
    )?;
    for archive in fs::read_dir(archives.path())? {
        output(command("dpkg-deb").arg("--extract").arg(archive?.path()).arg(into))?;
    }
    Ok(())
}

/// All packages that `packages` depend on, themselves included; first alternatives only.
pub(crate) fn closure(packages: &[&str]) -> Result<Vec<String>> {
    let mut known: Vec<String> = packages.iter().map(|&name| name.to_owned()).collect();
    let mut next = 0;
    while let Some(package) = known.get(next).cloned() {
        let text = output(command("apt-cache").args(["depends", "--no-recommends", "--no-suggests", &package]))?;
        let names =
            text.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).filter(|name| !name.starts_with('<'));
        for name in names.map(|name| name.trim_end_matches(":any")) {
            if !known.iter().any(|had| had == name) {
                known.push(name.to_owned());
            }
        }
        next += 1;
    }
    Ok(known)
}
