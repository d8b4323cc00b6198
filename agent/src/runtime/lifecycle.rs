//! containerd's event stream, reduced to what a pod's actor wakes for: a task of the CRI namespace ended.
//!
//! The stream is the fast path, never the truth: after every (re)connection, and on a slow timer, the reader is told
//! to look everywhere, because events in between are lost.

use std::path::Path;
use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::cri::connect_lazily;

/// CRI's containers live in this namespace of containerd.
const NAMESPACE: &str = "k8s.io";
/// The safety net below the stream.
const RELIST: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// The main process of a container or of a sandbox has ended.
    Exited { container: String },
    /// The kernel killed something in the container for want of memory.
    OutOfMemory { container: String },
    /// Events may have been missed: look at everything.
    Relist,
}

/// Sends events until `shutdown`, reconnecting for ever.
pub async fn watch(socket: &Path, events: mpsc::UnboundedSender<Lifecycle>, shutdown: CancellationToken) {
    let mut client = EventsClient::new(connect_lazily(socket.to_owned()));
    let mut pause = Duration::from_millis(50);
    loop {
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = follow(&mut client, &events) => outcome,
        };
        match outcome {
            Ok(()) => pause = Duration::from_millis(50),
            Err(error) => warn!(%error, "containerd's event stream broke"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(5)),
        }
    }
}

async fn follow(
    client: &mut EventsClient<tonic::transport::Channel>,
    events: &mpsc::UnboundedSender<Lifecycle>,
) -> Result<(), tonic::Status> {
    let filters = ["/tasks/exit", "/tasks/oom"].map(|topic| format!("topic==\"{topic}\",namespace=={NAMESPACE}"));
    let mut stream = client.subscribe(SubscribeRequest { filters: filters.into() }).await?.into_inner();
    let mut relist = tokio::time::interval(RELIST);
    loop {
        let event = tokio::select! {
            message = stream.message() => match message? {
                Some(envelope) => envelope.event.as_ref().and_then(decode),
                None => return Ok(()),
            },
            _ = relist.tick() => Some(Lifecycle::Relist),
        };
        if let Some(event) = event
            && events.send(event).is_err()
        {
            return Ok(());
        }
    }
}

/// A task's exit carries the id of the process; that of an exec (a probe, a person) ends no container.
fn decode(event: &Any) -> Option<Lifecycle> {
    let name = event.type_url.rsplit('/').next()?;
    // containerd writes the bare name where the decoder wants a URL.
    let any = Any { type_url: format!("/{name}"), value: event.value.clone() };
    match name {
        "containerd.events.TaskExit" => {
            let exit: TaskExit = any.to_msg().ok()?;
            (exit.id == exit.container_id).then_some(Lifecycle::Exited { container: exit.container_id })
        }
        "containerd.events.TaskOOM" => {
            let oom: TaskOom = any.to_msg().ok()?;
            Some(Lifecycle::OutOfMemory { container: oom.container_id })
        }
        _ => None,
    }
}
