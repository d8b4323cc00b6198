//! `/containerLogs`: a container's output from the files its runtime writes.
//!
//! Which file follows from the pod's status, with the kubelet's words for a container that has none. A followed log
//! looks for more several times a second, across rotations, and ends a look after the container has.

mod file;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode, Uri};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use tokio::sync::mpsc;

use crate::answer::Refusal;
use crate::containers;
use crate::node::Node;
use crate::query::Query;
use file::LogReader;
pub(crate) use file::Selection;

const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Default, PartialEq)]
struct Options {
    follow: bool,
    previous: bool,
    selection: Selection,
}

pub(crate) async fn container_logs(
    State(node): State<Arc<dyn Node>>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let options = Options::parse(&Query::parse(uri.query()), Timestamp::now())?;
    let missing = || Refusal::not_found(format!("pod \"{name}\" does not exist"));
    let pod = node.pod(&namespace, &name).ok_or_else(missing)?;
    if !containers::is_declared(&pod, &container) {
        return Err(Refusal::not_found(format!("container \"{container}\" not found in pod \"{name}\"")));
    }
    let id = container_id(&pod, &name, &container, options.previous).map_err(Refusal::bad_request)?;
    let path = node
        .log_path(&id)
        .await
        .map_err(|_| Refusal::bad_request(format!("unable to retrieve container logs for containerd://{id}")))?;
    let reader = open(path, options.selection).await.map_err(|error| Refusal::bad_request(error.to_string()))?;
    let (chunks, body) = mpsc::channel(4);
    let container = Followed { node, namespace, name, container, id };
    tokio::spawn(send(reader, options.follow.then_some(container), chunks));
    let body = Body::from_stream(futures::stream::unfold(body, async |mut body| Some((body.recv().await?, body))));
    let plain = [(CONTENT_TYPE, HeaderValue::from_static("text/plain"))];
    Ok((plain, body).into_response())
}

impl Options {
    fn parse(query: &Query, now: Timestamp) -> Result<Self, Refusal> {
        let invalid = |name: &str, value: &str| {
            Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, format!("{name}: Invalid value: \"{value}\""))
        };
        let number = |name: &str, least: u64| match query.get(name) {
            None | Some("") => Ok(None),
            Some(text) => {
                text.parse().ok().filter(|number: &u64| *number >= least).map(Some).ok_or_else(|| invalid(name, text))
            }
        };
        let since_seconds = number("sinceSeconds", 1)?
            .map(|seconds| now.checked_sub(SignedDuration::from_secs(seconds.min(u32::MAX.into()) as i64)))
            .transpose()
            .map_err(|_| invalid("sinceSeconds", query.get("sinceSeconds").unwrap_or_default()))?;
        let since_time = match query.get("sinceTime").filter(|text| !text.is_empty()) {
            Some(text) => Some(text.parse().map_err(|_| invalid("sinceTime", text))?),
            None => None,
        };
        let stream = match query.get("stream") {
            None | Some("" | "All") => None,
            Some("Stdout") => Some("stdout"),
            Some("Stderr") => Some("stderr"),
            Some(other) => return Err(invalid("stream", other)),
        };
        Ok(Self {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            selection: Selection {
                tail: number("tailLines", 0)?,
                limit: number("limitBytes", 1)?,
                since: since_seconds.or(since_time),
                timestamps: query.flag("timestamps"),
                stream,
            },
        })
    }
}

/// Whose log it is; the error is the kubelet's, which kubectl shows as it stands.
fn container_id(pod: &Pod, pod_name: &str, container: &str, previous: bool) -> Result<String, String> {
    let named = format!("container \"{container}\" in pod \"{pod_name}\"");
    let status = containers::status(pod, container).ok_or_else(|| format!("{named} is not available"))?;
    let ended = |state: &Option<ContainerState>| {
        let terminated = state.as_ref().and_then(|state| state.terminated.as_ref())?;
        terminated.container_id.clone().filter(|id| !id.is_empty())
    };
    let last = ended(&status.last_state);
    if previous {
        let absent = || format!("previous terminated {named} not found");
        return last.map(|id| containers::bare(&id)).ok_or_else(absent);
    }
    let state = status.state.clone().unwrap_or_default();
    let id = match (&state.running, &state.terminated) {
        (Some(_), _) => status.container_id.clone(),
        (None, Some(_)) => Some(ended(&status.state).or(last).ok_or_else(|| format!("{named} is terminated"))?),
        (None, None) => last,
    };
    id.map(|id| containers::bare(&id)).ok_or_else(|| format!("{named} {}", waiting(status)))
}

fn waiting(status: &ContainerStatus) -> String {
    let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    match waiting.map(|waiting| waiting.reason.as_deref().unwrap_or_default()) {
        Some("ErrImagePull") => "is waiting to start: image can't be pulled".into(),
        Some("ImagePullBackOff") => "is waiting to start: trying and failing to pull image".into(),
        Some(reason) => format!("is waiting to start: {reason}"),
        None => "is waiting to start - no logs available".into(),
    }
}

async fn open(path: PathBuf, selection: Selection) -> std::io::Result<LogReader> {
    tokio::task::spawn_blocking(move || LogReader::open(path, selection)).await.map_err(std::io::Error::other)?
}

/// The container of a followed log.
struct Followed {
    node: Arc<dyn Node>,
    namespace: String,
    name: String,
    container: String,
    id: String,
}

impl Followed {
    fn runs(&self) -> bool {
        let pod = self.node.pod(&self.namespace, &self.name);
        let running = pod.and_then(|pod| containers::running(&pod, &self.container).ok());
        running.as_deref() == Some(&*self.id)
    }
}

/// Reads to the end, and on while the container runs; its last words may come after its end is known.
async fn send(mut reader: LogReader, followed: Option<Followed>, chunks: mpsc::Sender<std::io::Result<Bytes>>) {
    let mut last = followed.is_none();
    loop {
        let read = tokio::task::spawn_blocking(move || (reader.read(), reader)).await;
        let Ok((result, back)) = read else { return };
        reader = back;
        match result {
            Ok(Some(chunk)) if chunk.is_empty() => {}
            Ok(Some(chunk)) => {
                if chunks.send(Ok(chunk)).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(None) => return,
            Err(error) => return drop(chunks.send(Err(error)).await),
        }
        if last {
            return;
        }
        last = followed.as_ref().is_none_or(|followed| !followed.runs());
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = chunks.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{from_value, json};

    use super::*;

    fn pod(state: serde_json::Value, last: serde_json::Value) -> Pod {
        from_value(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"containers": [{"name": "app"}]},
            "status": {"containerStatuses": [{
                "name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "containerID": "containerd://now", "state": state, "lastState": last,
            }]},
        }))
        .unwrap()
    }

    fn terminated(id: &str) -> serde_json::Value {
        json!({"terminated": {"exitCode": 1, "containerID": id}})
    }

    #[test]
    fn the_state_of_a_container_says_whose_log_is_read_or_why_there_is_none() {
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let rows = [
            (json!({"running": {}}), json!({}), false, Ok("now")),
            (terminated("containerd://then"), json!({}), false, Ok("then")),
            (terminated(""), terminated("containerd://before"), false, Ok("before")),
            (terminated(""), json!({}), false, Err("container \"app\" in pod \"web\" is terminated")),
            (waiting("CrashLoopBackOff"), terminated("containerd://before"), false, Ok("before")),
            (json!({"running": {}}), terminated("containerd://before"), true, Ok("before")),
            (
                json!({"running": {}}),
                json!({}),
                true,
                Err("previous terminated container \"app\" in pod \"web\" not found"),
            ),
            (
                waiting("ContainerCreating"),
                json!({}),
                false,
                Err("container \"app\" in pod \"web\" is waiting to start: ContainerCreating"),
            ),
            (
                waiting("ImagePullBackOff"),
                json!({}),
                false,
                Err("container \"app\" in pod \"web\" is waiting to start: trying and failing to pull image"),
            ),
        ];
        for (state, last, previous, expected) in rows {
            let found = container_id(&pod(state.clone(), last), "web", "app", previous);
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{state}");
        }
    }

    #[test]
    fn options_are_read_and_bad_ones_named() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let parse = |query| Options::parse(&Query::parse(Some(query)), now);
        let options = parse("follow=true&tailLines=5&sinceSeconds=60&timestamps=true&limitBytes=9").unwrap();
        let selection = Selection {
            tail: Some(5),
            limit: Some(9),
            since: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            timestamps: true,
            stream: None,
        };
        assert_eq!(options, Options { follow: true, previous: false, selection });
        for bad in ["tailLines=-1", "limitBytes=0", "sinceTime=yesterday", "stream=both", "sinceSeconds=x"] {
            assert_eq!(parse(bad).unwrap_err().status, StatusCode::UNPROCESSABLE_ENTITY, "{bad}");
        }
    }
}
