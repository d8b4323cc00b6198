//! The handlers' behaviour, through the router, with real authentication, authorization, admission and store.

mod access;
mod apply;
mod audit;
mod certificates;
mod deletion;
mod exchanges;
mod health;
mod joining;
mod node_restriction;
mod objects;
mod watch;

use std::sync::Arc;

use axum::body::Body;
use futures::StreamExt;
use http::{Method, Request, header};
use http_body_util::BodyExt;
use leme_store::Store;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::App;
use crate::{
    Config,
    auth::{MASTERS, User, authenticate::InProcess},
    bootstrap,
    pki::{Authority, Pki, apiserver_names},
};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
const MERGE: &str = "application/merge-patch+json";

/// A server without a socket.
pub struct Cluster {
    pub app: Arc<App>,
    _directory: TempDir,
}

/// One answer, read whole.
pub struct Answer {
    pub status: u16,
    pub warning: Option<String>,
    pub body: Value,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// With another configuration than the usual one.
    async fn with(adjust: impl FnOnce(&mut Config)) -> Self {
        Self::with_authority(adjust).await.0
    }

    /// With the controllers beside it, which end with the test's runtime.
    async fn start_with_controllers() -> Self {
        let (cluster, authority) = Self::with_authority(|_| ()).await;
        let (app, config) = (cluster.app.clone(), cluster.app.config.clone());
        tokio::spawn(async move { crate::run_controllers(&app, &config, authority, CancellationToken::new()).await });
        cluster
    }

    async fn with_authority(adjust: impl FnOnce(&mut Config)) -> (Self, Authority) {
        Self::with_store(adjust, |store| store).await
    }

    /// Over a store that another one stands before.
    async fn with_store(
        adjust: impl FnOnce(&mut Config),
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
    ) -> (Self, Authority) {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::new([192, 0, 2, 10].into(), directory.path());
        adjust(&mut config);
        let names = apiserver_names("cluster.local", config.kubernetes_address(), config.advertise, &[]);
        let pki = Pki::open(&directory.path().join("pki"), &names).unwrap();
        let store = Arc::new(leme_store::embedded::Embedded::open(directory.path().join("state.db")).unwrap());
        let app = App::start(config, &pki, wrap(store)).await.unwrap();
        bootstrap::run(&app, 6443).await.unwrap();
        let cluster = Self { app, _directory: directory };
        let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}});
        assert_eq!(cluster.post("/api/v1/namespaces/default/serviceaccounts", account).await.status, 201);
        (cluster, pki.cluster)
    }

    /// A request as somebody; the admin's groups come with the name.
    pub async fn request(
        &self,
        user: &str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> http::Response<Body> {
        let groups = match user {
            "admin" => vec![MASTERS.to_owned()],
            name if name.starts_with("system:node:") => vec!["system:nodes".to_owned()],
            _ => Vec::new(),
        };
        let mut request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        for (name, value) in headers {
            request.headers_mut().append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        request.extensions_mut().insert(InProcess(Arc::new(User::authenticated(user, groups))));
        self.app.router().oneshot(request).await.unwrap()
    }

    pub async fn send(&self, user: &str, method: Method, path: &str, media: &str, body: Value) -> Answer {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        Answer::read(self.request(user, method, path, &[("content-type", media)], body).await).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("admin", Method::POST, path, "application/json", body).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.send("admin", Method::PUT, path, "application/json", body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("admin", Method::GET, path, "application/json", Value::Null).await
    }

    async fn delete(&self, path: &str, options: Value) -> Answer {
        self.send("admin", Method::DELETE, path, "application/json", options).await
    }

    async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send("admin", Method::PATCH, path, MERGE, body).await
    }

    async fn configmap(&self, name: &str) -> Value {
        let answer = self.post(CONFIGMAPS, configmap(name)).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body
    }

    /// An open watch; [`Events::next`] yields its events.
    async fn watch(&self, path: &str) -> Events {
        let response = self.request("admin", Method::GET, path, &[], Body::empty()).await;
        assert_eq!(response.status(), 200);
        Events { body: response.into_body(), rest: Vec::new() }
    }
}

impl Answer {
    pub async fn read(response: http::Response<Body>) -> Self {
        let status = response.status().as_u16();
        let warning = response.headers().get(header::WARNING).map(|v| v.to_str().unwrap().to_owned());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        Self { status, warning, body: serde_json::from_slice(&bytes).unwrap_or_else(|_| text()) }
    }

    fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    fn names(&self) -> Vec<&str> {
        self.body["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].as_str().unwrap()).collect()
    }
}

struct Events {
    body: Body,
    rest: Vec<u8>,
}

impl Events {
    /// The next event: its type and object; `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let mut event: Value = serde_json::from_slice(&line).unwrap();
                return Some((event["type"].as_str().unwrap().to_owned(), event["object"].take()));
            }
            let frame = (&mut self.body).into_data_stream().next().await?.unwrap();
            self.rest.extend_from_slice(&frame);
        }
    }

    async fn expect(&mut self, kind: &str) -> Value {
        let (found, object) = self.next().await.unwrap();
        assert_eq!(found, kind, "{object}");
        object
    }
}

fn configmap(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"a": "b"}})
}

fn pod(name: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}
