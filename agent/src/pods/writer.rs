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
        };
        tokio::spawn(task.run(wishes, settle));
        Self { wish, settled }
    }

    /// Returns at once.
    pub fn publish(&self, status: PodStatus) {
        let mut wish = self.wish.borrow().clone();
        if wish.status.as_ref() != Some(&status) {
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
        if let Some(status) = wish.status.as_ref().filter(|status| **status != self.told) {
            let patch = Patch::Strategic(patch(&self.uid, &self.told, status));
            match judge(self.api.patch_status(&self.name, &PatchParams::default(), &patch).await.map(drop))? {
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
