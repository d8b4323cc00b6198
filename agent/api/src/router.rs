//! The paths, as the kubelet's.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{any, get};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::node::Node;
use crate::{logs, measurements, port_forward, remote_command};

/// Without authentication: [`crate::server`] puts it before all of this.
pub(crate) fn routes(node: Arc<dyn Node>) -> Router {
    let exec = any(remote_command::exec);
    let attach = any(remote_command::attach);
    let forward = any(port_forward::port_forward);
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/pods", get(pods))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::container_logs))
        .route("/exec/{namespace}/{pod}/{container}", exec.clone())
        .route("/exec/{namespace}/{pod}/{uid}/{container}", exec)
        .route("/attach/{namespace}/{pod}/{container}", attach.clone())
        .route("/attach/{namespace}/{pod}/{uid}/{container}", attach)
        .route("/portForward/{namespace}/{pod}", forward.clone())
        .route("/portForward/{namespace}/{pod}/{uid}", forward)
        .route("/stats/summary", get(measurements::summary))
        .route("/metrics", get(measurements::metrics))
        .route("/metrics/resource", get(measurements::resource_metrics))
        .with_state(node)
}

async fn pods(State(node): State<Arc<dyn Node>>) -> Json<Value> {
    let pods = node.pods();
    let items: Vec<_> = pods.iter().map(|pod| &**pod).collect();
    Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}
