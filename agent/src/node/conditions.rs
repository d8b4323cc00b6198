//! The node's conditions, from what was measured. Pure but for the measuring, with upstream's words.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NodeCondition;

use super::machine::meminfo;
use super::thresholds::{Amount, Thresholds};
use crate::events::seconds;
use crate::runtime::Cri;

/// What the conditions follow from; what cannot be measured presses nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vitals {
    pub memory: Option<Supply>,
    /// Of the file system that holds the pods.
    pub disk: Option<Supply>,
    pub inodes: Option<Supply>,
    pub pids: Option<Supply>,
    /// Why the node is not ready, in upstream's words; empty: it is.
    pub troubles: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Supply {
    pub free: i64,
    pub all: i64,
}

impl Supply {
    fn is_below(self, threshold: Amount) -> bool {
        self.free < threshold.of(self.all)
    }
}

pub async fn measure(cri: &Cri, root_dir: &std::path::Path, network: Option<String>) -> Vitals {
    let stat = nix::sys::statvfs::statvfs(root_dir).ok();
    let supply = |free: u64, all: u64| Supply { free: free as i64, all: all as i64 };
    let mut troubles = runtime_troubles(cri).await;
    troubles.extend(network);
    Vitals {
        memory: meminfo("MemAvailable").zip(meminfo("MemTotal")).map(|(free, all)| Supply { free, all }),
        disk: stat
            .map(|stat| supply(stat.blocks_available() * stat.fragment_size(), stat.blocks() * stat.fragment_size())),
        inodes: stat.map(|stat| supply(stat.files_available(), stat.files())),
        pids: pids(),
        troubles,
    }
}

async fn runtime_troubles(cri: &Cri) -> Vec<String> {
    let conditions = match cri.status().await {
        Ok(status) => status.status.map(|status| status.conditions).unwrap_or_default(),
        Err(error) => return vec![format!("container runtime is down: {error}")],
    };
    let failed = |kind: &str| conditions.iter().find(|condition| condition.r#type == kind && !condition.status);
    let words = |what: &str, condition: &k8s_cri::v1::RuntimeCondition| {
        format!(
            "{what} not ready: {}=false reason:{} message:{}",
            condition.r#type, condition.reason, condition.message
        )
    };
    let runtime = failed("RuntimeReady").map(|condition| words("container runtime", condition));
    let network = failed("NetworkReady").map(|condition| words("container runtime network", condition));
    runtime.into_iter().chain(network).collect()
}

fn pids() -> Option<Supply> {
    let all: i64 = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()?;
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let tasks: i64 = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(Supply { free: all - tasks, all })
}

/// Type, status, reason, message; `before` keeps the time of the last transition.
pub fn conditions(
    vitals: &Vitals,
    thresholds: &Thresholds,
    before: &[NodeCondition],
    now: Timestamp,
) -> Vec<NodeCondition> {
    let below = |supply: Option<Supply>, threshold| supply.is_some_and(|supply| supply.is_below(threshold));
    let memory = below(vitals.memory, thresholds.memory);
    let disk = below(vitals.disk, thresholds.disk) || below(vitals.inodes, thresholds.inodes);
    let pids = below(vitals.pids, thresholds.pids);
    let pressure = |kind: &str, pressed: bool, bad: &str, good: &str, what: [&str; 2]| {
        let (reason, message) = if pressed { (bad, what[0]) } else { (good, what[1]) };
        (kind.to_owned(), pressed, reason.to_owned(), message.to_owned())
    };
    let ready = match vitals.troubles.as_slice() {
        [] => ("Ready".to_owned(), true, "KubeletReady".to_owned(), "kubelet is posting ready status".to_owned()),
        troubles => ("Ready".to_owned(), false, "KubeletNotReady".to_owned(), format!("[{}]", troubles.join(", "))),
    };
    let ready = match vitals.troubles.as_slice() {
        [one] => (ready.0, ready.1, ready.2, one.clone()),
        _ => ready,
    };
    let all = [
        pressure(
            "MemoryPressure",
            memory,
            "KubeletHasInsufficientMemory",
            "KubeletHasSufficientMemory",
            ["kubelet has insufficient memory available", "kubelet has sufficient memory available"],
        ),
        pressure(
            "DiskPressure",
            disk,
            "KubeletHasDiskPressure",
            "KubeletHasNoDiskPressure",
            ["kubelet has disk pressure", "kubelet has no disk pressure"],
        ),
        pressure(
            "PIDPressure",
            pids,
            "KubeletHasInsufficientPID",
            "KubeletHasSufficientPID",
            ["kubelet has insufficient PID available", "kubelet has sufficient PID available"],
        ),
        ready,
    ];
    all.into_iter().map(|(kind, holds, reason, message)| condition(kind, holds, reason, message, before, now)).collect()
}

fn condition(
    kind: String,
    holds: bool,
    reason: String,
    message: String,
    before: &[NodeCondition],
    now: Timestamp,
) -> NodeCondition {
    let status = if holds { "True" } else { "False" };
    let same = before.iter().find(|old| old.type_ == kind && old.status == status);
    NodeCondition {
        last_transition_time: same.and_then(|old| old.last_transition_time.clone()).or_else(|| Some(seconds(now))),
        last_heartbeat_time: Some(seconds(now)),
        type_: kind,
        status: status.into(),
        reason: Some(reason),
        message: Some(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(all: &'a [NodeCondition], kind: &str) -> &'a NodeCondition {
        all.iter().find(|condition| condition.type_ == kind).unwrap()
    }

    fn healthy() -> Vitals {
        let half = Some(Supply { free: 1 << 30, all: 2 << 30 });
        Vitals { memory: half, disk: half, inodes: half, pids: half, troubles: Vec::new() }
    }

    #[test]
    fn a_healthy_node_is_ready_and_under_no_pressure() {
        let all = conditions(&healthy(), &Thresholds::default(), &[], Timestamp::UNIX_EPOCH);
        let summary: Vec<_> =
            all.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_deref().unwrap())).collect();
        let expected = [
            ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            ("PIDPressure", "False", "KubeletHasSufficientPID"),
            ("Ready", "True", "KubeletReady"),
        ];
        assert_eq!(summary, expected);
    }

    #[test]
    fn a_transition_has_a_new_time_and_the_rest_keep_theirs() {
        let old = conditions(&healthy(), &Thresholds::default(), &[], Timestamp::UNIX_EPOCH);
        let later = Timestamp::from_second(60).unwrap();
        let troubled = Vitals { troubles: vec!["container runtime is down".into()], ..healthy() };
        let new = conditions(&troubled, &Thresholds::default(), &old, later);
        assert_eq!(find(&new, "Ready").last_transition_time, Some(seconds(later)));
        assert_eq!(find(&new, "Ready").message.as_deref(), Some("container runtime is down"));
        assert_eq!(find(&new, "DiskPressure").last_transition_time, Some(seconds(Timestamp::UNIX_EPOCH)));
    }

    #[test]
    fn a_disk_that_is_nearly_full_presses_only_below_its_threshold() {
        let full = Vitals { disk: Some(Supply { free: 5, all: 100 }), ..healthy() };
        let pressed = |thresholds: &Thresholds| {
            find(&conditions(&full, thresholds, &[], Timestamp::UNIX_EPOCH), "DiskPressure").status == "True"
        };
        assert!(pressed(&Thresholds::default()));
        assert!(!pressed(&Thresholds { disk: Amount::Share(0.0), ..Thresholds::default() }));
    }
}
