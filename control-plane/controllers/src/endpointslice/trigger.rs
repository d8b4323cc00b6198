//! When that happened which made a slice change: proxies measure from there how long it took to reach the network.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::Pod,
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::ResourceExt;

use super::Change;
use crate::pods;

const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Notes the earliest of the pods' changes; none, where a slice only lost endpoints: their pods are gone.
pub(super) fn note(change: &mut Change, current: &[Arc<EndpointSlice>], pods: &[Arc<Pod>]) {
    let (Change::Create(slice) | Change::Update(slice)) = change else { return };
    let before = current.iter().find(|before| before.metadata.name == slice.metadata.name);
    let known = before.and_then(|before| before.endpoints.as_deref()).unwrap_or_default();
    let new = slice.endpoints.iter().flatten().filter(|endpoint| !known.contains(endpoint));
    let changed = new.filter_map(|endpoint| changed_at(endpoint, pods)).min();
    let annotations = slice.metadata.annotations.get_or_insert_with(BTreeMap::new);
    match changed {
        Some(at) => drop(annotations.insert(ANNOTATION.into(), at.to_string())),
        None => drop(annotations.remove(ANNOTATION)),
    }
}

/// Of a pod that goes, when it was told to; of others, when they last became ready or ceased to be.
fn changed_at(endpoint: &Endpoint, pods: &[Arc<Pod>]) -> Option<Timestamp> {
    let uid = endpoint.target_ref.as_ref()?.uid.as_ref()?;
    let pod = pods.iter().find(|pod| pod.metadata.uid.as_ref() == Some(uid))?;
    let told = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    let ready = pods::condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref()).map(|time| time.0);
    told.or(ready).or_else(|| pod.creation_timestamp().map(|time| time.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::tests::pod;
    use serde_json::{Value, json};

    fn slice(uids: &[&str]) -> EndpointSlice {
        let endpoints: Vec<Value> =
            uids.iter().map(|uid| json!({"addresses": ["10.0.0.1"], "targetRef": {"uid": uid}})).collect();
        let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": endpoints});
        serde_json::from_value(slice).unwrap()
    }

    fn ready_at(name: &str, time: &str) -> Arc<Pod> {
        let condition = json!({"type": "Ready", "status": "True", "lastTransitionTime": time});
        pod(name, "10.0.0.1", json!({"status": {"conditions": [condition]}}))
    }

    fn noted(mut change: Change, current: &[Arc<EndpointSlice>], pods: &[Arc<Pod>]) -> Option<String> {
        note(&mut change, current, pods);
        let (Change::Create(slice) | Change::Update(slice)) = change else { panic!("no slice") };
        slice.annotations().get(ANNOTATION).cloned()
    }

    #[test]
    fn the_earliest_change_among_new_endpoints_counts() {
        let pods = [
            ready_at("a", "2026-01-01T00:00:05Z"),
            ready_at("b", "2026-01-01T00:00:09Z"),
            ready_at("c", "2026-01-01T00:00:07Z"),
        ];
        let current = [Arc::new(slice(&["a"]))];
        let update = || Change::Update(slice(&["a", "b", "c"]));
        assert_eq!(noted(update(), &current, &pods).as_deref(), Some("2026-01-01T00:00:07Z"));
        assert_eq!(noted(Change::Create(slice(&["a"])), &[], &pods).as_deref(), Some("2026-01-01T00:00:05Z"));
    }

    #[test]
    fn a_slice_that_only_loses_endpoints_has_no_time() {
        let pods = [ready_at("a", "2026-01-01T00:00:05Z")];
        let mut before = slice(&["a", "b"]);
        before.metadata.annotations = Some(BTreeMap::from([(ANNOTATION.into(), "2026-01-01T00:00:01Z".into())]));
        let mut after = before.clone();
        after.endpoints.as_mut().unwrap().pop();
        assert_eq!(noted(Change::Update(after), &[Arc::new(before)], &pods), None);
    }
}
