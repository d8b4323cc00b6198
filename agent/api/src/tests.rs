//! The whole way on sockets: a client, this server, and a runtime's streaming server that speaks SPDY; then TLS and
//! permissions.

mod access;
mod runtime;
mod streams;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{from_value, json};

use crate::node::{Node, NodeError, Stats, Streams};

/// One running pod `default/web` with the container `app`, whose streams are the fake runtime's.
struct OnePod {
    runtime: String,
    log: PathBuf,
}

#[async_trait]
impl Node for OnePod {
    fn name(&self) -> &str {
        "worker"
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        let pod = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
            "spec": {"containers": [{"name": "app"}]},
            "status": {"phase": "Running", "containerStatuses": [{
                "name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": "containerd://c1", "state": {"running": {}},
            }]},
        });
        vec![Arc::new(from_value(pod).unwrap())]
    }

    async fn log_path(&self, _container_id: &str) -> Result<PathBuf, NodeError> {
        Ok(self.log.clone())
    }

    async fn exec(&self, container_id: &str, command: Vec<String>, _streams: Streams) -> Result<String, NodeError> {
        assert_eq!(container_id, "c1");
        if command == ["missing"] {
            return Err(NodeError::new("no such command"));
        }
        Ok(format!("{}/{}", self.runtime, command.join("-")))
    }

    async fn attach(&self, container_id: &str, streams: Streams) -> Result<String, NodeError> {
        self.exec(container_id, vec!["cat".into()], streams).await
    }

    async fn network_namespace(&self, _pod: &Pod) -> Result<Option<PathBuf>, NodeError> {
        Ok(None)
    }

    async fn stats(&self) -> Result<Stats, NodeError> {
        Ok(Stats::default())
    }
}
