//! `leme-bench net` end to end with next to no load: every world is built, every path answers in each of them, every
//! program runs, and nothing stays. What it measures is not looked at.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn every_path_answers_in_every_world_and_nothing_stays() {
    let mut net = Command::new(env!("CARGO_BIN_EXE_leme-bench"));
    net.args(["net", "--services", "1,4", "--rounds", "1", "--millis", "10", "--programmed", "5"]);
    let child = net.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let run = child.id().to_string();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let measured = leme_measure::measurement::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    for it in &measured {
        assert!(it.samples.iter().all(|sample| *sample > 0.0), "{it:?}");
    }
    let paths = measured.iter().filter_map(|it| it.metric.split_once(": requests")).map(|it| it.0);
    assert_eq!(paths.collect::<BTreeSet<_>>().len(), 4);
    let subjects: BTreeSet<_> =
        measured.iter().filter(|it| it.services == Some(4)).map(|it| it.subject.as_str()).collect();
    assert!(subjects.is_superset(&BTreeSet::from(["leme", "nftables rules", "iptables rules"])), "{subjects:?}");
    assert!(measured.iter().any(|it| it.metric.starts_with("connect4")));
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        assert!(!Path::new(root).join("leme-bench").join(&run).exists());
    }
    assert!(!Path::new("/sys/fs/bpf/leme-bench").exists());
}
