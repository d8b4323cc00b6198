//! The pod's state machine as a table: pod, what runs, what is known → actions.

use super::*;
use crate::pods::observed::Sandbox;
use serde_json::{Value, json};

fn pod(spec: Value) -> core::Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec})).unwrap()
}

fn web() -> core::Pod {
    pod(json!({"containers": [{"name": "web", "image": "nginx"}]}))
}

fn sandbox() -> Sandbox {
    Sandbox { id: "s0".into(), ready: true, ..Default::default() }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn container(pod: &core::Pod, name: &str, state: State, exit_code: i32) -> Container {
    let spec = containers(pod).find(|(_, spec)| spec.name == name).unwrap().1;
    Container {
        id: format!("{name}-0"),
        name: name.into(),
        sandbox: "s0".into(),
        state,
        exit_code,
        finished: (state == State::Exited).then(|| at(0)),
        hash: hash(spec),
        ..Default::default()
    }
}

fn observed(containers: Vec<Container>) -> Observed {
    Observed { sandboxes: vec![sandbox()], containers }
}

fn ready() -> Memory {
    Memory { volumes_ready: true, ..Default::default() }
}

fn start(container: &str, attempt: u32) -> Action {
    Action::Start { container: container.into(), attempt }
}

fn run(pod: &core::Pod, observed: &Observed, memory: &Memory) -> Vec<Action> {
    plan(pod, Goal::Run, observed, memory, at(100)).actions
}

#[test]
fn a_new_pod_gets_volumes_then_a_sandbox_then_its_containers() {
    let pod = web();
    assert_eq!(run(&pod, &Observed::default(), &Memory::default()), [Action::PrepareVolumes]);
    assert_eq!(run(&pod, &Observed::default(), &ready()), [Action::RunSandbox { attempt: 0 }]);
    assert_eq!(run(&pod, &observed(vec![]), &ready()), [start("web", 0)]);
    assert_eq!(run(&pod, &observed(vec![container(&pod, "web", State::Running, 0)]), &ready()), []);
}

#[test]
fn what_is_under_way_is_not_begun_again() {
    let memory = Memory { busy: [Work::Container("web".into())].into(), ..ready() };
    assert_eq!(run(&web(), &observed(vec![]), &memory), []);
}

#[test]
fn a_failed_attempt_is_repeated_only_after_its_pause() {
    let memory = Memory { retry_at: [(Work::Sandbox, at(130))].into(), ..ready() };
    let planned = plan(&web(), Goal::Run, &Observed::default(), &memory, at(100));
    assert_eq!((planned.actions, planned.wake), (vec![], Some(at(130))));
    assert_eq!(
        plan(&web(), Goal::Run, &Observed::default(), &memory, at(130)).actions,
        [Action::RunSandbox { attempt: 0 }]
    );
}

#[test]
fn the_restart_policy_decides_what_follows_an_exit() {
    for (policy, code, restarts) in
        [("Always", 0, true), ("Always", 1, true), ("OnFailure", 0, false), ("OnFailure", 1, true), ("Never", 1, false)]
    {
        let pod = pod(json!({"restartPolicy": policy, "containers": [{"name": "web"}]}));
        let observed = observed(vec![container(&pod, "web", State::Exited, code)]);
        let actions = run(&pod, &observed, &ready());
        assert_eq!(actions.contains(&start("web", 1)), restarts, "{policy} {code}");
        assert_eq!(has_ended(&pod, &observed), !restarts, "{policy} {code}");
    }
}

#[test]
fn a_rule_of_the_container_overrides_the_policy() {
    let rule = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let pod = pod(json!({"restartPolicy": "Never",
        "containers": [{"name": "web", "restartPolicy": "Never", "restartPolicyRules": rule}]}));
    for (code, restarts) in [(42, true), (1, false)] {
        let observed = observed(vec![container(&pod, "web", State::Exited, code)]);
        assert_eq!(run(&pod, &observed, &ready()).contains(&start("web", 1)), restarts, "{code}");
    }
}

#[test]
fn a_crash_loop_waits_for_its_back_off() {
    let pod = web();
    let mut backoff = Backoff::default();
    (0..4).for_each(|_| backoff.advance(at(0)));
    let memory = Memory { crashes: [("web".to_owned(), backoff)].into(), ..ready() };
    let observed = observed(vec![container(&pod, "web", State::Exited, 1)]);
    let early = plan(&pod, Goal::Run, &observed, &memory, at(79));
    assert_eq!((early.actions, early.wake, early.backing_off), (vec![], Some(at(80)), vec!["web".to_owned()]));
    assert_eq!(plan(&pod, Goal::Run, &observed, &memory, at(80)).actions, [start("web", 1)]);
}

#[test]
fn init_containers_run_one_by_one_and_sidecars_stay_beside_the_apps() {
    let pod = pod(json!({"containers": [{"name": "web"}], "initContainers": [
        {"name": "first"}, {"name": "side", "restartPolicy": "Always"}, {"name": "last"}]}));
    let exited = |name| container(&pod, name, State::Exited, 0);
    let running = |name| container(&pod, name, State::Running, 0);
    let started =
        Memory { probes: [("side-0".to_owned(), Health { started: true, ..Default::default() })].into(), ..ready() };
    assert_eq!(run(&pod, &observed(vec![]), &ready()), [start("first", 0)]);
    assert_eq!(run(&pod, &observed(vec![running("first")]), &ready()), []);
    assert_eq!(run(&pod, &observed(vec![exited("first")]), &ready()), [start("side", 0)]);
    let beside = observed(vec![running("side"), exited("first")]);
    assert_eq!(run(&pod, &beside, &ready()), [], "the sidecar has not started yet");
    assert_eq!(run(&pod, &beside, &started), [start("last", 0)]);
    let done = observed(vec![exited("last"), running("side"), exited("first")]);
    assert_eq!(run(&pod, &done, &started), [start("web", 0)]);
    let crashed = observed(vec![running("web"), exited("last"), exited("side"), exited("first")]);
    assert_eq!(run(&pod, &crashed, &ready()), [start("side", 1)]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let pod =
        pod(json!({"restartPolicy": "Never", "containers": [{"name": "web"}], "initContainers": [{"name": "first"}]}));
    let failed = observed(vec![container(&pod, "first", State::Exited, 3)]);
    assert!(has_ended(&pod, &failed));
    assert_eq!(run(&pod, &failed, &ready()), [Action::StopSandbox { id: "s0".into() }]);
}

#[test]
fn a_failed_probe_and_a_changed_image_stop_the_container() {
    let pod = web();
    let failed = Memory {
        probes: [("web-0".to_owned(), Health { failed: Some("Liveness"), ..Default::default() })].into(),
        ..ready()
    };
    let stop = |why| Action::Stop { container: "web".into(), id: "web-0".into(), grace: Duration::from_secs(30), why };
    let running = observed(vec![container(&pod, "web", State::Running, 0)]);
    assert_eq!(run(&pod, &running, &failed), [stop(Why::Probe("Liveness"))]);
    let changed =
        Observed { containers: vec![Container { hash: "other".into(), ..running.containers[0].clone() }], ..running };
    assert_eq!(run(&pod, &changed, &ready()), [stop(Why::Changed)]);
}

#[test]
fn a_lost_sandbox_is_stopped_and_replaced() {
    let pod = web();
    let mut lost = observed(vec![container(&pod, "web", State::Exited, 137)]);
    lost.sandboxes[0].ready = false;
    assert_eq!(run(&pod, &lost, &ready()), [Action::StopSandbox { id: "s0".into() }]);
    let stopped = Memory { stopped: ["s0".to_owned()].into(), ..ready() };
    assert_eq!(run(&pod, &lost, &stopped), [Action::RunSandbox { attempt: 1 }]);
}

#[test]
fn deletion_drains_stops_cleans_and_forgets_in_this_order() {
    let pod = web();
    let delete = |observed: &Observed, memory: &Memory| {
        plan(&pod, Goal::Delete { gone: false }, observed, memory, at(100)).actions
    };
    let mut memory = Memory { deadline: Some(at(130)), ..ready() };
    let running = observed(vec![container(&pod, "web", State::Running, 0)]);
    assert_eq!(delete(&running, &memory), [Action::AwaitDraining]);
    memory.drained = true;
    let stop =
        Action::Stop { container: "web".into(), id: "web-0".into(), grace: Duration::from_secs(30), why: Why::Deleted };
    assert_eq!(delete(&running, &memory), [stop]);
    let exited = observed(vec![container(&pod, "web", State::Exited, 0)]);
    assert_eq!(delete(&exited, &memory), [Action::StopSandbox { id: "s0".into() }]);
    memory.stopped.insert("s0".into());
    assert_eq!(delete(&exited, &memory), [Action::CleanUp]);
    memory.cleaned = true;
    assert_eq!(delete(&exited, &memory), [Action::Forget]);
}

#[test]
fn a_pod_that_is_being_started_is_not_cleaned_up_under_its_feet() {
    let memory = Memory { deadline: Some(at(130)), busy: [Work::Sandbox].into(), ..ready() };
    assert_eq!(plan(&web(), Goal::Delete { gone: false }, &Observed::default(), &memory, at(100)).actions, []);
}

#[test]
fn sidecars_outlive_the_apps_and_stop_from_the_last() {
    let pod = pod(json!({"containers": [{"name": "web"}], "initContainers": [
        {"name": "a", "restartPolicy": "Always"}, {"name": "b", "restartPolicy": "Always"}]}));
    let memory = Memory { deadline: Some(at(130)), drained: true, ..ready() };
    let running = |name| container(&pod, name, State::Running, 0);
    let stopped = |observed: Observed| {
        let actions = plan(&pod, Goal::Delete { gone: false }, &observed, &memory, at(100)).actions;
        actions
            .into_iter()
            .map(|action| match action {
                Action::Stop { container, .. } => container,
                other => format!("{other:?}"),
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(stopped(observed(vec![running("web"), running("a"), running("b")])), ["web"]);
    assert_eq!(stopped(observed(vec![running("a"), running("b")])), ["b"]);
    assert_eq!(stopped(observed(vec![running("a")])), ["a"]);
}

#[test]
fn only_one_dead_predecessor_is_kept() {
    let pod = web();
    let dead =
        |attempt: u32| Container { id: format!("web-{attempt}"), attempt, ..container(&pod, "web", State::Exited, 1) };
    let running = Container { id: "web-3".into(), attempt: 3, ..container(&pod, "web", State::Running, 0) };
    let actions = run(&pod, &observed(vec![running, dead(2), dead(1), dead(0)]), &ready());
    assert_eq!(actions, [Action::RemoveContainer { container: "web".into(), id: "web-1".into() }]);
}
