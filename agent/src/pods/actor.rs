//! One pod, one task: it looks at the runtime, asks `plan` what to do, starts that, and tells the API.
//!
//! Everything slow runs as a task of its own (`work`), so the actor always hears a deletion. Nothing is done twice at
//! a time: what is under way is in `memory.busy`, keyed by what it touches.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::observed::{Container, Observed, observe};
use super::plan::{self, Action, Goal, Memory, Role, Waiting, Work, containers, plan};
use super::sandbox::{is_host_network, name, namespace, uid};
use super::status::{self, Failure};
use super::work::{self, Done, Outcome};
use super::writer::Writer;
use super::{Context, listening, probes, sandbox};
use crate::events::Kind;

#[derive(Clone, Debug)]
pub enum Message {
    /// The API's latest word.
    Pod(Arc<core::Pod>),
    /// The API has forgotten the pod.
    Gone,
    /// A container or sandbox of the pod has ended.
    Exited(String),
    /// Events may have been lost.
    Look,
}

/// What others may know of the pod: the kubelet's API reads it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// With the status as this node knows it.
    pub pod: Arc<core::Pod>,
    pub observed: Arc<Observed>,
}

/// The runtime shows an exit a moment after it announces it.
const CATCH_UP: Duration = Duration::from_millis(10);
/// … and is not waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often volumes are brought up to date, at a moment of its own for each pod.
const REFRESH: Duration = Duration::from_secs(30);

pub struct Actor {
    context: Arc<Context>,
    inbox: mpsc::UnboundedReceiver<Message>,
    pod: Arc<core::Pod>,
    gone: bool,
    failure: Option<Failure>,
    observed: Arc<Observed>,
    /// The observation is older than something that happened.
    stale: bool,
    /// Announced as ended, not yet shown so.
    expected_exits: HashMap<String, Timestamp>,
    memory: Memory,
    tasks: JoinSet<Done>,
    running: HashMap<Id, (Work, AbortHandle)>,
    probes: HashMap<String, JoinSet<()>>,
    verdicts: (mpsc::UnboundedSender<probes::Verdict>, mpsc::UnboundedReceiver<probes::Verdict>),
    writer: Writer,
    view: watch::Sender<View>,
    refresh_at: Timestamp,
    /// Nothing that only serves a start is waited for any more.
    ending: CancellationToken,
    finished: bool,
}

impl Actor {
    pub fn new(
        context: Arc<Context>,
        pod: Arc<core::Pod>,
        failure: Option<Failure>,
        inbox: mpsc::UnboundedReceiver<Message>,
        view: watch::Sender<View>,
    ) -> Self {
        Self {
            writer: Writer::start(context.client.clone(), &pod),
            context,
            inbox,
            pod,
            gone: false,
            failure,
            observed: Arc::default(),
            stale: true,
            expected_exits: HashMap::new(),
            memory: Memory::default(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            probes: HashMap::new(),
            verdicts: mpsc::unbounded_channel(),
            view,
            refresh_at: Timestamp::now() + REFRESH.mul_f64(0.5 + fastrand::f64()),
            ending: CancellationToken::new(),
            finished: false,
        }
    }

    pub async fn run(mut self) {
        while !self.finished {
            let wake = self.turn().await;
            self.wait(wake).await;
        }
        debug!(pod = name(&self.pod), namespace = namespace(&self.pod), "the pod has gone");
    }

    /// One round: look, decide, tell, act. Returns when to look again though nothing happens.
    async fn turn(&mut self) -> Option<Timestamp> {
        let mut wake = self.look().await;
        let now = Timestamp::now();
        self.check_deadline(now);
        let goal = self.goal();
        self.set_deadline(goal, now);
        let plan = plan(&self.pod, goal, &self.observed, &self.memory, now);
        self.note_crash_loops(&plan.backing_off);
        self.publish(goal, now);
        for action in plan.actions {
            self.begin(action, now);
        }
        if goal == Goal::Run {
            self.refresh_volumes(now);
        }
        wake.extend(plan.wake);
        wake.extend((goal == Goal::Run).then_some(self.refresh_at));
        wake.extend(self.active_until());
        wake.into_iter().min()
    }

    async fn look(&mut self) -> Vec<Timestamp> {
        if !self.stale {
            return Vec::new();
        }
        match observe(&self.context.cri, uid(&self.pod), &self.observed).await {
            Ok(observed) => {
                self.observed = Arc::new(observed);
                self.stale = false;
                self.take_over();
            }
            Err(error) => {
                warn!(pod = name(&self.pod), call = error.call, %error, "the runtime does not answer");
                return vec![Timestamp::now() + Duration::from_secs(1)];
            }
        }
        let (observed, now) = (&self.observed, Timestamp::now());
        self.expected_exits.retain(|id, until| now < *until && is_alive(observed, id));
        self.stale = !self.expected_exits.is_empty();
        if self.stale { vec![now + CATCH_UP] } else { Vec::new() }
    }

    /// Brings probes and what is remembered of containers in line with what runs.
    fn take_over(&mut self) {
        let ids = self.observed.containers.iter().map(|container| &container.id);
        let ids = ids.chain(self.observed.sandboxes.iter().map(|sandbox| &sandbox.id));
        self.context.owners.claim(uid(&self.pod), ids);
        let running: HashSet<&str> = self.observed.running().map(|container| container.id.as_str()).collect();
        self.probes.retain(|id, _| running.contains(id.as_str()));
        self.memory.probes.retain(|id, _| running.contains(id.as_str()));
        let ips = self.ips();
        let fresh: Vec<_> = self
            .observed
            .running()
            .filter(|container| !self.memory.probes.contains_key(&container.id))
            .cloned()
            .collect();
        for container in fresh {
            let Some((role, spec)) = containers(&self.pod).find(|(_, spec)| spec.name == container.name) else {
                continue;
            };
            let mut health = status::initial_health(&self.pod, spec, &container.id);
            let probed = role != Role::Init
                && [&spec.startup_probe, &spec.liveness_probe, &spec.readiness_probe]
                    .iter()
                    .any(|probe| probe.is_some());
            if let Some(ip) = ips.first().copied().filter(|_| probed) {
                let mut spec = spec.clone();
                if health.started {
                    spec.startup_probe = None;
                }
                let target = probes::Target {
                    context: self.context.clone(),
                    pod: self.pod.clone(),
                    container: spec,
                    container_id: container.id.clone(),
                    ip,
                };
                self.probes.insert(container.id.clone(), probes::start(target, self.verdicts.0.clone()));
            }
            if role != Role::Init && health.ready && self.must_listen_first(spec, &container.id) {
                health.ready = false;
                self.await_listener(container.id.clone());
            }
            self.memory.probes.insert(container.id.clone(), health);
        }
    }

    /// No probe says when the container serves, and Services would send clients to it at once.
    fn must_listen_first(&self, spec: &core::Container, id: &str) -> bool {
        let id = format!("containerd://{id}");
        let told = plan::reported(&self.pod, &spec.name).filter(|told| told.container_id.as_ref() == Some(&id));
        let told = told.is_some_and(|told| told.ready);
        let labels = self.pod.metadata.labels.clone().unwrap_or_default();
        spec.readiness_probe.is_none() && !told && self.context.services.select(namespace(&self.pod), &labels)
    }

    fn await_listener(&mut self, container_id: String) {
        let cgroup = format!("{}/{container_id}", sandbox::cgroup(&self.context.config, &self.pod));
        let verdicts = self.verdicts.0.clone();
        self.probes.entry(container_id.clone()).or_default().spawn(async move {
            listening::wait(cgroup).await;
            // An error: the pod has gone.
            let _ = verdicts.send(probes::Verdict { container_id, kind: probes::Kind::Readiness, success: true });
        });
    }

    fn ips(&self) -> Vec<IpAddr> {
        match is_host_network(&self.pod) {
            true => vec![self.context.config.node_ip],
            false => self.observed.sandbox().map(|sandbox| sandbox.ips.clone()).unwrap_or_default(),
        }
    }

    fn goal(&self) -> Goal {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        match () {
            () if self.gone => Goal::Delete { gone: true },
            () if self.pod.metadata.deletion_timestamp.is_some() => Goal::Delete { gone: false },
            () if self.failure.is_some() || matches!(phase, Some("Succeeded" | "Failed")) => Goal::Finish,
            () => Goal::Run,
        }
    }

    /// The first moment of the end fixes when it must be over; a shorter grace period brings it forward.
    fn set_deadline(&mut self, goal: Goal, now: Timestamp) {
        if goal == Goal::Run {
            return;
        }
        let grace = plan::grace_period(&self.pod).max(Duration::from_secs(u64::from(self.gone)));
        let deadline = now + grace;
        match self.memory.deadline {
            None => {
                self.memory.deadline = Some(deadline);
                self.abort(|work| matches!(work, Work::Volumes));
                self.ending.cancel();
            }
            Some(old) if deadline + Duration::from_secs(1) < old => {
                self.memory.deadline = Some(deadline);
                self.abort(|work| matches!(work, Work::Container(_)));
            }
            Some(_) => {}
        }
    }

    fn abort(&mut self, which: impl Fn(&Work) -> bool) {
        self.running.values().filter(|(work, _)| which(work)).for_each(|(_, task)| task.abort());
    }

    /// `activeDeadlineSeconds` ends the pod from the outside.
    fn check_deadline(&mut self, now: Timestamp) {
        if self.failure.is_none() && self.active_until().is_some_and(|until| until <= now) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.context.events.pod(&self.pod, Kind::Normal, "DeadlineExceeded", message);
            self.failure = Some(Failure { reason: "DeadlineExceeded".into(), message: message.into() });
        }
    }

    fn active_until(&self) -> Option<Timestamp> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        let start = self.pod.status.as_ref()?.start_time.as_ref()?.0;
        self.failure.is_none().then(|| start + Duration::from_secs(seconds.max(0) as u64))
    }

    fn note_crash_loops(&mut self, names: &[String]) {
        for container in names {
            if self.memory.waiting.get(container).is_some_and(|waiting| waiting.reason == "CrashLoopBackOff") {
                continue;
            }
            let delay = self.memory.crashes.get(container).map(|backoff| backoff.delay().as_secs()).unwrap_or_default();
            let delay = if delay < 60 { format!("{delay}s") } else { format!("{}m{}s", delay / 60, delay % 60) };
            let pod = format!("{}_{}({})", name(&self.pod), namespace(&self.pod), uid(&self.pod));
            let message = format!("back-off {delay} restarting failed container={container} pod={pod}");
            let said = format!("Back-off restarting failed container {container} in pod {pod}");
            self.context.events.container(&self.pod, container, Kind::Warning, "BackOff", said);
            self.memory.waiting.insert(container.clone(), Waiting { reason: "CrashLoopBackOff".into(), message });
        }
    }

    fn publish(&mut self, goal: Goal, now: Timestamp) {
        // Once the runtime has forgotten the pod, its last status stands.
        if self.memory.busy.contains(&Work::Forget) {
            return;
        }
        let input = status::Input {
            pod: &self.pod,
            goal,
            observed: &self.observed,
            memory: &self.memory,
            failure: self.failure.as_ref(),
            node_ip: self.context.config.node_ip,
            now,
        };
        let status = self.stable(status::compute(&input));
        if !self.gone {
            self.writer.publish(status.clone(), &self.pod);
        }
        let pod = core::Pod { status: Some(status), ..(*self.pod).clone() };
        self.view.send_replace(View { pod: Arc::new(pod), observed: self.observed.clone() });
    }

    /// Times that the API has not echoed yet must not change from round to round.
    fn stable(&self, mut status: core::PodStatus) -> core::PodStatus {
        let before = self.view.borrow().pod.status.clone();
        let Some(before) = before else { return status };
        if self.pod.status.as_ref().is_none_or(|status| status.start_time.is_none()) {
            status.start_time = before.start_time.or(status.start_time);
        }
        for condition in status.conditions.iter_mut().flatten() {
            let same = before
                .conditions
                .iter()
                .flatten()
                .find(|old| old.type_ == condition.type_ && old.status == condition.status);
            if let Some(old) = same {
                condition.last_transition_time = old.last_transition_time.clone();
            }
        }
        status
    }

    fn begin(&mut self, action: Action, now: Timestamp) {
        let work = action.work();
        match &action {
            Action::Start { container, .. } if self.observed.newest(container).is_some_and(Container::has_exited) => {
                self.memory.crashes.entry(container.clone()).or_default().advance(now);
            }
            Action::Stop { container, why, .. } => self.tell_why(container, why),
            _ => {}
        }
        let request = work::Request {
            context: self.context.clone(),
            pod: self.pod.clone(),
            observed: self.observed.clone(),
            pod_ips: self.ips(),
            gone: self.gone,
            ending: self.ending.clone(),
        };
        let done = match &action {
            Action::Forget if !self.gone => Some(self.writer.delete()),
            _ => None,
        };
        self.memory.busy.insert(work.clone());
        let task = self.tasks.spawn(async move {
            // The API learns the last status before the runtime forgets it; deletion itself comes last.
            work::carry_out(request, action, done).await
        });
        self.running.insert(task.id(), (work, task));
    }

    fn tell_why(&self, container: &str, why: &plan::Why) {
        let message = match why {
            plan::Why::Deleted | plan::Why::SandboxLost => format!("Stopping container {container}"),
            plan::Why::Probe(probe) => {
                format!("Container {container} failed {} probe, will be restarted", probe.to_lowercase())
            }
            plan::Why::Changed => format!("Container {container} definition changed, will be restarted"),
        };
        self.context.events.container(&self.pod, container, Kind::Normal, "Killing", message);
    }

    fn refresh_volumes(&mut self, now: Timestamp) {
        if now < self.refresh_at {
            return;
        }
        self.refresh_at = now + REFRESH;
        if self.memory.volumes_ready && !self.memory.busy.contains(&Work::Volumes) {
            self.begin(Action::PrepareVolumes, now);
        }
    }

    async fn wait(&mut self, wake: Option<Timestamp>) {
        let pause = wake.map(|wake| Duration::try_from(wake.duration_since(Timestamp::now())).unwrap_or_default());
        let timer = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = self.inbox.recv() => match message {
                Some(message) => self.hear(message),
                None => self.finished = true,
            },
            Some(verdict) = self.verdicts.1.recv() => self.judge(verdict),
            Some(ended) = self.tasks.join_next_with_id() => match ended {
                Ok((id, done)) => {
                    self.running.remove(&id);
                    self.settle(done);
                }
                Err(error) => self.settle_aborted(error.id()),
            },
            () = timer => {}
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.hear(message);
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => self.pod = pod,
            Message::Gone => self.gone = true,
            Message::Exited(id) => {
                self.expected_exits.insert(id, Timestamp::now() + PATIENCE);
                self.stale = true;
            }
            Message::Look => self.stale = true,
        }
    }

    fn judge(&mut self, verdict: probes::Verdict) {
        let Some(container) = self.observed.containers.iter().find(|container| container.id == verdict.container_id)
        else {
            return;
        };
        let spec = containers(&self.pod).find(|(_, spec)| spec.name == container.name);
        let has_readiness = spec.is_some_and(|(_, spec)| spec.readiness_probe.is_some());
        let Some(health) = self.memory.probes.get_mut(&verdict.container_id) else { return };
        match (verdict.kind, verdict.success) {
            (probes::Kind::Startup, true) => (health.started, health.ready) = (true, !has_readiness),
            (probes::Kind::Startup, false) => health.failed = Some("Startup"),
            (probes::Kind::Liveness, false) => health.failed = Some("Liveness"),
            (probes::Kind::Liveness, true) => {}
            (probes::Kind::Readiness, ready) => health.ready = ready,
        }
    }

    fn settle_aborted(&mut self, id: Id) {
        if let Some((work, _)) = self.running.remove(&id) {
            self.memory.busy.remove(&work);
            self.stale = true;
        }
    }

    fn settle(&mut self, Done { work, outcome }: Done) {
        self.memory.busy.remove(&work);
        self.stale |= !matches!(work, Work::Volumes | Work::Drain);
        let retry = |memory: &mut Memory, at| {
            memory.retry_at.insert(work.clone(), at);
        };
        match outcome {
            Outcome::Done => {
                self.memory.retry_at.remove(&work);
                match &work {
                    Work::Volumes => self.memory.volumes_ready = true,
                    Work::Drain => self.memory.drained = true,
                    Work::Clean => self.memory.cleaned = true,
                    Work::Forget => self.finished = true,
                    Work::Container(container) => {
                        self.memory.waiting.remove(container);
                    }
                    Work::Sandbox => {}
                }
            }
            Outcome::SandboxStopped(id) => {
                self.memory.stopped.insert(id);
            }
            Outcome::ContainerEnded => {}
            Outcome::Failed { retry_after } => retry(&mut self.memory, Timestamp::now() + retry_after),
            Outcome::Waiting { container, waiting, until } => {
                self.memory.waiting.insert(container, waiting);
                if let Some(until) = until {
                    retry(&mut self.memory, until);
                }
            }
        }
    }
}

/// Whether the runtime still shows the container or sandbox as not ended.
fn is_alive(observed: &Observed, id: &str) -> bool {
    observed.containers.iter().any(|container| container.id == id && !container.has_exited())
        || observed.sandboxes.iter().any(|sandbox| sandbox.id == id && sandbox.ready)
}
