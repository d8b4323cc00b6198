//! Tells the API a pod's status: one task a pod, always the latest status, again and again until it is taken.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::warn;

const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What the task is asked to make true.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wish {
    status: Option<PodStatus>,
    /// The latest revision at which the API showed a condition of ours as another had set it.
    overruled: Option<u64>,
    delete: bool,
}

pub struct Writer {
    wish: watch::Sender<Wish>,
    settled: watch::Receiver<Option<Wish>>,
}

impl Writer {
    pub fn start(client: Client, pod: &Pod) -> Self {
        let (wish, wishes) = watch::channel(Wish::default());
        let (settle, settled) = watch::channel(None);
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let task = Task {
            api: Api::namespaced(client, &namespace),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            told: pod.status.clone().unwrap_or_default(),
            revision: revision(pod),
        };
        tokio::spawn(task.run(wishes, settle));
        Self { wish, settled }
    }

    /// Returns at once. `pod` is what the API shows: what others set of ours (the pods of a node that was silent for
    /// a while are no longer Ready) is told again.
    pub fn publish(&self, status: PodStatus, pod: &Pod) {
        let mut wish = self.wish.borrow().clone();
        let overruled = revision(pod).filter(|_| is_overruled(pod, &status));
        if wish.status.as_ref() != Some(&status) || overruled > wish.overruled {
            wish.overruled = overruled.max(wish.overruled);
            wish.status = Some(status);
            self.wish.send_replace(wish);
        }
    }

    /// Asks that the API forget the pod once it knows its last status; the future ends when it has.
    pub fn delete(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut wish = self.wish.borrow().clone();
        wish.delete = true;
        self.wish.send_replace(wish.clone());
        let mut settled = self.settled.clone();
        async move {
            // An error is the end of the task, which ends only when the pod is gone.
            let _ = settled.wait_for(|done| done.as_ref() == Some(&wish)).await;
        }
    }
}

struct Task {
    api: Api<Pod>,
    name: String,
    uid: String,
    told: PodStatus,
    /// Of the last write that the API took.
    revision: Option<u64>,
}

enum Outcome {
    Done,
    Gone,
}

impl Task {
    async fn run(mut self, mut wishes: watch::Receiver<Wish>, settle: watch::Sender<Option<Wish>>) {
        while wishes.changed().await.is_ok() {
            let mut pause = Duration::from_millis(200);
            loop {
                let wish = wishes.borrow_and_update().clone();
                match self.make_true(&wish).await {
                    Ok(Outcome::Gone) => return,
                    Ok(Outcome::Done) => {
                        settle.send_replace(Some(wish));
                        break;
                    }
                    Err(error) => {
                        warn!(pod = self.name, %error, "the API does not take the status yet");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(MAX_PAUSE);
                    }
                }
                if wishes.has_changed().is_err() {
                    return;
                }
            }
        }
    }

    async fn make_true(&mut self, wish: &Wish) -> Result<Outcome, kube::Error> {
        let overruled = wish.overruled > self.revision;
        if let Some(status) = wish.status.as_ref().filter(|status| overruled || **status != self.told) {
            let patch = Patch::Strategic(patch(&self.uid, &self.told, status));
            let answer = self.api.patch_status(&self.name, &PatchParams::default(), &patch).await;
            self.revision = answer.as_ref().map_or(self.revision, revision).max(wish.overruled);
            match judge(answer.map(drop))? {
                Outcome::Gone => return Ok(Outcome::Gone),
                Outcome::Done => self.told = status.clone(),
            }
        }
        if !wish.delete {
            return Ok(Outcome::Done);
        }
        let preconditions = Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None });
        let params = DeleteParams { grace_period_seconds: Some(0), preconditions, ..Default::default() };
        judge(self.api.delete(&self.name, &params).await.map(drop))
    }
}

/// Revisions of one resource can be compared.
fn revision(pod: &Pod) -> Option<u64> {
    pod.metadata.resource_version.as_ref()?.parse().ok()
}

/// Whether the API shows one of these conditions otherwise.
fn is_overruled(pod: &Pod, status: &PodStatus) -> bool {
    let shown = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ours = |kind: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    shown.into_iter().any(|shown| ours(&shown.type_).is_some_and(|ours| ours.status != shown.status))
}

/// Another pod of this name, or none: there is nobody left to tell. What the API refuses is not said again.
fn judge(outcome: Result<(), kube::Error>) -> Result<Outcome, kube::Error> {
    match outcome {
        Ok(()) => Ok(Outcome::Done),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Outcome::Gone),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
            warn!(error = status.message, "the API refuses a pod's status");
            Ok(Outcome::Done)
        }
        Err(error) => Err(error),
    }
}

/// A strategic merge patch keeps what others write; what is ours and has gone is removed by name.
fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Value {
    let as_map = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => unreachable!("a status is an object"),
    };
    let (old, mut new) = (as_map(old), as_map(new));
    for key in ["reason", "message", "podIP", "podIPs", "startTime", "initContainerStatuses"] {
        if old.contains_key(key) && !new.contains_key(key) {
            new.insert(key.into(), Value::Null);
        }
    }
    // Merged by address otherwise: the old one would stay.
    if let (Some(Value::Array(before)), Some(Value::Array(after))) = (old.get("podIPs"), new.get_mut("podIPs"))
        && before != after
    {
        after.push(json!({"$patch": "replace"}));
    }
    json!({"metadata": {"uid": uid}, "status": new})
}
