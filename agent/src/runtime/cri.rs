//! A thin, typed client of CRI v1: one method a call, deadlines as the kubelet's, errors that name the call.
//!
//! The connection is made at the first call and made anew when it breaks, so a runtime that restarts is only a
//! series of failed calls.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// The kubelet's `--runtime-request-timeout`.
const CALL: Duration = Duration::from_secs(120);
/// Large nodes list many containers and images: the kubelet's own bound.
const MESSAGE: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
#[error("rpc error: code = {} desc = {}", go_code(.source.code()), .source.message())]
pub struct CriError {
    pub call: &'static str,
    pub source: tonic::Status,
}

impl CriError {
    pub fn is_absent(&self) -> bool {
        self.source.code() == tonic::Code::NotFound
    }
}

/// gRPC's codes as upstream prints them; people search for these words.
fn go_code(code: tonic::Code) -> String {
    match code {
        tonic::Code::Cancelled => "Canceled".into(),
        other => format!("{other:?}"),
    }
}

type Result<T> = std::result::Result<T, CriError>;

#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// One method: the request's fields in, the reply out, a deadline around it.
macro_rules! call {
    ($client:expr, $method:ident, $timeout:expr, $request:expr) => {{
        let mut client = $client.clone();
        let mut request = tonic::Request::new($request);
        if let Some(timeout) = $timeout {
            request.set_timeout(timeout);
        }
        client
            .$method(request)
            .await
            .map(tonic::Response::into_inner)
            .map_err(|source| CriError { call: stringify!($method), source })
    }};
}

impl Cri {
    pub fn new(socket: &Path) -> Self {
        let channel = connect_lazily(socket.to_owned());
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE),
        }
    }

    pub async fn version(&self) -> Result<VersionResponse> {
        call!(self.runtime, version, Some(CALL), VersionRequest { version: "v1".into() })
    }

    pub async fn status(&self) -> Result<StatusResponse> {
        call!(self.runtime, status, Some(CALL), StatusRequest { verbose: false })
    }

    /// Sandboxes wait for the network, hence the kubelet's double deadline.
    pub async fn run_sandbox(&self, config: PodSandboxConfig, runtime_handler: String) -> Result<String> {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler };
        Ok(call!(self.runtime, run_pod_sandbox, Some(CALL * 2), request)?.pod_sandbox_id)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
        call!(self.runtime, stop_pod_sandbox, Some(CALL), request).map(drop)
    }

    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        call!(self.runtime, remove_pod_sandbox, Some(CALL), request).map(drop)
    }

    pub async fn sandbox_status(&self, id: &str, verbose: bool) -> Result<PodSandboxStatusResponse> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose };
        call!(self.runtime, pod_sandbox_status, Some(CALL), request)
    }

    pub async fn list_sandboxes(&self, label: Option<(&str, &str)>) -> Result<Vec<PodSandbox>> {
        let filter = PodSandboxFilter { label_selector: selector(label), ..Default::default() };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        Ok(call!(self.runtime, list_pod_sandbox, Some(CALL), request)?.items)
    }

    pub async fn list_containers(&self, label: Option<(&str, &str)>) -> Result<Vec<Container>> {
        let filter = ContainerFilter { label_selector: selector(label), ..Default::default() };
        let request = ListContainersRequest { filter: Some(filter) };
        Ok(call!(self.runtime, list_containers, Some(CALL), request)?.containers)
    }

    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        let reply = call!(self.runtime, container_status, Some(CALL), request)?;
        reply.status.ok_or(CriError { call: "container_status", source: tonic::Status::not_found("no status") })
    }

    pub async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(call!(self.runtime, create_container, Some(CALL), request)?.container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: id.into() };
        call!(self.runtime, start_container, Some(CALL), request).map(drop)
    }

    /// SIGTERM (or the image's stop signal), then SIGKILL when `grace` is over.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let request = StopContainerRequest { container_id: id.into(), timeout: grace.as_secs() as i64 };
        call!(self.runtime, stop_container, Some(CALL + grace), request).map(drop)
    }

    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.into() };
        call!(self.runtime, remove_container, Some(CALL), request).map(drop)
    }

    pub async fn exec_sync(&self, id: &str, cmd: Vec<String>, timeout: Duration) -> Result<ExecSyncResponse> {
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout: timeout.as_secs() as i64 };
        let deadline = (!timeout.is_zero()).then_some(timeout + CALL);
        call!(self.runtime, exec_sync, deadline, request)
    }

    /// The address of a stream to a new process, good for one use.
    pub async fn exec(&self, request: ExecRequest) -> Result<String> {
        Ok(call!(self.runtime, exec, Some(CALL), request)?.url)
    }

    pub async fn attach(&self, request: AttachRequest) -> Result<String> {
        Ok(call!(self.runtime, attach, Some(CALL), request)?.url)
    }

    pub async fn port_forward(&self, sandbox: &str, port: Vec<i32>) -> Result<String> {
        let request = PortForwardRequest { pod_sandbox_id: sandbox.into(), port };
        Ok(call!(self.runtime, port_forward, Some(CALL), request)?.url)
    }

    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = ReopenContainerLogRequest { container_id: id.into() };
        call!(self.runtime, reopen_container_log, Some(CALL), request).map(drop)
    }

    pub async fn container_stats(&self) -> Result<Vec<ContainerStats>> {
        let request = ListContainerStatsRequest { filter: None };
        Ok(call!(self.runtime, list_container_stats, Some(CALL), request)?.stats)
    }

    /// Only ever grows: without a deadline, as an image may be large and a line slow.
    pub async fn pull_image(&self, image: ImageSpec, auth: Option<AuthConfig>) -> Result<String> {
        let request = PullImageRequest { image: Some(image), auth, sandbox_config: None };
        Ok(call!(self.images, pull_image, None::<Duration>, request)?.image_ref)
    }

    pub async fn image_status(&self, image: ImageSpec) -> Result<Option<Image>> {
        let request = ImageStatusRequest { image: Some(image), verbose: false };
        Ok(call!(self.images, image_status, Some(CALL), request)?.image)
    }

    pub async fn list_images(&self) -> Result<Vec<Image>> {
        Ok(call!(self.images, list_images, Some(CALL), ListImagesRequest { filter: None })?.images)
    }

    pub async fn remove_image(&self, image: ImageSpec) -> Result<()> {
        call!(self.images, remove_image, Some(CALL), RemoveImageRequest { image: Some(image) }).map(drop)
    }

    pub async fn image_fs_info(&self) -> Result<ImageFsInfoResponse> {
        call!(self.images, image_fs_info, Some(CALL), ImageFsInfoRequest {})
    }
}

fn selector(label: Option<(&str, &str)>) -> std::collections::HashMap<String, String> {
    label.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// The URI is required by the transport and used by nobody: the connector always dials the socket.
pub(super) fn connect_lazily(socket: PathBuf) -> Channel {
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    }))
}
