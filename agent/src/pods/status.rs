//! What the API is told about a pod: phase, conditions and the state of each container, computed from what is wanted,
//! what runs and what the actor knows. Pure.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::observed::{Container, Observed, State};
use super::plan::{self, Goal, Health, Memory, Role, Waiting, containers, reported};
use super::resources;
use super::sandbox::is_host_network;
use crate::events::seconds;

/// A pod that ended as a whole: refused, or past its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
}

pub struct Input<'a> {
    pub pod: &'a core::Pod,
    pub goal: Goal,
    pub observed: &'a Observed,
    pub memory: &'a Memory,
    pub failure: Option<&'a Failure>,
    pub node_ip: IpAddr,
    pub now: Timestamp,
}

pub fn compute(input: &Input<'_>) -> core::PodStatus {
    let old = input.pod.status.clone().unwrap_or_default();
    let nothing_ran = input.observed.sandboxes.is_empty() && input.observed.containers.is_empty();
    let ended = matches!(old.phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended && nothing_ran {
        return old;
    }
    if let Some(failure) = input.failure.filter(|_| nothing_ran && old.container_statuses.is_none()) {
        return refused(input, failure);
    }
    let statuses = |wanted: fn(Role) -> bool| {
        let chosen = containers(input.pod).filter(|(role, _)| wanted(*role));
        chosen.map(|(role, spec)| container_status(input, role, spec)).collect::<Vec<_>>()
    };
    let init = statuses(|role| role != Role::App);
    let apps = statuses(|role| role == Role::App);
    let phase = match input.failure {
        Some(_) => "Failed",
        None => phase(input, &init, &apps),
    };
    let ips = pod_ips(input, &old);
    let host = input.node_ip.to_string();
    core::PodStatus {
        observed_generation: input.pod.metadata.generation,
        conditions: Some(conditions(input, phase, &init, &apps)),
        phase: Some(phase.into()),
        reason: input.failure.map(|failure| failure.reason.clone()).or(old.reason.filter(|_| ended)),
        message: input.failure.map(|failure| failure.message.clone()).or(old.message.filter(|_| ended)),
        host_ip: Some(host.clone()),
        host_ips: Some(vec![core::HostIP { ip: host }]),
        pod_ip: ips.first().map(ToString::to_string),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| core::PodIP { ip: ip.to_string() }).collect()),
        start_time: old.start_time.or_else(|| Some(seconds(input.now))),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(apps),
        qos_class: Some(resources::qos(input.pod).as_str().into()),
        ..Default::default()
    }
}

fn refused(input: &Input<'_>, failure: &Failure) -> core::PodStatus {
    core::PodStatus {
        observed_generation: input.pod.metadata.generation,
        phase: Some("Failed".into()),
        reason: Some(failure.reason.clone()),
        message: Some(failure.message.clone()),
        start_time: Some(seconds(input.now)),
        qos_class: Some(resources::qos(input.pod).as_str().into()),
        ..Default::default()
    }
}

fn pod_ips(input: &Input<'_>, old: &core::PodStatus) -> Vec<IpAddr> {
    if is_host_network(input.pod) {
        return if input.observed.sandboxes.is_empty() && old.pod_ip.is_none() {
            Vec::new()
        } else {
            vec![input.node_ip]
        };
    }
    match input.observed.sandboxes.first() {
        Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.clone(),
        // An ended pod keeps the address it had.
        Some(_) | None => old.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect(),
    }
}

fn container_status(input: &Input<'_>, role: Role, spec: &core::Container) -> core::ContainerStatus {
    let told = reported(input.pod, &spec.name);
    let newest = input.observed.newest(&spec.name);
    let Some(container) = newest else { return unseen(input, spec, told) };
    // What will not be started again is over, whatever was wrong with it.
    let comes_back =
        input.goal == Goal::Run && container.has_exited() && plan::restarts(input.pod, role, spec, container);
    let waiting = input.memory.waiting.get(&spec.name).filter(|_| comes_back);
    let (state, last) = match waiting {
        Some(waiting) => (waiting_state(waiting), Some(terminated_state(container))),
        None => (state(container), input.observed.previous(&spec.name).map(terminated_state)),
    };
    let forgotten = told.and_then(|told| told.last_state.clone());
    let health = input.memory.probes.get(&container.id).cloned().unwrap_or_default();
    let running = container.is_running();
    let ready = match role {
        Role::Init => container.state == State::Exited && container.exit_code == 0,
        _ => running && health.started && health.ready,
    };
    core::ContainerStatus {
        name: spec.name.clone(),
        state: Some(state),
        last_state: Some(last.or(forgotten).unwrap_or_default()),
        ready,
        started: Some(running && (role == Role::Init || health.started)),
        restart_count: restart_count(container, told),
        image: container.image.clone(),
        image_id: container.image_ref.clone(),
        container_id: Some(container_id(container)),
        resources: spec.resources.clone().filter(|_| running),
        allocated_resources: spec.resources.as_ref().and_then(|resources| resources.requests.clone()),
        volume_mounts: mounts(spec),
        user: user(container),
        ..Default::default()
    }
}

fn restart_count(container: &Container, told: Option<&core::ContainerStatus>) -> i32 {
    let told = told.filter(|told| told.container_id.as_deref() == Some(&container_id(container)));
    told.map_or(0, |told| told.restart_count).max(container.attempt as i32)
}

fn container_id(container: &Container) -> String {
    format!("containerd://{}", container.id)
}

/// Not made yet, or the runtime has forgotten it.
fn unseen(input: &Input<'_>, spec: &core::Container, told: Option<&core::ContainerStatus>) -> core::ContainerStatus {
    let ended = told.filter(|told| told.state.as_ref().is_some_and(|state| state.terminated.is_some()));
    if let Some(ended) = ended.filter(|_| input.goal != Goal::Run || input.observed.sandboxes.is_empty()) {
        return core::ContainerStatus {
            ready: ended.ready && input.goal == Goal::Run,
            started: Some(false),
            ..ended.clone()
        };
    }
    let has_init =
        input.pod.spec.as_ref().is_some_and(|spec| spec.init_containers.as_ref().is_some_and(|init| !init.is_empty()));
    let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let default = Waiting { reason: reason.into(), message: String::new() };
    let waiting = input.memory.waiting.get(&spec.name).unwrap_or(&default);
    core::ContainerStatus {
        name: spec.name.clone(),
        state: Some(waiting_state(waiting)),
        last_state: Some(told.and_then(|told| told.last_state.clone()).unwrap_or_default()),
        started: Some(false),
        image: spec.image.clone().unwrap_or_default(),
        restart_count: told.map_or(0, |told| told.restart_count),
        volume_mounts: mounts(spec),
        ..Default::default()
    }
}

fn waiting_state(waiting: &Waiting) -> core::ContainerState {
    let message = Some(waiting.message.clone()).filter(|message| !message.is_empty());
    let waiting = core::ContainerStateWaiting { reason: Some(waiting.reason.clone()), message };
    core::ContainerState { waiting: Some(waiting), ..Default::default() }
}

fn state(container: &Container) -> core::ContainerState {
    match container.state {
        State::Running => core::ContainerState {
            running: Some(core::ContainerStateRunning { started_at: container.started.map(seconds) }),
            ..Default::default()
        },
        State::Created => waiting_state(&Waiting { reason: "ContainerCreating".into(), message: String::new() }),
        State::Exited | State::Unknown => terminated_state(container),
    }
}

fn terminated_state(container: &Container) -> core::ContainerState {
    let reason = match container.reason.as_str() {
        "" if container.exit_code == 0 => "Completed",
        "" => "Error",
        other => other,
    };
    let terminated = core::ContainerStateTerminated {
        container_id: Some(container_id(container)),
        exit_code: container.exit_code,
        reason: Some(reason.into()),
        message: Some(container.message.clone()).filter(|message| !message.is_empty()),
        started_at: Some(seconds(container.started.unwrap_or(Timestamp::UNIX_EPOCH))),
        finished_at: container.finished.map(seconds),
        signal: None,
    };
    core::ContainerState { terminated: Some(terminated), ..Default::default() }
}

fn mounts(spec: &core::Container) -> Option<Vec<core::VolumeMountStatus>> {
    let mounts = spec.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    let status = |mount: &core::VolumeMount| core::VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only.filter(|read_only| *read_only),
        recursive_read_only: mount.read_only.filter(|read_only| *read_only).map(|_| "Disabled".into()),
        ..Default::default()
    };
    Some(mounts.iter().map(status).collect())
}

fn user(container: &Container) -> Option<core::ContainerUser> {
    let (uid, gid, groups) = container.user.clone()?;
    let linux = core::LinuxContainerUser { uid, gid, supplemental_groups: Some(groups) };
    Some(core::ContainerUser { linux: Some(linux) })
}

/// Upstream's rule: Pending until initialized and started, then by what runs and what may be restarted.
fn phase(input: &Input<'_>, init: &[core::ContainerStatus], apps: &[core::ContainerStatus]) -> &'static str {
    if let Some(phase @ ("Succeeded" | "Failed")) = input.pod.status.as_ref().and_then(|status| status.phase.as_deref())
    {
        return if phase == "Failed" { "Failed" } else { "Succeeded" };
    }
    let exit = |status: &core::ContainerStatus| {
        let state = status.state.as_ref()?;
        let last = status.last_state.as_ref();
        let ended = state
            .terminated
            .as_ref()
            .or(last.and_then(|last| last.terminated.as_ref()).filter(|_| state.waiting.is_some()))?;
        Some(ended.exit_code)
    };
    let is_terminated =
        |status: &core::ContainerStatus| status.state.as_ref().is_some_and(|state| state.terminated.is_some());
    let sidecar_runs = init.iter().any(|status| is_sidecar(input.pod, &status.name) && is_running(status));
    let ended = plan::has_ended(input.pod, input.observed) || input.goal != Goal::Run;
    let stays_down = ended && !sidecar_runs;
    let init_failed = init
        .iter()
        .any(|status| is_terminated(status) && exit(status) != Some(0) && !is_sidecar(input.pod, &status.name));
    if stays_down && init_failed && !apps.iter().any(|status| exit(status).is_some()) {
        return "Failed";
    }
    if stays_down && !apps.is_empty() && apps.iter().all(is_terminated) {
        return if apps.iter().all(|status| exit(status) == Some(0)) { "Succeeded" } else { "Failed" };
    }
    let begun = |status: &core::ContainerStatus| {
        status.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
            || exit(status).is_some()
    };
    let initialized = initialized(input, init).is_empty();
    if initialized && !apps.is_empty() && apps.iter().all(begun) { "Running" } else { "Pending" }
}

fn is_running(status: &core::ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

fn is_sidecar(pod: &core::Pod, name: &str) -> bool {
    containers(pod).any(|(role, spec)| role == Role::Sidecar && spec.name == name)
}

/// The init containers that still have to be done.
fn initialized(input: &Input<'_>, init: &[core::ContainerStatus]) -> Vec<String> {
    let apps_begun =
        containers(input.pod).any(|(role, spec)| role == Role::App && input.observed.newest(&spec.name).is_some());
    let done = |status: &core::ContainerStatus| match is_sidecar(input.pod, &status.name) {
        true => status.started == Some(true),
        false => status.ready,
    };
    init.iter().filter(|status| !apps_begun && !done(status)).map(|status| status.name.clone()).collect()
}

fn conditions(
    input: &Input<'_>,
    phase: &str,
    init: &[core::ContainerStatus],
    apps: &[core::ContainerStatus],
) -> Vec<core::PodCondition> {
    let succeeded = phase == "Succeeded";
    let ended = succeeded || phase == "Failed";
    let incomplete = initialized(input, init);
    let sidecars = init.iter().filter(|status| is_sidecar(input.pod, &status.name));
    let unready: Vec<&str> =
        sidecars.chain(apps).filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    let why = |reason: &str, message: String| Some((reason.to_owned(), message));
    let initialized = match () {
        () if succeeded => (true, why("PodCompleted", String::new())),
        () if incomplete.is_empty() => (true, None),
        () => (
            false,
            why("ContainersNotInitialized", format!("containers with incomplete status: [{}]", incomplete.join(" "))),
        ),
    };
    let containers_ready = match () {
        () if succeeded => (false, why("PodCompleted", String::new())),
        () if phase == "Failed" => (false, why("PodFailed", String::new())),
        () if unready.is_empty() => (true, None),
        () => (false, why("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))),
    };
    let gates = closed_gates(input.pod);
    let ready = match containers_ready.clone() {
        (true, _) if !gates.is_empty() => (false, why("ReadinessGatesNotReady", gates.join(", "))),
        other => other,
    };
    let has_sandbox =
        input.observed.sandbox().is_some_and(|sandbox| !sandbox.ips.is_empty() || is_host_network(input.pod));
    let mut all = vec![
        condition(input, "PodReadyToStartContainers", (has_sandbox && !ended, None)),
        condition(input, "Initialized", initialized),
        condition(input, "Ready", ready),
        condition(input, "ContainersReady", containers_ready),
        condition(input, "PodScheduled", (true, None)),
    ];
    all.extend(foreign(input.pod));
    all
}

fn closed_gates(pod: &core::Pod) -> Vec<String> {
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let message = |gate: &core::PodReadinessGate| {
        let name = &gate.condition_type;
        match find(pod, name) {
            None => Some(format!("corresponding condition of pod readiness gate {name:?} does not exist.")),
            Some(condition) if condition.status != "True" => {
                Some(format!("the status of pod readiness gate {name:?} is not \"True\", but {}", condition.status))
            }
            Some(_) => None,
        }
    };
    gates.filter_map(message).collect()
}

fn find<'a>(pod: &'a core::Pod, kind: &str) -> Option<&'a core::PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

const OURS: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// Conditions that others set stay as they are.
fn foreign(pod: &core::Pod) -> Vec<core::PodCondition> {
    let all = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    all.filter(|condition| !OURS.contains(&condition.type_.as_str())).cloned().collect()
}

fn condition(input: &Input<'_>, kind: &str, (holds, why): (bool, Option<(String, String)>)) -> core::PodCondition {
    let status = if holds { "True" } else { "False" };
    let same = find(input.pod, kind).filter(|old| old.status == status);
    let since = same.and_then(|old| old.last_transition_time.clone());
    let (reason, message) = why.unzip();
    core::PodCondition {
        type_: kind.into(),
        status: status.into(),
        last_transition_time: since.or_else(|| Some(seconds(input.now))),
        observed_generation: input.pod.metadata.generation,
        reason: reason.filter(|reason| !reason.is_empty()),
        message: message.filter(|message| !message.is_empty()),
        ..Default::default()
    }
}

/// What a running container is before any probe has spoken; an adopted one is what the API was told.
pub fn initial_health(pod: &core::Pod, spec: &core::Container, id: &str) -> Health {
    let told =
        reported(pod, &spec.name).filter(|told| told.container_id.as_deref() == Some(&format!("containerd://{id}")));
    let told = told.filter(|told| told.state.as_ref().is_some_and(|state| state.running.is_some()));
    let started = spec.startup_probe.is_none() || told.is_some_and(|told| told.started == Some(true));
    let ready = started && (spec.readiness_probe.is_none() || told.is_some_and(|told| told.ready));
    Health { started, ready, failed: None }
}

#[cfg(test)]
mod tests;
