//! A copy of this machine in which packages are installed and removed: writes go to memory, and what they were can be listed.
#![expect(clippy::unwrap_used, reason = "tests may")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Where packages and tools of the tests lie in the copy.
const OURS: &str = "ours";

pub struct Root {
    folder: PathBuf,
}

/// Runs a test in a copy that is gone after it: it is mounted for this thread's eyes only, so nobody else can even
/// remove a file of the machine through it.
pub fn in_a_copy_of_this_machine(test: impl FnOnce(&Root) + Send) {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let test = scope.spawn(|| test(&Root::mount(folder.path())));
        test.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

impl Root {
    fn mount(folder: &Path) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        fresh("tmpfs", folder);
        for name in ["upper", "work", "root"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        let shown = folder.display();
        let layers = format!("lowerdir=/,upperdir={shown}/upper,workdir={shown}/work");
        let flags = MsFlags::empty();
        mount(Some("overlay"), &folder.join("root"), Some("overlay"), flags, Some(layers.as_str())).unwrap();
        let root = Self { folder: folder.to_path_buf() };
        fresh("proc", &root.path("proc"));
        root.make_devices();
        fs::create_dir(root.path(OURS)).unwrap();
        root
    }

    /// Not the machine's own: nothing here may reach it.
    fn make_devices(&self) {
        fresh("tmpfs", &self.path("dev"));
        for (name, minor) in [("null", 3), ("zero", 5), ("urandom", 9)] {
            mknod(&self.path("dev").join(name), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, minor))
                .unwrap();
        }
    }

    pub fn path(&self, inside: &str) -> PathBuf {
        self.folder.join("root").join(inside.trim_start_matches('/'))
    }

    /// A file from outside, under the path that is returned.
    pub fn bring(&self, file: &Path) -> String {
        let name = file.file_name().unwrap().to_str().unwrap();
        fs::copy(file, self.path(OURS).join(name)).unwrap();
        format!("/{OURS}/{name}")
    }

    pub fn try_run<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> Output {
        let mut command = Command::new("chroot");
        command.arg(self.folder.join("root")).arg(program).args(arguments);
        command.env("PATH", format!("/{OURS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"));
        command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive").current_dir("/").output().unwrap()
    }

    /// What a program that must succeed says on both its outputs.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> String {
        let output = self.try_run(program, arguments);
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success(), "{program} failed ({}): {said}", output.status);
        said
    }

    pub fn dpkg(&self, arguments: &[&str]) -> String {
        // Other packages' triggers are theirs; what is written to memory needs no sync.
        self.run("dpkg", &[&["--no-triggers", "--force-unsafe-io"], arguments].concat())
    }

    /// Puts a `systemctl` before the real one that writes down what it is asked; `systemd_asked` tells.
    pub fn pretend_systemd_runs(&self) {
        let script = self.path(OURS).join("systemctl");
        fs::write(&script, format!("#!/bin/sh\necho \"$*\" >> /{OURS}/asked\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(self.path("run/systemd/system")).unwrap();
    }

    /// What it was asked since the last time.
    pub fn systemd_asked(&self) -> Vec<String> {
        let file = self.path(OURS).join("asked");
        let asked = fs::read_to_string(&file).unwrap_or_default();
        let _ = fs::remove_file(file);
        asked.lines().map(str::to_owned).collect()
    }

    /// Paths that differ from the machine's, without the package manager's own books and what the test brought.
    pub fn changed(&self) -> Vec<String> {
        const OTHERS: [&str; 6] = [OURS, "proc", "dev", "run", "var/lib/dpkg", "var/log"];
        let mut found = Vec::new();
        list(&self.folder.join("upper"), "", &mut found);
        let others = |path: &str| OTHERS.iter().any(|other| path == *other || path.starts_with(&format!("{other}/")));
        found.retain(|path| !others(path));
        found.sort();
        found
    }
}

fn fresh(kind: &str, at: &Path) {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>).unwrap();
}

/// Files, links, and folders that the machine does not have; a folder that it has is only copied on the way to a file.
fn list(folder: &Path, path: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = format!("{path}{}", entry.file_name().to_string_lossy());
        let is_folder = entry.file_type().unwrap().is_dir();
        if !is_folder || !Path::new("/").join(&path).is_dir() {
            found.push(path.clone());
        }
        if is_folder {
            list(&entry.path(), &format!("{path}/"), found);
        }
    }
}
