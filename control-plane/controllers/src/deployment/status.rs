//! What a Deployment reports: counts from its ReplicaSets and the two conditions people wait for.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Resource, ResourceExt};

use super::rollout::Limits;

/// A condition about to be set: type, status, reason, message.
pub struct Verdict {
    pub kind: &'static str,
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

pub fn observe(deployment: &Deployment, new: Option<&Arc<ReplicaSet>>, all: &[Arc<ReplicaSet>]) -> DeploymentStatus {
    let sum = |count: &dyn Fn(&ReplicaSet) -> i32| all.iter().map(|set| count(set)).sum::<i32>();
    let of = |pick: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| {
        move |set: &ReplicaSet| set.status.as_ref().map_or(0, pick)
    };
    let available = sum(&of(|status| status.available_replicas.unwrap_or(0)));
    let asked = sum(&|set| set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0));
    let some = |count: i32| (count > 0).then_some(count);
    let old = deployment.status.clone().unwrap_or_default();
    DeploymentStatus {
        observed_generation: deployment.meta().generation,
        replicas: some(sum(&of(|status| status.replicas))),
        updated_replicas: some(new.map_or(0, |set| of(|status| status.replicas)(set))),
        ready_replicas: some(sum(&of(|status| status.ready_replicas.unwrap_or(0)))),
        available_replicas: some(available),
        unavailable_replicas: some(asked - available),
        terminating_replicas: Some(sum(&of(|status| status.terminating_replicas.unwrap_or(0)))),
        collision_count: old.collision_count,
        conditions: old.conditions,
    }
}

pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Limits::of(deployment).replicas;
    let all = [status.updated_replicas, status.replicas, status.available_replicas];
    all.iter().all(|count| count.unwrap_or(0) == wanted) && status.observed_generation >= deployment.meta().generation
}

/// Sets both conditions on `status`; seconds until the deadline should be looked at again, if one is running.
pub fn judge(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    new: Option<&Arc<ReplicaSet>>,
    news: Option<Verdict>,
    now: Timestamp,
) -> Option<u64> {
    set_condition(status, availability(deployment, status), now);
    if let Some(verdict) = news {
        set_condition(status, verdict, now);
    }
    let spec = deployment.spec.as_ref()?;
    let deadline = spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    let settled =
        condition(status, "Progressing").is_some_and(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"));
    let name = new.map_or_else(|| deployment.name_any(), |set| set.name_any());
    if is_complete(deployment, status) {
        set_condition(
            status,
            progress("True", "NewReplicaSetAvailable", format!("ReplicaSet \"{name}\" has successfully progressed.")),
            now,
        );
        return None;
    }
    if made_progress(deployment.status.as_ref(), status) {
        let verdict = progress("True", "ReplicaSetUpdated", format!("ReplicaSet \"{name}\" is progressing."));
        set_condition(status, verdict, now);
        touch(status, now);
    }
    if settled || spec.paused == Some(true) {
        return None;
    }
    watch_deadline(status, i64::from(deadline), &name, now)
}

fn watch_deadline(status: &mut DeploymentStatus, deadline: i64, name: &str, now: Timestamp) -> Option<u64> {
    let progressing = condition(status, "Progressing").filter(|condition| condition.status != "False")?;
    let since = progressing.last_update_time.as_ref().map_or(now, |time| time.0);
    let left = deadline - (now.as_second() - since.as_second());
    if left > 0 {
        return Some(u64::try_from(left).unwrap_or(1));
    }
    set_condition(
        status,
        progress("False", "ProgressDeadlineExceeded", format!("ReplicaSet \"{name}\" has timed out progressing.")),
        now,
    );
    None
}

pub fn progress(status: &'static str, reason: &'static str, message: String) -> Verdict {
    Verdict { kind: "Progressing", status, reason, message }
}

fn availability(deployment: &Deployment, status: &DeploymentStatus) -> Verdict {
    let enough = status.available_replicas.unwrap_or(0) >= Limits::of(deployment).minimum_available();
    let (status, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    Verdict { kind: "Available", status, reason, message: message.into() }
}

fn made_progress(before: Option<&DeploymentStatus>, after: &DeploymentStatus) -> bool {
    let before = before.cloned().unwrap_or_default();
    let old = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    after.updated_replicas > before.updated_replicas
        || old(after) < old(&before)
        || after.ready_replicas > before.ready_replicas
        || after.available_replicas > before.available_replicas
}

pub fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn set_condition(status: &mut DeploymentStatus, verdict: Verdict, now: Timestamp) {
    let before = condition(status, verdict.kind).cloned();
    if before.as_ref().is_some_and(|c| c.status == verdict.status && c.reason.as_deref() == Some(verdict.reason)) {
        return;
    }
    let unchanged_since = before.filter(|c| c.status == verdict.status).and_then(|c| c.last_transition_time);
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != verdict.kind);
    conditions.push(DeploymentCondition {
        type_: verdict.kind.into(),
        status: verdict.status.into(),
        reason: Some(verdict.reason.into()),
        message: Some(verdict.message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(unchanged_since.unwrap_or(Time(now))),
    });
}

/// Progress restarts the deadline.
fn touch(status: &mut DeploymentStatus, now: Timestamp) {
    for condition in status.conditions.iter_mut().flatten().filter(|condition| condition.type_ == "Progressing") {
        condition.last_update_time = Some(Time(now));
    }
}
