//! Pods' volumes: set up before the first container starts, refreshed while the pod runs, torn down when it has gone.
//!
//! Everything lives below `<root>/pods/<uid>/` under upstream's names and is idempotent: set-up over an existing
//! volume only brings its contents up to date, so an agent that restarts needs no memory of its own.

mod atomic_writer;
mod host_path;
mod mounts;
mod payload;
mod subpath;

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use nix::mount::MsFlags;

pub use payload::Tokens;
pub use subpath::bind as bind_subpath;

use crate::Config;
use crate::objects::Objects;
use crate::pods::fields::Downward;
use crate::pods::sandbox::{namespace, uid};
use crate::pods::{quantity, resources};

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{kind} {name:?} not found")]
    Absent { kind: &'static str, name: String },
    #[error("references non-existent {kind} key: {key}")]
    Key { kind: &'static str, key: String },
    #[error("failed to fetch token: {0}")]
    Token(#[source] kube::Error),
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Field(#[from] crate::pods::fields::FieldError),
    #[error("hostPath type check failed: {0} is not a {1}")]
    HostPathType(String, &'static str),
    #[error("no volume plugin matched")]
    Unsupported,
    #[error("subPath {0:?} leads out of its volume")]
    Escape(String),
}

impl VolumeError {
    fn is_outage(&self) -> bool {
        matches!(self, Self::Token(error) | Self::Api(error) if !matches!(error, kube::Error::Api(_)))
    }
}

pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> VolumeError {
    move |source| VolumeError::Io { action, path: path.to_owned(), source }
}

/// What set-up needs besides the pod.
pub struct Setup<'a> {
    pub config: &'a Config,
    pub client: &'a kube::Client,
    pub objects: &'a Objects,
    pub tokens: &'a Tokens,
    pub downward: Downward<'a>,
    /// How old the contents may be that are written.
    pub max_age: Duration,
}

pub fn pod_directory(config: &Config, uid: &str) -> PathBuf {
    config.root_dir.join("pods").join(uid)
}

/// Where a volume's contents are on the host; none for kinds this node does not know.
pub fn location(config: &Config, pod: &core::Pod, volume: &core::Volume) -> Option<PathBuf> {
    if let Some(host) = &volume.host_path {
        return Some(PathBuf::from(&host.path));
    }
    let plugin = match volume {
        core::Volume { empty_dir: Some(_), .. } => "kubernetes.io~empty-dir",
        core::Volume { config_map: Some(_), .. } => "kubernetes.io~configmap",
        core::Volume { secret: Some(_), .. } => "kubernetes.io~secret",
        core::Volume { projected: Some(_), .. } => "kubernetes.io~projected",
        core::Volume { downward_api: Some(_), .. } => "kubernetes.io~downward-api",
        _ => return None,
    };
    Some(pod_directory(config, uid(pod)).join("volumes").join(plugin).join(&volume.name))
}

/// Sets up or refreshes all volumes; the first that fails is named.
pub async fn prepare(setup: &Setup<'_>, pod: &core::Pod) -> Result<(), (String, VolumeError)> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    for volume in volumes {
        match prepare_one(setup, pod, volume).await {
            // A volume that is there already serves on while the API is away.
            Err(error) if error.is_outage() && is_filled(setup.config, pod, volume) => {}
            Err(error) => return Err((volume.name.clone(), error)),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn is_filled(config: &Config, pod: &core::Pod, volume: &core::Volume) -> bool {
    location(config, pod, volume).is_some_and(|path| path.join("..data").exists())
}

async fn prepare_one(setup: &Setup<'_>, pod: &core::Pod, volume: &core::Volume) -> Result<(), VolumeError> {
    let path = location(setup.config, pod, volume).ok_or(VolumeError::Unsupported)?;
    if let Some(source) = &volume.host_path {
        return host_path::check(&path, source.type_.as_deref().unwrap_or_default());
    }
    if let Some(source) = &volume.empty_dir {
        return empty_dir(pod, &path, source);
    }
    let (payload, owner) = payload::collect(setup, pod, volume).await?;
    let in_memory = volume.config_map.is_none();
    let group = fs_group(pod);
    tokio::task::spawn_blocking(move || {
        make_directory(&path, 0o777)?;
        if in_memory && !mounts::is_mounted(&path)? {
            mounts::tmpfs(&path, None)?;
        }
        atomic_writer::write(&path, &payload, atomic_writer::Owner { user: owner, group })
    })
    .await
    .expect("the writer does not panic")
}

fn empty_dir(pod: &core::Pod, path: &Path, source: &core::EmptyDirVolumeSource) -> Result<(), VolumeError> {
    let fresh = !path.exists();
    match source.medium.as_deref().unwrap_or_default() {
        "" => make_directory(path, 0o777)?,
        "Memory" => {
            make_directory(path, 0o777)?;
            if !mounts::is_mounted(path)? {
                let limit = source.size_limit.as_ref().and_then(|size| quantity::units(&size.0));
                let of_pod = Some(resources::of_pod(pod).2).filter(|&bytes| bytes > 0);
                let size = [limit.filter(|&bytes| bytes > 0), of_pod].into_iter().flatten().min();
                mounts::tmpfs(path, size)?;
                set_mode(path, 0o777)?;
            }
        }
        _ => return Err(VolumeError::Unsupported),
    }
    match fs_group(pod).filter(|_| fresh) {
        Some(group) => give_to_group(path, group),
        None => Ok(()),
    }
}

pub(crate) fn fs_group(pod: &core::Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// What upstream's `fsGroup` does to a directory that pods write to.
fn give_to_group(path: &Path, group: u32) -> Result<(), VolumeError> {
    chown(path, None, Some(group)).map_err(io("chown", path))?;
    set_mode(path, 0o2777)
}

fn make_directory(path: &Path, mode: u32) -> Result<(), VolumeError> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(io("create", path))?;
    set_mode(path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), VolumeError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io("chmod", path))
}

/// Unmounts and removes everything the pod had; goes on after errors and reports the first.
pub fn tear_down(config: &Config, uid: &str) -> Result<(), VolumeError> {
    let directory = pod_directory(config, uid);
    mounts::unmount_below(&directory)?;
    match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &directory)(error)),
        _ => Ok(()),
    }
}

/// Makes mounts below the root visible to containers that ask for propagation: `/` may be private.
pub fn share_root(config: &Config) -> Result<(), VolumeError> {
    let pods = config.root_dir.join("pods");
    std::fs::create_dir_all(&pods).map_err(io("create", &pods))?;
    // Tokens and secrets of pods are below: nobody on the machine walks in by name.
    set_mode(&pods, 0o750)?;
    if !mounts::is_mounted(&config.root_dir)? {
        mounts::bind(&config.root_dir, &config.root_dir, MsFlags::MS_REC)?;
    }
    mounts::make(&config.root_dir, MsFlags::MS_SHARED | MsFlags::MS_REC)
}
