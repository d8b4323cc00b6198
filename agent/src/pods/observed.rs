//! What the runtime says about one pod: read by `plan` and `status`, made only here from CRI's answers.

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_cri::v1;

use super::labels;
use crate::runtime::{Cri, CriError};

/// Newest first, both.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created: i64,
    /// Empty on the host's network.
    pub ips: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub sandbox: String,
    pub attempt: u32,
    pub state: State,
    pub created: Option<Timestamp>,
    pub started: Option<Timestamp>,
    pub finished: Option<Timestamp>,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_ref: String,
    pub hash: String,
    pub log_path: String,
    /// The host's side of the termination message.
    pub termination_file: Option<String>,
    pub fallback_to_logs: bool,
    pub grace: Option<i64>,
    pub user: Option<(i64, i64, Vec<i64>)>,
}

impl Container {
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    pub fn has_exited(&self) -> bool {
        matches!(self.state, State::Exited | State::Unknown)
    }
}

impl Observed {
    /// The sandbox that containers go into.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    /// The latest incarnation of a container, in whichever sandbox.
    pub fn newest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The latest incarnation in the sandbox that is up.
    pub fn current(&self, name: &str) -> Option<&Container> {
        let sandbox = self.sandbox()?;
        self.newest(name).filter(|container| container.sandbox == sandbox.id)
    }

    /// The incarnation before the latest.
    pub fn previous(&self, name: &str) -> Option<&Container> {
        self.containers.iter().filter(|container| container.name == name).nth(1)
    }

    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|container| container.is_running())
    }
}

/// Asks the runtime. Whatever cannot change any more is taken from `known` instead of being asked for again.
pub async fn observe(cri: &Cri, uid: &str, known: &Observed) -> Result<Observed, CriError> {
    let label = Some((labels::POD_UID, uid));
    let (sandboxes, containers) = tokio::try_join!(cri.list_sandboxes(label), cri.list_containers(label))?;
    let mut observed = Observed::default();
    for item in sandboxes {
        match sandbox(cri, item, known).await {
            Err(error) if error.is_absent() => {}
            found => observed.sandboxes.push(found?),
        }
    }
    for item in containers {
        match container(cri, item, known).await {
            Err(error) if error.is_absent() => {}
            found => observed.containers.push(found?),
        }
    }
    observed.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.created, sandbox.attempt)));
    observed.containers.sort_by_key(|container| std::cmp::Reverse((container.created, container.attempt)));
    Ok(observed)
}

async fn sandbox(cri: &Cri, item: v1::PodSandbox, known: &Observed) -> Result<Sandbox, CriError> {
    let ready = item.state == v1::PodSandboxState::SandboxReady as i32;
    if let Some(same) = known.sandboxes.iter().find(|other| other.id == item.id && other.ready == ready) {
        return Ok(same.clone());
    }
    let network = cri.sandbox_status(&item.id, false).await?.status.and_then(|status| status.network);
    let ips = network.map(addresses).unwrap_or_default();
    let attempt = item.metadata.map(|metadata| metadata.attempt).unwrap_or_default();
    Ok(Sandbox { id: item.id, attempt, ready, created: item.created_at, ips })
}

fn addresses(network: v1::PodSandboxNetworkStatus) -> Vec<IpAddr> {
    let more = network.additional_ips.iter().map(|ip| ip.ip.as_str());
    std::iter::once(network.ip.as_str()).chain(more).filter_map(|ip| ip.parse().ok()).collect()
}

async fn container(cri: &Cri, item: v1::Container, known: &Observed) -> Result<Container, CriError> {
    let state = state(item.state);
    let same = known.containers.iter().find(|other| other.id == item.id && other.state == state);
    if let Some(same) = same.filter(|same| same.started.is_some() || state == State::Exited) {
        return Ok(same.clone());
    }
    let status = cri.container_status(&item.id).await?;
    Ok(describe(item, status).await)
}

async fn describe(item: v1::Container, status: v1::ContainerStatus) -> Container {
    let note = |key: &str| status.annotations.get(key).map(String::as_str);
    let path = note(labels::TERMINATION_MESSAGE_PATH).unwrap_or_default();
    let file = status.mounts.iter().find(|mount| mount.container_path == path && !path.is_empty());
    let mut container = Container {
        name: item.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or_default(),
        sandbox: item.pod_sandbox_id,
        attempt: status.metadata.as_ref().map(|metadata| metadata.attempt).unwrap_or_default(),
        state: state(status.state),
        created: time(status.created_at),
        started: time(status.started_at),
        finished: time(status.finished_at),
        exit_code: status.exit_code,
        hash: note(labels::HASH).unwrap_or_default().to_owned(),
        termination_file: file.map(|mount| mount.host_path.clone()),
        fallback_to_logs: note(labels::TERMINATION_MESSAGE_POLICY) == Some("FallbackToLogsOnError"),
        grace: note(labels::GRACE_PERIOD).and_then(|grace| grace.parse().ok()),
        user: user(&status),
        image: status.image.map(|image| image.image).unwrap_or_default(),
        id: status.id,
        reason: status.reason,
        message: status.message,
        image_ref: status.image_ref,
        log_path: status.log_path,
    };
    if container.has_exited() {
        let log = (container.fallback_to_logs && container.exit_code != 0).then_some(&*container.log_path);
        if let Some(message) = super::termination::message(container.termination_file.as_deref(), log).await {
            container.message = message;
        }
    }
    container
}

fn user(status: &v1::ContainerStatus) -> Option<(i64, i64, Vec<i64>)> {
    let linux = status.user.as_ref()?.linux.as_ref()?;
    Some((linux.uid, linux.gid, linux.supplemental_groups.clone()))
}

fn state(raw: i32) -> State {
    match v1::ContainerState::try_from(raw) {
        Ok(v1::ContainerState::ContainerCreated) => State::Created,
        Ok(v1::ContainerState::ContainerRunning) => State::Running,
        Ok(v1::ContainerState::ContainerExited) => State::Exited,
        _ => State::Unknown,
    }
}

fn time(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(nanoseconds.into()).ok())?
}

/// Which pod each sandbox of the node belongs to, for adoption and for the removal of orphans.
pub async fn pods_on_node(cri: &Cri) -> Result<HashMap<String, v1::PodSandbox>, CriError> {
    let sandboxes = cri.list_sandboxes(None).await?;
    let owned = sandboxes.into_iter().filter_map(|sandbox| {
        let uid = sandbox.labels.get(labels::POD_UID)?.clone();
        Some((uid, sandbox))
    });
    Ok(owned.collect())
}
