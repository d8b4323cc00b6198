//! One container, from the pod's words to CRI's: fetches what the environment mentions, lays out mounts, and writes
//! the configuration that the runtime starts it from.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_cri::v1::*;
use k8s_openapi::api::core::v1 as core;

use super::env::{self, EnvError, Sources};
use super::fields::Downward;
use super::sandbox::{self, namespace, uid};
use super::security::{self, SecurityError};
use super::{Context, cgroups, hosts, labels, plan, resources};
use crate::volumes::{self, VolumeError};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("failed to prepare {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("volume {0:?} is not among the pod's volumes")]
    NoVolume(String),
}

pub struct Request<'a> {
    pub context: &'a Context,
    pub pod: &'a core::Pod,
    pub container: &'a core::Container,
    pub attempt: u32,
    pub pod_ips: &'a [IpAddr],
    pub image: &'a Image,
}

/// How old the objects may be that a starting container sees.
const FRESH: Duration = Duration::from_secs(1);

pub async fn config(request: &Request<'_>) -> Result<ContainerConfig, ConfigError> {
    let Request { context, pod, container, attempt, image, .. } = *request;
    let user = (image.uid.as_ref().map(|uid| uid.value), image.username.as_str());
    let security_context = security::of_container(pod, container, user)?;
    let variables = variables(request).await?;
    let expand = |list: &Option<Vec<String>>| list.iter().flatten().map(|text| expand(text, &variables)).collect();

    let log_path = format!("{}/{attempt}.log", container.name);
    let log_directory = sandbox::log_directory(&context.config, pod).join(&container.name);
    fs::create_dir_all(&log_directory).map_err(|source| ConfigError::File { path: log_directory, source })?;
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(ImageSpec {
            image: image.id.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: mounts(request, &variables)?,
        envs: variables.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
        labels: labels(pod, container),
        annotations: annotations(pod, container, attempt),
        log_path,
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),

        linux: Some(LinuxContainerConfig {
            resources: Some(resources::of_container(pod, container, context.machine.memory, cgroups::is_unified())),
            security_context: Some(security_context),
        }),
        ..Default::default()
    })
}

fn expand(text: &str, variables: &[(String, String)]) -> String {
    env::expand(text, |name| variables.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str()))
}

fn labels(pod: &core::Pod, container: &core::Container) -> HashMap<String, String> {
    let mut labels = sandbox::identity(pod);
    labels.insert(labels::CONTAINER_NAME.into(), container.name.clone());
    labels
}

fn annotations(pod: &core::Pod, container: &core::Container, attempt: u32) -> HashMap<String, String> {
    let mut notes = HashMap::from([
        (labels::HASH.to_owned(), plan::hash(container)),
        (labels::RESTART_COUNT.to_owned(), attempt.to_string()),
        (labels::TERMINATION_MESSAGE_PATH.to_owned(), termination_path(container).to_owned()),
        (
            labels::TERMINATION_MESSAGE_POLICY.to_owned(),
            container.termination_message_policy.clone().unwrap_or_else(|| "File".into()),
        ),
    ]);
    let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    notes.extend(grace.map(|grace| (labels::GRACE_PERIOD.to_owned(), grace.to_string())));
    let json = |value: serde_json::Result<String>| value.ok();
    notes.extend(
        container
            .ports
            .as_ref()
            .and_then(|ports| json(serde_json::to_string(ports)))
            .map(|ports| (labels::PORTS.to_owned(), ports)),
    );
    let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    notes.extend(
        hook.and_then(|hook| json(serde_json::to_string(hook))).map(|hook| (labels::PRE_STOP.to_owned(), hook)),
    );
    notes
}

/// What the downward API tells the pod.
pub fn downward<'a>(context: &'a Context, pod_ips: &'a [IpAddr]) -> Downward<'a> {
    Downward {
        pod_ips,
        host_ip: Some(context.config.node_ip),
        node_name: &context.config.node_name,
        allocatable_milli_cpu: context.machine.cpus * 1000,
        allocatable_memory: context.machine.memory,
    }
}

async fn variables(request: &Request<'_>) -> Result<Vec<(String, String)>, ConfigError> {
    let Request { context, pod, container, pod_ips, .. } = *request;
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let mut sources = Sources { services: context.services.variables(namespace(pod), links), ..Default::default() };
    let (config_maps, secrets) = env::references(container);
    for name in config_maps {
        if let Some(found) = context.objects.config_map(namespace(pod), name, FRESH).await? {
            sources.config_maps.insert(name.to_owned(), (*found).clone());
        }
    }
    for name in secrets {
        if let Some(found) = context.objects.secret(namespace(pod), name, FRESH).await? {
            sources.secrets.insert(name.to_owned(), (*found).clone());
        }
    }
    Ok(env::build(pod, container, &sources, &downward(context, pod_ips))?)
}

fn mounts(request: &Request<'_>, variables: &[(String, String)]) -> Result<Vec<Mount>, ConfigError> {
    let Request { context, pod, container, .. } = *request;
    let volumes: BTreeMap<&str, &core::Volume> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
        .map(|volume| (volume.name.as_str(), volume))
        .collect();
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = volumes.get(mount.name.as_str());
        let location = volume.and_then(|volume| volumes::location(&context.config, pod, volume));
        let location = location.ok_or_else(|| ConfigError::NoVolume(mount.name.clone()))?;
        let host_path = match subpath(mount, variables) {
            Some(subpath) => volumes::bind_subpath(&location, &subpath, subpath_target(request, mount, index))?,
            None => location,
        };
        // Contents that the agent writes are never the container's to change.
        let ours = volume.is_some_and(|volume| volume.empty_dir.is_none() && volume.host_path.is_none());
        mounts.push(Mount {
            container_path: absolute(&mount.mount_path),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: mount.read_only == Some(true) || ours,
            propagation: propagation(mount) as i32,
            ..Default::default()
        });
    }
    let taken = |path: &str| container.volume_mounts.iter().flatten().any(|mount| mount.mount_path == path);
    if !taken("/etc/hosts") {
        mounts.push(hosts_mount(request)?);
    }
    if !termination_path(container).is_empty() {
        mounts.push(termination_mount(request)?);
    }
    Ok(mounts)
}

fn subpath(mount: &core::VolumeMount, variables: &[(String, String)]) -> Option<String> {
    let expression = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty());
    let plain = mount.sub_path.clone().filter(|text| !text.is_empty());
    expression.map(|text| expand(text, variables)).or(plain)
}

fn subpath_target(request: &Request<'_>, mount: &core::VolumeMount, index: usize) -> PathBuf {
    let pod = volumes::pod_directory(&request.context.config, uid(request.pod));
    pod.join("volume-subpaths").join(&mount.name).join(&request.container.name).join(index.to_string())
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn propagation(mount: &core::VolumeMount) -> MountPropagation {
    match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    }
}

fn hosts_mount(request: &Request<'_>) -> Result<Mount, ConfigError> {
    let path = hosts::path(&request.context.config, request.pod);
    let of_host = if sandbox::is_host_network(request.pod) {
        fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        String::new()
    };
    let text = hosts::contents(&request.context.config, request.pod, request.pod_ips, &of_host);
    write(&path, text.as_bytes())?;
    Ok(file_mount("/etc/hosts", &path))
}

fn termination_path(container: &core::Container) -> &str {
    container.termination_message_path.as_deref().unwrap_or("/dev/termination-log")
}

/// A fresh file per attempt; anybody in the container may write it.
fn termination_mount(request: &Request<'_>) -> Result<Mount, ConfigError> {
    use std::os::unix::fs::PermissionsExt;
    let pod = volumes::pod_directory(&request.context.config, uid(request.pod));
    let name = format!("{:08x}", fastrand::u32(..));
    let path = pod.join("containers").join(&request.container.name).join(name);
    write(&path, b"")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
        .map_err(|source| ConfigError::File { path: path.clone(), source })?;
    Ok(file_mount(termination_path(request.container), &path))
}

fn write(path: &Path, data: &[u8]) -> Result<(), ConfigError> {
    let failed = |source| ConfigError::File { path: path.to_owned(), source };
    fs::create_dir_all(path.parent().expect("a file of a pod has a directory")).map_err(failed)?;
    let same = fs::read(path).is_ok_and(|old| old == data);
    if same { Ok(()) } else { fs::write(path, data).map_err(failed) }
}

fn file_mount(container_path: &str, host_path: &Path) -> Mount {
    Mount {
        container_path: container_path.into(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Default::default()
    }
}
