//! What `kubectl get pods` prints. STATUS is the phase, unless a container, an init container or the deletion has
//! something more telling to say.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::{
    age,
    field::{int, items, or_none, text},
};

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let seen = look(pod);
    let metadata = &pod["metadata"];
    let address = match items(pod, "/status/podIPs").first() {
        Some(first) => text(first, "/ip"),
        None => text(pod, "/status/podIP"),
    };
    vec![
        metadata["name"].clone(),
        json!(format!("{}/{}", seen.ready, seen.total)),
        json!(seen.reason),
        json!(restarts(&seen, now)),
        json!(age(metadata.get("creationTimestamp"), now)),
        or_none(address),
        or_none(text(pod, "/spec/nodeName")),
        or_none(text(pod, "/status/nominatedNodeName")),
        json!(readiness_gates(pod)),
    ]
}

/// What is known of a pod's containers.
#[derive(Default)]
struct Seen<'a> {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    /// When the last one that restarted had ended.
    last: &'a str,
}

impl<'a> Seen<'a> {
    fn count_restarts(&mut self, status: &'a Value) {
        self.restarts += int(status, "/restartCount");
        self.last = self.last.max(text(status, "/lastState/terminated/finishedAt"));
    }
}

fn look(pod: &Value) -> Seen<'_> {
    let mut seen = Seen { total: items(pod, "/spec/containers").len(), reason: phase(pod), ..Seen::default() };
    seen.total += items(pod, "/spec/initContainers").iter().filter(|c| is_sidecar(c)).count();
    let initializing = look_at_init(pod, &mut seen);
    let initialized = condition(pod, "Initialized");
    if !initializing || initialized {
        look_at_containers(pod, &mut seen);
    }
    let leaving = pod["metadata"].get("deletionTimestamp").is_some_and(|t| !t.is_null());
    if leaving && text(pod, "/status/reason") == "NodeLost" {
        seen.reason = "Unknown".into();
    } else if leaving && !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
        seen.reason = "Terminating".into();
    }
    seen
}

fn phase(pod: &Value) -> String {
    let gated = |c: &Value| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated";
    if items(pod, "/status/conditions").iter().any(gated) {
        return "SchedulingGated".into();
    }
    match text(pod, "/status/reason") {
        "" => text(pod, "/status/phase").to_owned(),
        reason => reason.to_owned(),
    }
}

/// True while an init container has still to end.
fn look_at_init<'a>(pod: &'a Value, seen: &mut Seen<'a>) -> bool {
    let specs = items(pod, "/spec/initContainers");
    for (i, status) in items(pod, "/status/initContainerStatuses").iter().enumerate() {
        seen.count_restarts(status);
        let sidecar = specs.iter().any(|spec| spec["name"] == status["name"] && is_sidecar(spec));
        let ended = &status["state"]["terminated"];
        if ended.is_object() && int(ended, "/exitCode") == 0 {
            continue;
        }
        if sidecar && status["started"] == true {
            seen.ready += usize::from(status["ready"] == true);
            continue;
        }
        seen.reason = match text(status, "/state/waiting/reason") {
            _ if ended.is_object() => format!("Init:{}", ending(ended)),
            "" | "PodInitializing" => format!("Init:{i}/{}", specs.len()),
            waiting => format!("Init:{waiting}"),
        };
        return true;
    }
    false
}

fn look_at_containers<'a>(pod: &'a Value, seen: &mut Seen<'a>) {
    forget_ended_init(pod, seen);
    let mut running = false;
    for status in items(pod, "/status/containerStatuses").iter().rev() {
        seen.count_restarts(status);
        let state = &status["state"];
        match text(state, "/waiting/reason") {
            "" if state["terminated"].is_object() => seen.reason = ending(&state["terminated"]),
            "" if status["ready"] == true && state["running"].is_object() => {
                running = true;
                seen.ready += 1;
            }
            "" => {}
            waiting => seen.reason = waiting.to_owned(),
        }
    }
    if seen.reason == "Completed" && running {
        seen.reason = if condition(pod, "Ready") { "Running" } else { "NotReady" }.into();
    }
}

/// Once the pod is initialized, only init containers that go on running count.
fn forget_ended_init<'a>(pod: &'a Value, seen: &mut Seen<'a>) {
    let specs = items(pod, "/spec/initContainers");
    (seen.restarts, seen.last) = (0, "");
    for status in items(pod, "/status/initContainerStatuses") {
        if specs.iter().any(|spec| spec["name"] == status["name"] && is_sidecar(spec)) {
            seen.count_restarts(status);
        }
    }
}

fn ending(terminated: &Value) -> String {
    match (text(terminated, "/reason"), int(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", int(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn is_sidecar(spec: &Value) -> bool {
    spec["restartPolicy"] == "Always"
}

fn condition(pod: &Value, kind: &str) -> bool {
    items(pod, "/status/conditions").iter().any(|c| c["type"] == kind && c["status"] == "True")
}

fn restarts(seen: &Seen<'_>, now: Timestamp) -> String {
    match (seen.restarts, seen.last) {
        (0, _) | (_, "") => seen.restarts.to_string(),
        (count, last) => format!("{count} ({} ago)", age(Some(&last.into()), now)),
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = items(pod, "/spec/readinessGates");
    let met = gates.iter().filter(|gate| condition(pod, text(gate, "/conditionType"))).count();
    if gates.is_empty() { "<none>".into() } else { format!("{met}/{}", gates.len()) }
}
