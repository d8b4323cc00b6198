//! What to do next for one pod: a pure function of what is wanted, what the runtime shows and what the actor knows.
//!
//! The actor calls it after every change and carries out whatever is not under way already. Nothing here does IO or
//! reads a clock; the order of the returned actions has no meaning, all of them may run at once.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::backoff::Backoff;
use super::observed::{Container, Observed, State};

/// What the API wants of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    Run,
    /// It has run to its end, or was refused: nothing runs, its containers stay for their logs.
    Finish,
    /// Deleted: nothing stays, and `gone` tells whether the API has forgotten it already.
    Delete {
        gone: bool,
    },
}

/// What only the actor knows.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub volumes_ready: bool,
    pub cleaned: bool,
    pub busy: HashSet<Work>,
    pub crashes: HashMap<String, Backoff>,
    pub waiting: HashMap<String, Waiting>,
    /// Not before this moment: set by a failed attempt.
    pub retry_at: HashMap<Work, Timestamp>,
    /// By container id.
    pub probes: HashMap<String, Health>,
    /// Sandboxes whose stop the runtime has confirmed.
    pub stopped: HashSet<String>,
    /// When the pod must be down at last.
    pub deadline: Option<Timestamp>,
    pub drained: bool,
}

/// Why a container is not running, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// What the probes have found out about one incarnation of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub started: bool,
    pub ready: bool,
    /// Which probe wants it killed.
    pub failed: Option<&'static str>,
}

/// Things of which one at a time is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    Volumes,
    Sandbox,
    Container(String),
    Drain,
    Clean,
    Forget,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    PrepareVolumes,
    RunSandbox {
        attempt: u32,
    },
    StopSandbox {
        id: String,
    },
    Start {
        container: String,
        attempt: u32,
    },
    Stop {
        container: String,
        id: String,
        grace: Duration,
        why: Why,
    },
    RemoveContainer {
        container: String,
        id: String,
    },
    AwaitDraining,
    /// Volumes, cgroups, directories.
    CleanUp,
    /// Containers and sandboxes leave the runtime, the pod leaves the API.
    Forget,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Deleted,
    Probe(&'static str),
    Changed,
    SandboxLost,
}

impl Action {
    pub fn work(&self) -> Work {
        match self {
            Self::PrepareVolumes => Work::Volumes,
            Self::RunSandbox { .. } | Self::StopSandbox { .. } => Work::Sandbox,
            Self::Start { container, .. } | Self::Stop { container, .. } | Self::RemoveContainer { container, .. } => {
                Work::Container(container.clone())
            }
            Self::AwaitDraining => Work::Drain,
            Self::CleanUp => Work::Clean,
            Self::Forget => Work::Forget,
        }
    }
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// When to look again though nothing happens.
    pub wake: Option<Timestamp>,
    /// Containers that wait for their back-off to end.
    pub backing_off: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Init,
    Sidecar,
    App,
}

/// The pod's containers in the order in which they start.
pub fn containers(pod: &core::Pod) -> impl DoubleEndedIterator<Item = (Role, &core::Container)> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let apps = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let role = |container: &core::Container| match container.restart_policy.as_deref() {
        Some("Always") => Role::Sidecar,
        _ => Role::Init,
    };
    init.iter().map(move |container| (role(container), container)).chain(apps.iter().map(|app| (Role::App, app)))
}

/// Decides for one pod.
pub fn plan(pod: &core::Pod, goal: Goal, observed: &Observed, memory: &Memory, now: Timestamp) -> Plan {
    let mut planner = Planner { pod, observed, memory, now, plan: Plan::default() };
    match goal {
        Goal::Run if has_ended(pod, observed) => planner.wind_down(),
        Goal::Run => planner.run(),
        Goal::Finish => planner.finish(),
        Goal::Delete { .. } => planner.delete(),
    }
    let mut plan = planner.plan;
    plan.actions.retain(|action| !memory.busy.contains(&action.work()));
    plan
}

/// Whether every container has run for the last time.
pub fn has_ended(pod: &core::Pod, observed: &Observed) -> bool {
    let done = |role, spec: &core::Container| {
        observed.newest(&spec.name).is_some_and(|last| last.has_exited() && !restarts(pod, role, spec, last))
    };
    let failed = |role, spec: &core::Container| {
        done(role, spec) && observed.newest(&spec.name).is_some_and(|last| last.exit_code != 0)
    };
    let mut apps = containers(pod).filter(|(role, _)| *role == Role::App).peekable();
    let apps_done = apps.peek().is_some() && apps.all(|(role, spec)| done(role, spec));
    apps_done || containers(pod).any(|(role, spec)| role == Role::Init && failed(role, spec))
}

/// Whether an incarnation that exited as `last` did is followed by another.
pub fn restarts(pod: &core::Pod, role: Role, spec: &core::Container, last: &Container) -> bool {
    let rules = spec.restart_policy_rules.as_deref().unwrap_or_default();
    if rules.iter().any(|rule| rule.action == "Restart" && matches(rule, last.exit_code)) {
        return true;
    }
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    match (role, spec.restart_policy.as_deref().unwrap_or(of_pod)) {
        (Role::Sidecar, _) => true,
        (_, "Never") => false,
        (Role::Init, _) | (_, "OnFailure") => last.exit_code != 0 || last.state == State::Unknown,
        _ => true,
    }
}

fn matches(rule: &core::ContainerRestartRule, exit_code: i32) -> bool {
    rule.exit_codes.as_ref().is_some_and(|codes| {
        let listed = codes.values.iter().flatten().any(|&value| value == exit_code);
        listed == (codes.operator == "In")
    })
}

/// What a change of makes a container another one: upstream hashes name and image.
pub fn hash(container: &core::Container) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("{}\0{}", container.name, container.image.as_deref().unwrap_or_default()));
    digest[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Planner<'a> {
    pod: &'a core::Pod,
    observed: &'a Observed,
    memory: &'a Memory,
    now: Timestamp,
    plan: Plan,
}

impl Planner<'_> {
    fn run(&mut self) {
        if self.observed.sandbox().is_none() {
            return self.renew_sandbox();
        }
        if !self.memory.volumes_ready {
            return self.attempt(Action::PrepareVolumes);
        }
        if self.run_init() {
            containers(self.pod).filter(|(role, _)| *role == Role::App).for_each(|(role, spec)| self.keep(role, spec));
        }
        self.prune_dead();
    }

    /// Whatever ran in the sandbox that is gone must end before its successor is made.
    fn renew_sandbox(&mut self) {
        let stray: Vec<Container> = self.observed.running().cloned().collect();
        for container in &stray {
            self.stop(container, Duration::from_secs(2), Why::SandboxLost);
        }
        let unstopped = self.observed.sandboxes.iter().find(|sandbox| !self.memory.stopped.contains(&sandbox.id));
        match unstopped {
            _ if !stray.is_empty() => {}
            Some(sandbox) => self.attempt(Action::StopSandbox { id: sandbox.id.clone() }),
            None if !self.memory.volumes_ready => self.attempt(Action::PrepareVolumes),
            None => {
                let attempt = self.observed.sandboxes.iter().map(|sandbox| sandbox.attempt + 1).max().unwrap_or(0);
                self.attempt(Action::RunSandbox { attempt });
            }
        }
    }

    /// Init containers one by one; sidecars go on beside what follows. True once the apps may start.
    fn run_init(&mut self) -> bool {
        let apps_exist =
            containers(self.pod).any(|(role, spec)| role == Role::App && self.observed.current(&spec.name).is_some());
        for (role, spec) in containers(self.pod).filter(|(role, _)| *role != Role::App) {
            if role == Role::Init && apps_exist {
                continue;
            }
            let current = self.observed.current(&spec.name);
            let passed = current.is_some_and(|current| match role {
                Role::Init => current.state == State::Exited && current.exit_code == 0,
                _ => current.is_running() && self.health(current).started,
            });
            if !passed || role == Role::Sidecar {
                self.keep(role, spec);
            }
            if !passed && !apps_exist {
                return false;
            }
        }
        true
    }

    /// Starts, restarts or stops one container as its policy says.
    fn keep(&mut self, role: Role, spec: &core::Container) {
        let Some(current) = self.observed.current(&spec.name) else {
            let last = self.observed.newest(&spec.name);
            if last.is_none_or(|last| role == Role::Init || restarts(self.pod, role, spec, last)) {
                self.start(spec);
            }
            return;
        };
        match current.state {
            State::Created => {
                self.attempt(Action::RemoveContainer { container: spec.name.clone(), id: current.id.clone() });
            }
            State::Running => self.watch_over(spec, current),
            State::Exited | State::Unknown if restarts(self.pod, role, spec, current) => self.restart(spec, current),
            State::Exited | State::Unknown => {}
        }
    }

    fn watch_over(&mut self, spec: &core::Container, current: &Container) {
        let grace = grace_period(self.pod);
        if let Some(probe) = self.health(current).failed {
            let probe_grace = match probe {
                "Liveness" => spec.liveness_probe.as_ref(),
                _ => spec.startup_probe.as_ref(),
            };
            let own = probe_grace.and_then(|probe| probe.termination_grace_period_seconds);
            let grace = own.map_or(grace, |seconds| Duration::from_secs(seconds.max(0) as u64));
            self.stop(current, grace, Why::Probe(probe));
        } else if !current.hash.is_empty() && current.hash != hash(spec) {
            self.stop(current, grace, Why::Changed);
        }
    }

    fn restart(&mut self, spec: &core::Container, last: &Container) {
        if self.memory.busy.contains(&Work::Container(spec.name.clone())) {
            return;
        }
        let failed = last.finished.or(last.created).unwrap_or(self.now);
        match self.memory.crashes.get(&spec.name).and_then(|backoff| backoff.until(failed, self.now)) {
            Some(until) => {
                self.wake(until);
                self.plan.backing_off.push(spec.name.clone());
            }
            None => self.start(spec),
        }
    }

    fn start(&mut self, spec: &core::Container) {
        self.attempt(Action::Start { container: spec.name.clone(), attempt: self.next_attempt(&spec.name) });
    }

    /// Also counts what the API remembers of incarnations that the runtime has forgotten.
    fn next_attempt(&self, name: &str) -> u32 {
        let seen = self.observed.containers.iter().filter(|container| container.name == name);
        let next = seen.map(|container| container.attempt + 1).max().unwrap_or(0);
        let told = reported(self.pod, name).filter(|status| status.container_id.is_some() && next == 0);
        told.map_or(next, |status| status.restart_count.max(0) as u32 + 1)
    }

    /// The last incarnation keeps its log, and one before it for `logs --previous`.
    fn prune_dead(&mut self) {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for container in &self.observed.containers {
            let age = seen.entry(&container.name).or_default();
            *age += 1;
            if *age > 2 && !container.is_running() {
                let (container, id) = (container.name.clone(), container.id.clone());
                self.attempt(Action::RemoveContainer { container, id });
                return;
            }
        }
    }

    /// All done, by itself: sidecars stop, then the sandbox; the API learns the phase from the status.
    fn wind_down(&mut self) {
        let deadline = self.now + grace_period(self.pod);
        if self.stop_containers(deadline) {
            self.stop_sandboxes();
        }
    }

    fn finish(&mut self) {
        let deadline = self.memory.deadline.unwrap_or(self.now);
        if self.stop_containers(deadline) && self.stop_sandboxes() && !self.memory.cleaned && !self.is_busy() {
            self.attempt(Action::CleanUp);
        }
    }

    fn delete(&mut self) {
        let running = self.observed.running().next().is_some();
        if running && !self.memory.drained {
            return self.attempt(Action::AwaitDraining);
        }
        let deadline = self.memory.deadline.unwrap_or(self.now);
        if !self.stop_containers(deadline) || !self.stop_sandboxes() || self.is_busy() {
            return;
        }
        match self.memory.cleaned {
            false => self.attempt(Action::CleanUp),
            true => self.attempt(Action::Forget),
        }
    }

    /// Apps first and together, then sidecars from the last to the first. True when nothing runs any more.
    fn stop_containers(&mut self, deadline: Timestamp) -> bool {
        let left = self.remaining(deadline);
        let sidecar = |name: &str| containers(self.pod).any(|(role, spec)| role == Role::Sidecar && spec.name == name);
        let (sidecars, others): (Vec<_>, Vec<_>) =
            self.observed.running().cloned().partition(|running| sidecar(&running.name));
        let starting = self.memory.busy.iter().any(|work| matches!(work, Work::Container(_)));
        if others.is_empty() && sidecars.is_empty() {
            return !starting;
        }
        if !others.is_empty() {
            others.iter().for_each(|container| self.stop(container, left, Why::Deleted));
            return false;
        }
        let last =
            containers(self.pod).rev().find_map(|(_, spec)| sidecars.iter().find(|other| other.name == spec.name));
        if let Some(last) = last {
            self.stop(last, left.max(Duration::from_secs(1)), Why::Deleted);
        }
        false
    }

    /// True once the runtime has confirmed every stop: only then are the pod's addresses free.
    fn stop_sandboxes(&mut self) -> bool {
        let mut left = self.observed.sandboxes.iter().filter(|sandbox| !self.memory.stopped.contains(&sandbox.id));
        match left.next() {
            Some(sandbox) => {
                self.attempt(Action::StopSandbox { id: sandbox.id.clone() });
                false
            }
            None => !self.memory.busy.contains(&Work::Sandbox),
        }
    }

    fn stop(&mut self, container: &Container, grace: Duration, why: Why) {
        let (name, id) = (container.name.clone(), container.id.clone());
        self.attempt(Action::Stop { container: name, id, grace, why });
    }

    /// Does it now, or when the pause after the last failure is over.
    fn attempt(&mut self, action: Action) {
        match self.memory.retry_at.get(&action.work()) {
            Some(&until) if until > self.now => self.wake(until),
            _ => self.plan.actions.push(action),
        }
    }

    fn wake(&mut self, at: Timestamp) {
        self.plan.wake = Some(self.plan.wake.map_or(at, |other| other.min(at)));
    }

    fn remaining(&self, deadline: Timestamp) -> Duration {
        Duration::try_from(deadline.duration_since(self.now)).unwrap_or_default()
    }

    fn health(&self, container: &Container) -> Health {
        self.memory.probes.get(&container.id).cloned().unwrap_or_default()
    }

    fn is_busy(&self) -> bool {
        self.memory.busy.iter().any(|work| matches!(work, Work::Volumes | Work::Sandbox | Work::Container(_)))
    }
}

/// What the API was last told about a container.
pub fn reported<'a>(pod: &'a core::Pod, name: &str) -> Option<&'a core::ContainerStatus> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten()).find(|container| container.name == name)
}

/// The time the pod is given to end: of its deletion if it is being deleted, else of its spec.
pub fn grace_period(pod: &core::Pod) -> Duration {
    let of_spec = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let seconds = pod.metadata.deletion_grace_period_seconds.or(of_spec).unwrap_or(30);
    Duration::from_secs(seconds.max(0) as u64)
}

#[cfg(test)]
mod tests;
