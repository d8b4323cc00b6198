//! The floor under a pod's start: the three calls that no kubelet can do without, and their undoing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::api::IMAGE;

pub(crate) struct Floor {
    runtime: RuntimeServiceClient<Channel>,
    cgroup: String,
}

impl Floor {
    pub(crate) async fn connect(socket: &Path, cgroup: String) -> Result<Self> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| dial(path.clone()));
        let channel = Endpoint::from_static("http://runtime").connect_with_connector(connector).await;
        let channel = channel.with_context(|| format!("cannot reach the runtime at {}", socket.display()))?;
        Ok(Self { runtime: RuntimeServiceClient::new(channel), cgroup })
    }

    /// RunPodSandbox, CreateContainer and StartContainer, timed; then everything is removed again.
    pub(crate) async fn measure(&mut self, name: &str) -> Result<Duration> {
        let config = self.sandbox(name);
        let began = Instant::now();
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let sandbox = self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container()),
            sandbox_config: Some(config),
        };
        let container = self.runtime.create_container(request).await?.into_inner().container_id;
        self.runtime.start_container(StartContainerRequest { container_id: container }).await?;
        let took = began.elapsed();
        self.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() }).await?;
        self.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox }).await?;
        Ok(took)
    }

    fn sandbox(&self, name: &str) -> PodSandboxConfig {
        let metadata =
            PodSandboxMetadata { name: name.into(), uid: name.into(), namespace: "bench".into(), attempt: 0 };
        let linux = LinuxPodSandboxConfig { cgroup_parent: self.cgroup.clone(), ..Default::default() };
        PodSandboxConfig { metadata: Some(metadata), hostname: name.into(), linux: Some(linux), ..Default::default() }
    }
}

fn container() -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "pause".into(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
        ..Default::default()
    }
}

async fn dial(path: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}
