//! The packages as people meet them: dpkg installs, upgrades, removes and purges, shells complete, man shows.
//! `cargo xtask test dist` packs what they are given: the same contents as an older and as a newer version.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use leme_tests_package::{Root, in_a_copy_of_this_machine};

fn given(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run `cargo xtask test dist`")).into()
}

fn install(root: &Root, which: &str) {
    root.dpkg(&["--install", &root.bring(&given(which))]);
}

#[test]
fn a_package_is_installed_upgraded_and_purged_without_a_trace() {
    in_a_copy_of_this_machine(|root| {
        install(root, "LEME_DEB_OLDER");
        let files = root.changed();
        for file in ["usr/bin/leme", "usr/libexec/leme/leme-cni", "usr/lib/systemd/system/leme-server.service"] {
            assert!(files.iter().any(|path| path.ends_with(file)), "no {file} in {files:?}");
        }
        assert!(root.run("leme", &["--version"]).starts_with("leme "));
        let older = root.run("dpkg-query", &["--show", "--showformat=${Version} ${Status}", "leme"]);
        install(root, "LEME_DEB_NEWER");
        let newer = root.run("dpkg-query", &["--show", "--showformat=${Version} ${Status}", "leme"]);
        assert_ne!(older, newer);
        assert!(newer.ends_with("install ok installed"), "{newer}");
        assert_eq!(root.changed(), files);
        assert_eq!(root.run("dpkg", &["--verify", "leme"]), "");
        root.dpkg(&["--purge", "leme"]);
        assert_eq!(root.changed(), [""; 0]);
    });
}

#[test]
fn everything_belongs_to_root_and_only_programs_may_run() {
    in_a_copy_of_this_machine(|root| {
        let listing = root.run("dpkg-deb", &["--contents", &root.bring(&given("LEME_DEB_NEWER"))]);
        for line in listing.lines() {
            let mut columns = line.split_whitespace();
            let (mode, owner) = (columns.next().unwrap(), columns.next().unwrap());
            let path = columns.next_back().unwrap();
            let expected = match path {
                folder if folder.ends_with('/') => "drwxr-xr-x",
                "usr/bin/leme" | "usr/libexec/leme/leme-cni" => "-rwxr-xr-x",
                _ => "-rw-r--r--",
            };
            assert_eq!((mode, owner), (expected, "root/root"), "{path}");
        }
        assert!(listing.lines().count() > 30, "{listing}");
    });
}

#[test]
fn installing_starts_and_enables_nothing_upgrading_restarts_what_runs_removing_stops_it() {
    in_a_copy_of_this_machine(|root| {
        root.pretend_systemd_runs();
        install(root, "LEME_DEB_OLDER");
        assert_eq!(root.systemd_asked(), ["daemon-reload"]);
        install(root, "LEME_DEB_NEWER");
        assert_eq!(root.systemd_asked(), ["daemon-reload", "try-restart leme-server.service leme-agent.service"]);
        root.dpkg(&["--remove", "leme"]);
        assert_eq!(root.systemd_asked(), ["stop leme-agent.service leme-server.service", "daemon-reload"]);
        install(root, "LEME_DEB_NEWER");
        let again = root.systemd_asked();
        assert!(!again.iter().any(|asked| asked.starts_with("start") || asked.starts_with("enable")), "{again:?}");
    });
}

#[test]
fn what_an_administrator_wrote_survives_upgrade_and_removal_and_goes_with_the_purge() {
    in_a_copy_of_this_machine(|root| {
        install(root, "LEME_DEB_OLDER");
        let file = root.path("etc/leme/server.env");
        fs::write(&file, "LEME_SERVER_EXTRA_FLAGS=\"--secure-port 7443\"\n").unwrap();
        install(root, "LEME_DEB_NEWER");
        root.dpkg(&["--remove", "leme"]);
        assert!(fs::read_to_string(&file).unwrap().contains("7443"));
        root.dpkg(&["--purge", "leme"]);
        assert!(!root.path("etc/leme").exists());
    });
}

#[test]
fn the_clusters_data_survive_the_package_and_it_says_so() {
    in_a_copy_of_this_machine(|root| {
        install(root, "LEME_DEB_NEWER");
        fs::create_dir_all(root.path("var/lib/leme/server")).unwrap();
        let said = root.dpkg(&["--purge", "leme"]);
        assert!(said.contains("/var/lib/leme"), "{said}");
        assert!(root.path("var/lib/leme/server").is_dir());
    });
}

#[test]
fn systemd_understands_the_units() {
    in_a_copy_of_this_machine(|root| {
        install(root, "LEME_DEB_NEWER");
        for unit in ["leme-server.service", "leme-agent.service"] {
            let said = root.run("systemd-analyze", &["verify", "--man=no", &format!("/usr/lib/systemd/system/{unit}")]);
            let about_it: Vec<_> = said.lines().filter(|line| line.contains("leme")).collect();
            assert_eq!(about_it, [""; 0], "{unit}");
        }
    });
}

#[test]
fn every_command_has_a_man_page_and_mandoc_finds_no_fault_in_it() {
    in_a_copy_of_this_machine(|root| {
        install(root, "LEME_DEB_NEWER");
        let pages: Vec<_> = fs::read_dir(root.path("usr/share/man/man1")).unwrap().map(|page| page.unwrap()).collect();
        let pages: Vec<_> = pages.iter().map(|page| page.file_name().into_string().unwrap()).collect();
        let pages: Vec<_> = pages.iter().filter(|page| page.starts_with("leme")).collect();
        for command in ["leme.1.gz", "leme-up.1.gz", "leme-node-exec.1.gz", "leme-server.1.gz"] {
            assert!(pages.iter().any(|page| *page == command), "no {command} in {pages:?}");
        }
        for page in pages {
            root.run("mandoc", &["-Tlint", "-Werror", &format!("/usr/share/man/man1/{page}")]);
        }
    });
}

#[test]
fn bash_completes_commands_and_flags() {
    in_a_copy_of_this_machine(|root| {
        install(root, "LEME_DEB_NEWER");
        let complete = |words: &str, at: usize| {
            let script = format!(
                "source /usr/share/bash-completion/completions/leme; COMP_WORDS=({words}); COMP_CWORD={at}; \
                 _leme leme \"${{COMP_WORDS[{at}]}}\" \"${{COMP_WORDS[{}]}}\"; echo \"${{COMPREPLY[@]}}\"",
                at - 1
            );
            root.run("bash", &["-c", &script])
        };
        assert_eq!(complete("leme ser", 1).trim(), "server");
        assert_eq!(complete("leme up --nod", 2).trim(), "--nodes");
        let zsh = fs::read_to_string(root.path("usr/share/zsh/vendor-completions/_leme")).unwrap();
        assert!(zsh.starts_with("#compdef leme\n"));
        let fish = fs::read_to_string(root.path("usr/share/fish/vendor_completions.d/leme.fish")).unwrap();
        assert!(fish.contains("complete -c leme"));
    });
}

#[test]
fn the_tarball_unpacks_into_a_prefix_and_its_units_start_what_is_there() {
    in_a_copy_of_this_machine(|root| {
        let tarball = root.bring(&given("LEME_TARBALL"));
        root.run("tar", &["-xzf", &tarball, "-C", "/usr/local", "--strip-components=1"]);
        assert!(root.run("/usr/local/bin/leme", &["--version"]).starts_with("leme "));
        let unit = fs::read_to_string(root.path("usr/local/lib/systemd/system/leme-agent.service")).unwrap();
        assert!(unit.contains("\nExecStart=/usr/local/bin/leme agent "), "{unit}");
        let plugin = fs::metadata(root.path("usr/local/libexec/leme/leme-cni")).unwrap();
        assert_eq!(plugin.permissions().mode() & 0o777, 0o755);
    });
}
