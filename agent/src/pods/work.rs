//! What an actor has decided, done: each action is one task that ends in an `Outcome` the actor remembers.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_cri::v1::PodSandboxConfig;
use k8s_openapi::api::core::v1 as core;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::observed::Observed;
use super::plan::{Action, Waiting, Work, containers, grace_period};
use super::sandbox::{self, is_host_network, namespace, uid};
use super::{Context, cgroups, container, hooks, log_files};
use crate::events::Kind;
use crate::volumes;

pub struct Request {
    pub context: Arc<Context>,
    pub pod: Arc<core::Pod>,
    pub observed: Arc<Observed>,
    pub pod_ips: Vec<IpAddr>,
    pub gone: bool,
    /// Cancelled when the pod is on its way out: nothing is pulled for it any more.
    pub ending: CancellationToken,
}

pub struct Done {
    pub work: Work,
    pub outcome: Outcome,
}

pub enum Outcome {
    Done,
    SandboxStopped(String),
    /// Stopped or removed: what comes next is for `plan` to see.
    ContainerEnded,
    Failed {
        retry_after: Duration,
    },
    Waiting {
        container: String,
        waiting: Waiting,
        until: Option<Timestamp>,
    },
}

/// How long the datapath may take to stop choosing a pod before its containers are stopped all the same.
const DRAIN: Duration = Duration::from_secs(1);
/// The pause after a failure that nobody can tell the end of.
const RETRY: Duration = Duration::from_secs(2);
/// Upstream looks at a container whose configuration is wrong about this often.
const CONFIG_RETRY: Duration = Duration::from_secs(10);

pub async fn carry_out(
    request: Request,
    action: Action,
    deletion: Option<impl Future<Output = ()> + Send + 'static>,
) -> Done {
    let work = action.work();
    let outcome = match action {
        Action::PrepareVolumes => prepare_volumes(&request).await,
        Action::RunSandbox { attempt } => run_sandbox(&request, attempt).await,
        Action::StopSandbox { id } => stop_sandbox(&request, id).await,
        Action::Start { container, attempt } => start(&request, container, attempt).await,
        Action::Stop { container, id, grace, .. } => stop(&request, &container, &id, grace).await,
        Action::RemoveContainer { id, .. } => remove_container(&request, &id).await,
        Action::AwaitDraining => await_draining(&request).await,
        Action::CleanUp => clean_up(&request).await,
        Action::Forget => forget(&request, deletion).await,
    };
    Done { work, outcome }
}

async fn prepare_volumes(request: &Request) -> Outcome {
    let Request { context, pod, pod_ips, .. } = request;
    let setup = volumes::Setup {
        config: &context.config,
        client: &context.client,
        objects: &context.objects,
        tokens: &context.tokens,
        downward: container::downward(context, pod_ips),
        max_age: Duration::from_secs(if request.observed.containers.is_empty() { 1 } else { 20 }),
    };
    match volumes::prepare(&setup, pod).await {
        Ok(()) => Outcome::Done,
        Err((volume, error)) => {
            let message = format!("MountVolume.SetUp failed for volume {volume:?} : {error}");
            context.events.pod(pod, Kind::Warning, "FailedMount", message);
            Outcome::Failed { retry_after: RETRY }
        }
    }
}

fn sandbox_config(request: &Request, attempt: u32) -> PodSandboxConfig {
    let config = &request.context.config;
    let host = std::fs::read_to_string(&config.resolv_conf).unwrap_or_default();
    sandbox::config(config, &request.pod, attempt, &host)
}

async fn run_sandbox(request: &Request, attempt: u32) -> Outcome {
    let Request { context, pod, .. } = request;
    let config = sandbox_config(request, attempt);
    if let Err(error) = std::fs::create_dir_all(&config.log_directory) {
        warn!(%error, directory = config.log_directory, "the pod's log directory cannot be made");
    }
    if let Err(error) = cgroups::bound(&sandbox::cgroup(&context.config, pod), pod) {
        warn!(%error, pod = sandbox::name(pod), "the pod's cgroup cannot be bounded");
    }
    let handler = String::new();
    match context.cri.run_sandbox(config, handler).await {
        Ok(id) => {
            context.owners.claim(uid(pod), [&id].into_iter());
            Outcome::Done
        }
        Err(error) => {
            let message = format!("Failed to create pod sandbox: {error}");
            context.events.pod(pod, Kind::Warning, "FailedCreatePodSandBox", message);
            Outcome::Failed { retry_after: RETRY }
        }
    }
}

async fn stop_sandbox(request: &Request, id: String) -> Outcome {
    let Request { context, pod, .. } = request;
    match context.cri.stop_sandbox(&id).await {
        Err(error) if !error.is_absent() => {
            let message = format!(
                "error killing pod: failed to \"KillPodSandbox\" for {:?} with KillPodSandboxError: {error:?}",
                uid(pod)
            );
            context.events.pod(pod, Kind::Warning, "FailedKillPod", message);
            Outcome::Failed { retry_after: RETRY }
        }
        _ => Outcome::SandboxStopped(id),
    }
}

async fn start(request: &Request, name: String, attempt: u32) -> Outcome {
    let found = containers(&request.pod).find(|(_, spec)| spec.name == name).map(|(_, spec)| spec.clone());
    let spec = found.expect("plan names containers of the pod");
    match try_start(request, &spec, attempt).await {
        Ok(()) => Outcome::Done,
        Err((waiting, until)) => Outcome::Waiting { container: name, waiting, until },
    }
}

type Refused = (Waiting, Option<Timestamp>);

async fn try_start(request: &Request, spec: &core::Container, attempt: u32) -> Result<(), Refused> {
    let Request { context, pod, observed, pod_ips, .. } = request;
    let say = |kind, reason: &str, message: String| context.events.container(pod, &spec.name, kind, reason, message);
    let refuse = |reason: &str, message: String, event: &str| {
        say(Kind::Warning, event, format!("Error: {message}"));
        (Waiting { reason: reason.into(), message }, Some(Timestamp::now() + CONFIG_RETRY))
    };
    let sandbox = observed.sandbox().expect("plan starts containers in a sandbox");
    let image = tokio::select! {
        image = context.images.ensure(pod, spec) => image?,
        () = request.ending.cancelled() => {
            return Err((Waiting { reason: "ContainerCreating".into(), message: String::new() }, None));
        }
    };
    let wanted = container::Request { context, pod, container: spec, attempt, pod_ips, image: &image };
    let config = container::config(&wanted).await;
    let config = config.map_err(|error| refuse("CreateContainerConfigError", error.to_string(), "Failed"))?;
    let sandbox_config = sandbox_config(request, sandbox.attempt);
    let created = context.cri.create_container(&sandbox.id, config, sandbox_config).await;
    let id = created.map_err(|error| refuse("CreateContainerError", error.source.message().to_owned(), "Failed"))?;
    context.owners.claim(uid(pod), [&id].into_iter());
    say(Kind::Normal, "Created", "Container created".into());
    if let Err(error) = context.cri.start_container(&id).await {
        return Err(refuse("RunContainerError", error.source.message().to_owned(), "Failed"));
    }
    say(Kind::Normal, "Started", "Container started".into());
    post_start(request, spec, &id).await
}

async fn post_start(request: &Request, spec: &core::Container, id: &str) -> Result<(), Refused> {
    let Request { context, pod, .. } = request;
    let Some(hook) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else { return Ok(()) };
    let Err(error) = hooks::run(&context.cri, hook, spec, id, address(request)).await else { return Ok(()) };
    let say = |kind, reason: &str, message: String| context.events.container(pod, &spec.name, kind, reason, message);
    say(Kind::Warning, "FailedPostStartHook", format!("PostStartHook failed: {error}"));
    say(Kind::Normal, "Killing", "FailedPostStartHook".into());
    stop(request, &spec.name, id, super::plan::grace_period(pod)).await;
    Err((Waiting { reason: "PostStartHookError".into(), message: error }, None))
}

fn address(request: &Request) -> IpAddr {
    request.pod_ips.first().copied().unwrap_or(request.context.config.node_ip)
}

/// The hook's time is taken from the grace period; the runtime gets what is left, at least two seconds of it.
async fn stop(request: &Request, name: &str, id: &str, grace: Duration) -> Outcome {
    let Request { context, pod, .. } = request;
    let begun = tokio::time::Instant::now();
    let found = containers(pod).find(|(_, spec)| spec.name == name);
    let hook = found.and_then(|(_, spec)| Some((spec, spec.lifecycle.as_ref()?.pre_stop.as_ref()?)));
    if let Some((spec, hook)) = hook.filter(|_| !grace.is_zero()) {
        let outcome = timeout(grace, hooks::run(&context.cri, hook, spec, id, address(request))).await;
        if let Ok(Err(error)) = outcome {
            let message = format!("PreStopHook failed: {error}");
            context.events.container(pod, name, Kind::Warning, "FailedPreStopHook", message);
        }
    }
    let left = grace.saturating_sub(begun.elapsed());
    let left = if grace.is_zero() { Duration::ZERO } else { left.max(Duration::from_secs(2).min(grace)) };
    // Whole seconds are all that CRI knows, and none would be a kill.
    let left = Duration::from_secs(left.as_secs_f64().ceil() as u64);
    match context.cri.stop_container(id, left).await {
        Err(error) if !error.is_absent() => {
            warn!(pod = sandbox::name(pod), container = name, %error, "the container does not stop");
            Outcome::Failed { retry_after: RETRY }
        }
        _ => Outcome::ContainerEnded,
    }
}

/// The runtime leaves a container's log behind.
async fn remove_container(request: &Request, id: &str) -> Outcome {
    let cri = &request.context.cri;
    let log = cri.container_status(id).await.map(|status| status.log_path).unwrap_or_default();
    match cri.remove_container(id).await {
        Err(error) if !error.is_absent() => Outcome::Failed { retry_after: RETRY },
        _ => {
            if !log.is_empty() {
                log_files::remove(Path::new(&log));
            }
            Outcome::ContainerEnded
        }
    }
}

/// Other nodes hear that a pod is going when this one does, and stop choosing it a moment sooner or later.
const SETTLE: Duration = Duration::from_millis(300);

async fn await_draining(request: &Request) -> Outcome {
    let Request { context, pod, gone, .. } = request;
    if !gone && !is_host_network(pod) {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let drained = async {
            context.drain.await_draining(uid(pod)).await;
            if context.services.select(namespace(pod), &labels) {
                sleep(SETTLE).await;
            }
        };
        // Past the bound the pod is stopped all the same.
        let _ = timeout(DRAIN.min(grace_period(pod)), drained).await;
    }
    Outcome::Done
}

async fn clean_up(request: &Request) -> Outcome {
    let Request { context, pod, .. } = request;
    let (config, pod) = (context.config.clone(), pod.clone());
    context.tokens.forget(uid(&pod));
    context.images.forget(uid(&pod));
    let cleaned = tokio::task::spawn_blocking(move || {
        let gone = cgroups::remove_pod(&config.cgroup_root, uid(&pod));
        volumes::tear_down(&config, uid(&pod)).map(|()| gone)
    });
    match cleaned.await.expect("cleaning up does not panic") {
        Ok(true) => Outcome::Done,
        Ok(false) => Outcome::Failed { retry_after: Duration::from_millis(100) },
        Err(error) => {
            warn!(pod = sandbox::name(&request.pod), %error, "the pod's volumes cannot be removed yet");
            Outcome::Failed { retry_after: RETRY }
        }
    }
}

async fn forget(request: &Request, deletion: Option<impl Future<Output = ()>>) -> Outcome {
    let Request { context, pod, observed, .. } = request;
    if let Some(deletion) = deletion {
        deletion.await;
    }
    for sandbox in &observed.sandboxes {
        if let Err(error) = context.cri.remove_sandbox(&sandbox.id).await
            && !error.is_absent()
        {
            warn!(pod = sandbox::name(pod), %error, "the sandbox cannot be removed yet");
            return Outcome::Failed { retry_after: RETRY };
        }
    }
    let logs = sandbox::log_directory(&context.config, pod);
    match std::fs::remove_dir_all(&logs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(%error, directory = %logs.display(), "logs stay")
        }
        _ => {}
    }
    context.owners.release(uid(pod));
    Outcome::Done
}
