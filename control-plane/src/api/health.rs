//! `/healthz`, `/livez`, `/readyz` and `/version`: what anybody may ask.

use std::time::Duration;

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::json;
use tokio::time::timeout;

use super::{App, media::Accept, query::Query, respond};

/// The Kubernetes version that this server is compatible with.
pub const VERSION: &str = "v1.36.2";

/// Paths that need no credentials.
pub fn is_public(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    matches!(first, "healthz" | "livez" | "readyz") || path == "/version" || path == "/version/"
}

/// How long the store may take to show that it is there: upstream's.
const STORE: Duration = Duration::from_secs(2);

pub async fn answer(app: &App, path: &str, query: &Query) -> Option<Response<Body>> {
    match path.trim_end_matches('/') {
        "/version" => Some(respond::value(Accept::JSON, StatusCode::OK, &version())),
        "/metrics" => {
            let text = app.metrics.render(app);
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            Some(respond::with_type(Body::from(text), StatusCode::OK, kind))
        }
        path => health(app, path, query).await,
    }
}

/// Upstream's names, and what each of them asks here.
const CHECKS: [(&str, Check); 5] = [
    ("ping", Check::Served),
    ("log", Check::Served),
    ("etcd", Check::Store),
    ("informer-sync", Check::Ready),
    ("poststarthook/rbac/bootstrap-roles", Check::Ready),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    /// Whoever reads this has been served.
    Served,
    /// The store answers, whichever it is.
    Store,
    /// Asked by `/readyz` alone.
    Ready,
}

impl Check {
    async fn passes(self, app: &App) -> bool {
        match self {
            Self::Served => true,
            Self::Store => matches!(timeout(STORE, app.registry.store.revision()).await, Ok(Ok(_))),
            Self::Ready => app.is_ready(),
        }
    }
}

async fn health(app: &App, path: &str, query: &Query) -> Option<Response<Body>> {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let group = parts.next().filter(|g| matches!(*g, "healthz" | "livez" | "readyz"))?;
    let mut checks = CHECKS.to_vec();
    checks.retain(|(_, check)| group == "readyz" || *check != Check::Ready);
    let text = |code, text: String| Some(respond::with_type(Body::from(text), code, "text/plain; charset=utf-8"));
    if let Some(only) = parts.next() {
        checks.retain(|(name, _)| *name == only);
        if checks.is_empty() {
            return text(StatusCode::NOT_FOUND, "404 page not found\n".into());
        }
    }
    checks.retain(|(name, _)| !query.all("exclude").iter().any(|excluded| excluded == name));
    let mut outcomes = Vec::new();
    for (name, check) in checks {
        outcomes.push((name, check.passes(app).await));
    }
    let good = outcomes.iter().all(|(_, good)| *good);
    if good && !query.has("verbose") {
        return text(StatusCode::OK, "ok".into());
    }
    let line = |(name, good): &(&str, bool)| match good {
        true => format!("[+]{name} ok\n"),
        false => format!("[-]{name} failed: reason withheld\n"),
    };
    let mut body: String = outcomes.iter().map(line).collect();
    body.push_str(&format!("{group} check {}\n", if good { "passed" } else { "failed" }));
    text(if good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }, body)
}

fn version() -> serde_json::Value {
    let mut numbers = VERSION.trim_start_matches('v').split('.');
    json!({
        "major": numbers.next(), "minor": numbers.next(), "gitVersion": VERSION,
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": platform(),
    })
}

fn platform() -> String {
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}/{machine}", std::env::consts::OS)
}
