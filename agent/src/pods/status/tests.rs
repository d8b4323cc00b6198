//! Status as a table: pod and containers → phase, conditions, states.

use super::*;
use crate::pods::observed::Sandbox;
use serde_json::{Value, json};

fn pod(spec: Value) -> core::Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u", "generation": 3}, "spec": spec})).unwrap()
}

fn web(policy: &str) -> core::Pod {
    pod(json!({"restartPolicy": policy, "containers": [{"name": "web", "image": "nginx"}]}))
}

fn container(state: State, exit_code: i32) -> Container {
    Container { id: "c0".into(), name: "web".into(), sandbox: "s0".into(), state, exit_code, ..Default::default() }
}

fn observed(containers: Vec<Container>) -> Observed {
    let sandbox =
        Sandbox { id: "s0".into(), ready: true, ips: vec!["10.244.0.5".parse().unwrap()], ..Default::default() };
    Observed { sandboxes: vec![sandbox], containers }
}

fn healthy() -> Memory {
    Memory {
        probes: [("c0".to_owned(), Health { started: true, ready: true, failed: None })].into(),
        ..Default::default()
    }
}

fn status(pod: &core::Pod, goal: Goal, observed: &Observed, memory: &Memory) -> core::PodStatus {
    let node_ip = "192.0.2.1".parse().unwrap();
    compute(&Input { pod, goal, observed, memory, failure: None, node_ip, now: Timestamp::UNIX_EPOCH })
}

fn condition_of(status: &core::PodStatus, kind: &str) -> String {
    let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == kind).unwrap();
    format!("{} {}", condition.status, condition.reason.as_deref().unwrap_or_default()).trim().to_owned()
}

#[test]
fn a_running_pod_is_ready_and_has_its_addresses() {
    let status = status(&web("Always"), Goal::Run, &observed(vec![container(State::Running, 0)]), &healthy());
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.5"));
    assert_eq!(status.observed_generation, Some(3));
    for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        assert_eq!(condition_of(&status, kind), "True", "{kind}");
    }
    let container = &status.container_statuses.unwrap()[0];
    assert!(container.ready && container.started == Some(true));
    assert_eq!(container.container_id.as_deref(), Some("containerd://c0"));
}

#[test]
fn the_phase_follows_from_exits_and_policy() {
    for (policy, code, expected) in [
        ("Never", 0, "Succeeded"),
        ("Never", 1, "Failed"),
        ("OnFailure", 0, "Succeeded"),
        ("OnFailure", 1, "Running"),
        ("Always", 0, "Running"),
    ] {
        let status =
            status(&web(policy), Goal::Run, &observed(vec![container(State::Exited, code)]), &Memory::default());
        assert_eq!(status.phase.as_deref(), Some(expected), "{policy} {code}");
    }
    let unborn = status(&web("Always"), Goal::Run, &observed(vec![]), &Memory::default());
    assert_eq!(unborn.phase.as_deref(), Some("Pending"));
    assert_eq!(condition_of(&unborn, "Ready"), "False ContainersNotReady");
    let done = status(&web("Never"), Goal::Run, &observed(vec![container(State::Exited, 0)]), &Memory::default());
    assert_eq!(condition_of(&done, "Ready"), "False PodCompleted");
}

#[test]
fn a_crash_loop_shows_why_it_waits_and_how_it_ended() {
    let waiting = Waiting { reason: "CrashLoopBackOff".into(), message: "back-off 10s".into() };
    let memory = Memory { waiting: [("web".to_owned(), waiting)].into(), ..Default::default() };
    let status = status(&web("Always"), Goal::Run, &observed(vec![container(State::Exited, 7)]), &memory);
    let container = &status.container_statuses.unwrap()[0];
    let reason = container.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.clone();
    let ended = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((reason.as_deref(), ended.exit_code), (Some("CrashLoopBackOff"), 7));
    assert_eq!(status.phase.as_deref(), Some("Running"));
}

#[test]
fn a_closed_readiness_gate_keeps_the_pod_out() {
    let pod = pod(json!({"containers": [{"name": "web"}], "readinessGates": [{"conditionType": "example.org/lb"}]}));
    let status = status(&pod, Goal::Run, &observed(vec![container(State::Running, 0)]), &healthy());
    assert_eq!(condition_of(&status, "ContainersReady"), "True");
    assert_eq!(condition_of(&status, "Ready"), "False ReadinessGatesNotReady");
}

#[test]
fn a_refused_pod_has_failed_with_the_reason_and_nothing_else() {
    let pod = web("Always");
    let failure = Failure { reason: "OutOfcpu".into(), message: "Pod was rejected: …".into() };
    let status = compute(&Input {
        pod: &pod,
        goal: Goal::Finish,
        observed: &Observed::default(),
        memory: &Memory::default(),
        failure: Some(&failure),
        node_ip: "192.0.2.1".parse().unwrap(),
        now: Timestamp::UNIX_EPOCH,
    });
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
    assert_eq!(status.container_statuses, None);
}

#[test]
fn an_adopted_container_is_what_the_api_was_told_until_its_probe_speaks() {
    let mut pod = pod(json!({"containers": [{"name": "web", "readinessProbe": {"tcpSocket": {"port": 80}}}]}));
    let spec = pod.spec.as_ref().unwrap().containers[0].clone();
    assert!(!initial_health(&pod, &spec, "c0").ready);
    pod.status = serde_json::from_value(json!({"containerStatuses": [{"name": "web", "ready": true, "restartCount": 0,
        "image": "", "imageID": "", "containerID": "containerd://c0", "state": {"running": {}}}]}))
    .unwrap();
    assert!(initial_health(&pod, &spec, "c0").ready);
    assert!(!initial_health(&pod, &spec, "c1").ready, "another incarnation starts anew");
}

#[test]
fn a_pod_whose_sidecar_still_runs_has_not_ended_yet() {
    let pod = pod(json!({"restartPolicy": "Never", "containers": [{"name": "web"}],
        "initContainers": [{"name": "side", "restartPolicy": "Always"}]}));
    let phase = |side| {
        let side = Container { id: "c1".into(), name: "side".into(), ..container(side, 0) };
        let observed = observed(vec![container(State::Exited, 0), side]);
        status(&pod, Goal::Run, &observed, &Memory::default()).phase
    };
    assert_eq!(phase(State::Running).as_deref(), Some("Running"));
    assert_eq!(phase(State::Exited).as_deref(), Some("Succeeded"));
}
