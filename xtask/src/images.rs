//! `cargo xtask images`: images assembled from Debian packages, so that `image: nginx` really pulls on a machine
//! without internet. Each is rebuilt only when its recipe or a package version changes.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::oci::{self, Image};
use crate::step::{command, output, say};
use crate::{debian, place, registry, setup};

/// How to make one image.
struct Recipe {
    name: &'static str,
    tags: &'static [&'static str],
    /// Packages unpacked with all they depend on; only `binaries` and the libraries those load are kept.
    packages: &'static [&'static str],
    binaries: &'static [&'static str],
    /// Further files kept from the packages.
    files: &'static [&'static str],
    prepare: fn(&Path) -> Result<()>,
    container: fn() -> Value,
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "pause",
        tags: &["3.6", "3.8", "3.9", "3.10"],
        packages: &[],
        binaries: &[],
        files: &[],
        prepare: pause,
        container: || json!({ "Entrypoint": ["/pause"], "User": "65535:65535", "Env": [PATH] }),
    },
    Recipe {
        name: "library/busybox",
        tags: &["latest", "1.36"],
        packages: &["busybox-static"],
        binaries: &[],
        files: &["bin/busybox"],
        prepare: busybox,
        container: || json!({ "Cmd": ["sh"], "Env": [PATH] }),
    },
    nginx(&["latest"], || nginx_container("1.29")),
    nginx(&["1.7.9"], || nginx_container("1.7.9")),
    nginx(&["stable-alpine"], || nginx_container("stable-alpine")),
    Recipe {
        name: "leme/tools",
        tags: &["latest"],
        packages: &["bind9-dnsutils", "bind9-host", "curl", "netcat-openbsd", "busybox-static", "ca-certificates"],
        binaries: &["usr/bin/dig", "usr/bin/nslookup", "usr/bin/host", "usr/bin/curl", "bin/nc.openbsd"],
        files: &["bin/busybox"],
        prepare: tools,
        container: || json!({ "Cmd": ["sleep", "infinity"], "Env": [PATH] }),
    },
];

const fn nginx(tags: &'static [&'static str], container: fn() -> Value) -> Recipe {
    Recipe {
        name: "library/nginx",
        tags,
        packages: &["nginx", "nginx-common", "busybox-static"],
        binaries: &["usr/sbin/nginx"],
        files: &["bin/busybox", "usr/share/nginx/html/index.html", "etc/nginx/mime.types"],
        prepare: prepare_nginx,
        container,
    }
}

fn nginx_container(version: &str) -> Value {
    json!({
        "Cmd": ["nginx", "-g", "daemon off;"], "Env": [PATH, format!("NGINX_VERSION={version}")],
        "ExposedPorts": { "80/tcp": {} }, "StopSignal": "SIGQUIT",
    })
}

pub(crate) fn run() -> Result<()> {
    setup::run()?;
    let registry = registry::start()?;
    let result = push_all(registry);
    registry::stop()?;
    result
}

/// Makes and pushes every image whose recipe the registry has not seen.
pub(crate) fn push_all(registry: SocketAddr) -> Result<()> {
    for recipe in RECIPES {
        let identity = identity(recipe)?;
        let marker =
            place::cache().join("images").join(format!("{}-{}", recipe.name.replace('/', "-"), recipe.tags[0]));
        let known = fs::read_to_string(&marker).is_ok_and(|known| known == identity);
        if known && recipe.tags.iter().all(|tag| oci::has(registry, recipe.name, tag)) {
            continue;
        }
        say(&format!("Assembling image {}:{}", recipe.name, recipe.tags[0]));
        let root = assemble(recipe).with_context(|| format!("cannot assemble image {}", recipe.name))?;
        Image::pack(root.path(), &(recipe.container)())?.push(registry, recipe.name, recipe.tags)?;
        fs::create_dir_all(marker.parent().expect("the marker lies in a folder"))?;
        fs::write(marker, identity)?;
    }
    Ok(())
}

/// Changes when what the image would contain does.
fn identity(recipe: &Recipe) -> Result<String> {
    let versions: Vec<_> = recipe.packages.iter().map(|package| debian::version(package)).collect::<Result<_>>()?;
    let this = include_bytes!("images.rs");
    Ok(format!("{} {} {}", oci::digest(this), versions.join(" "), (recipe.container)()))
}

fn assemble(recipe: &Recipe) -> Result<tempfile::TempDir> {
    let root = tempfile::tempdir()?;
    if !recipe.packages.is_empty() {
        let source = unpacked(recipe.packages)?;
        for file in recipe.files.iter().chain(recipe.binaries) {
            copy(&source, root.path(), Path::new(file))?;
        }
        for binary in recipe.binaries {
            copy_libraries(&source, root.path(), binary)?;
        }
    }
    (recipe.prepare)(root.path())?;
    Ok(root)
}

/// The closure of some packages, unpacked once per set of versions.
fn unpacked(packages: &[&str]) -> Result<PathBuf> {
    let versions: Vec<_> = packages.iter().map(|package| debian::version(package)).collect::<Result<_>>()?;
    let key = oci::digest(versions.join(" ").as_bytes());
    let folder = place::cache().join("packages").join(key.trim_start_matches("sha256:"));
    if !folder.is_dir() {
        let closure = debian::closure(packages)?;
        // Not needed by any of the binaries, and large.
        let wanted: Vec<_> = closure
            .iter()
            .map(String::as_str)
            .filter(|name| !["debconf", "perl-base", "dpkg", "tar"].contains(name))
            .collect();
        let parts = folder.with_extension("partial");
        let _ = fs::remove_dir_all(&parts);
        debian::unpack(&wanted, &parts)?;
        fs::rename(&parts, &folder)?;
    }
    Ok(folder)
}

/// Copies a file to the same path, following links.
fn copy(from: &Path, to: &Path, file: &Path) -> Result<()> {
    let target = to.join(file);
    fs::create_dir_all(target.parent().context("a file in no folder")?)?;
    fs::copy(from.join(file), &target).with_context(|| format!("the packages have no {}", file.display())).map(drop)
}

/// Asks the packages' own loader which libraries a binary loads, and copies those.
fn copy_libraries(from: &Path, to: &Path, binary: &str) -> Result<()> {
    let search = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|folder| from.join(folder));
    let loader = ["lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"]
        .map(|file| from.join(file))
        .into_iter()
        .chain([search[1].join("ld-linux-x86-64.so.2"), search[0].join("ld-linux-x86-64.so.2")])
        .find(|file| fs::metadata(file).is_ok_and(|meta| meta.is_file()))
        .context("the packages have no dynamic loader")?;
    let paths = search.map(|folder| folder.display().to_string()).join(":");
    let list = output(command(&loader).args(["--list", "--library-path", &paths]).arg(from.join(binary)))?;
    for library in list.lines().filter_map(|line| line.split(" => ").nth(1)?.split(' ').next()) {
        let library = Path::new(library);
        let name = library.file_name().context("a library without a name")?;
        let target = to.join("usr/lib/x86_64-linux-gnu").join(name);
        fs::create_dir_all(target.parent().expect("has a parent"))?;
        fs::copy(library, target).with_context(|| format!("cannot copy {}", library.display()))?;
    }
    fs::create_dir_all(to.join("lib64"))?;
    fs::copy(&loader, to.join("lib64/ld-linux-x86-64.so.2"))?;
    Ok(())
}

/// What every image has: a user table, a temporary directory, names resolved by DNS.
fn base(root: &Path) -> Result<()> {
    for folder in ["etc", "tmp", "root", "run", "var/log", "bin", "usr/bin"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\nnobody:x:65534:65534::/:/bin/false\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n")?;
    Ok(fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")?)
}

fn busybox(root: &Path) -> Result<()> {
    base(root)?;
    for applet in output(command(root.join("bin/busybox")).arg("--list"))?.lines().filter(|&applet| applet != "busybox")
    {
        let taken = ["bin", "sbin", "usr/bin", "usr/sbin"].iter().any(|folder| root.join(folder).join(applet).exists());
        if !taken {
            symlink("/bin/busybox", root.join("bin").join(applet))?;
        }
    }
    Ok(())
}

fn tools(root: &Path) -> Result<()> {
    symlink("nc.openbsd", root.join("bin/nc"))?;
    busybox(root)
}

fn prepare_nginx(root: &Path) -> Result<()> {
    busybox(root)?;
    for folder in ["var/log/nginx", "var/lib/nginx/body", "etc/nginx/conf.d"] {
        fs::create_dir_all(root.join(folder))?;
    }
    symlink("/dev/stdout", root.join("var/log/nginx/access.log"))?;
    symlink("/dev/stderr", root.join("var/log/nginx/error.log"))?;
    fs::write(root.join("etc/nginx/nginx.conf"), NGINX_CONF)?;
    Ok(())
}

const NGINX_CONF: &str = "\
user www-data;
worker_processes 1;
error_log /var/log/nginx/error.log notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
    include mime.types;
    default_type application/octet-stream;
    access_log /var/log/nginx/access.log;
    server {
        listen 80;
        root /usr/share/nginx/html;
        index index.html;
    }
}
";

/// The sandbox's process: sleeps, reaps, ends when told to.
const PAUSE: &str = r"
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, NULL, WNOHANG) > 0); }
int main(void) {
    signal(SIGTERM, end);
    signal(SIGINT, end);
    signal(SIGCHLD, reap);
    for (;;) pause();
}
";

fn pause(root: &Path) -> Result<()> {
    let source = tempfile::Builder::new().suffix(".c").tempfile()?;
    fs::write(source.path(), PAUSE)?;
    output(command("cc").args(["-Os", "-static", "-s", "-o"]).arg(root.join("pause")).arg(source.path())).map(drop)
}
