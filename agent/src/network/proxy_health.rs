//! Whether this node may be sent Service traffic, as load balancers and supervisors ask kube-proxy on port 10256.
//!
//! The reconciler reports changes it has seen and changes it has applied; `health` serves the answers, and
//! `service_health` puts them into its own. Words and codes are kube-proxy's (pkg/proxy/healthcheck).

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

/// A change that has waited this long is late: twice kube-proxy's sync period.
const LATE: Duration = Duration::from_secs(60);
/// The cluster autoscaler marks the nodes it is about to remove.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

#[derive(Debug, Default)]
pub struct ProxyHealth(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Since when something that was seen is not yet in the kernel.
    pending: Option<Instant>,
    updated: Option<Timestamp>,
    /// The node is leaving the cluster.
    leaving: bool,
}

impl ProxyHealth {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn queued(&self) {
        self.lock().pending.get_or_insert_with(Instant::now);
    }

    /// Everything that was seen is in the kernel.
    pub fn updated(&self) {
        let mut state = self.lock();
        state.pending = None;
        state.updated = Some(Timestamp::now());
    }

    /// None: the node has been deleted.
    pub fn observe(&self, node: Option<&Node>) {
        let tainted = |node: &Node| {
            let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
            taints.into_iter().any(|taint| taint.key == TO_BE_DELETED)
        };
        self.lock().leaving = node.is_none_or(|node| node.metadata.deletion_timestamp.is_some() || tainted(node));
    }

    /// The proxy alone, whatever becomes of the node.
    pub fn is_healthy(&self) -> bool {
        self.lock().pending.is_none_or(|since| since.elapsed() < LATE)
    }

    /// For load balancers. `ready`: the tables have been right once.
    pub fn healthz(&self, ready: bool) -> (StatusCode, String) {
        let (healthy, eligible) = (self.is_healthy(), !self.lock().leaving);
        let (status, updated, now) = self.answer(ready && healthy && eligible);
        let text = format!(r#"{{"lastUpdated": "{updated}","currentTime": "{now}", "nodeEligible": {eligible}}}"#);
        (status, text)
    }

    /// For whoever restarts what hangs.
    pub fn livez(&self) -> (StatusCode, String) {
        let (status, updated, now) = self.answer(self.is_healthy());
        (status, format!(r#"{{"lastUpdated": "{updated}","currentTime": "{now}"}}"#))
    }

    /// While all is well the last update is always recent, however long ago there was anything to do.
    fn answer(&self, healthy: bool) -> (StatusCode, String, String) {
        let now = text(Some(Timestamp::now()));
        match healthy {
            true => (StatusCode::OK, now.clone(), now),
            false => (StatusCode::SERVICE_UNAVAILABLE, text(self.lock().updated), now),
        }
    }
}

/// As Go prints times; never is its year 1.
fn text(time: Option<Timestamp>) -> String {
    match time {
        Some(time) => time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string(),
        None => "0001-01-01 00:00:00 +0000 UTC".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn body((status, text): (StatusCode, String)) -> (u16, Value) {
        (status.as_u16(), serde_json::from_str(&text).unwrap())
    }

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_too_long_makes_the_proxy_unhealthy_until_it_is_applied() {
        let health = ProxyHealth::default();
        assert_eq!(body(health.livez()).0, 200);
        health.queued();
        tokio::time::advance(LATE / 2).await;
        health.queued();
        assert_eq!(body(health.healthz(true)).0, 200);
        tokio::time::advance(LATE / 2).await;
        let (status, text) = body(health.healthz(true));
        assert_eq!((status, &text["nodeEligible"]), (503, &json!(true)));
        assert_eq!(text["lastUpdated"], "0001-01-01 00:00:00 +0000 UTC");
        assert_eq!(body(health.livez()).0, 503);
        health.updated();
        let (status, text) = body(health.healthz(true));
        assert_eq!((status, &text["lastUpdated"]), (200, &text["currentTime"]));
    }

    #[test]
    fn a_node_that_leaves_takes_no_traffic_but_lives() {
        let health = ProxyHealth::default();
        let leaving = [
            Some(node(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}))),
            Some(node(json!({"spec": {"taints": [{"key": TO_BE_DELETED, "effect": "NoSchedule"}]}}))),
            None,
        ];
        for object in leaving {
            health.observe(object.as_ref());
            let (status, text) = body(health.healthz(true));
            assert_eq!((status, &text["nodeEligible"]), (503, &json!(false)));
            assert_eq!(body(health.livez()).0, 200);
        }
        let other_taint = json!({"spec": {"taints": [{"key": "dedicated", "effect": "NoSchedule"}]}});
        health.observe(Some(&node(other_taint)));
        assert_eq!(body(health.healthz(true)).0, 200);
    }

    #[test]
    fn a_network_that_never_was_ready_takes_no_traffic() {
        assert_eq!(body(ProxyHealth::default().healthz(false)).0, 503);
    }
}
