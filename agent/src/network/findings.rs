//! What on this node stands in the network's way, and what to do about it.
//!
//! Looked at when the network starts, each minute, when devices change, and when somebody asks (`leme status` does).
//! `observe` looks, `judge` decides, this publishes: one line in the log per change, an event on the node, a metric,
//! and `/findings` on the agent's health port. It never touches what is not ours; what was ours and is gone is put back.

mod judge;
mod observe;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ObjectReference;
use leme_datapath::Inspection;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use super::{Config, Kernel, metrics::Metrics};
use crate::events::{Kind, Recorder};
use judge::{Observed, judge};

const INTERVAL: Duration = Duration::from_secs(60);
/// How long it is told that something of ours had to be put back.
const MEMORY: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; everything works.
    Info,
    /// Some traffic does not, or may not, get where it should.
    Warning,
    /// Pods or Services of this node do not work.
    Error,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// Stable, for alerts and scripts.
    pub id: String,
    pub severity: Severity,
    /// What is wrong, and where.
    pub what: String,
    /// What to do about it.
    pub advice: String,
}

/// For those who want to know.
#[derive(Clone)]
pub struct Findings {
    found: watch::Receiver<Vec<Finding>>,
    requests: mpsc::Sender<oneshot::Sender<()>>,
}

impl Findings {
    /// What a look of this moment finds; that of the last one if it takes too long.
    pub async fn ask(&self) -> Vec<Finding> {
        let (done, finished) = oneshot::channel();
        let asked = async { self.requests.send(done).await.is_ok() && finished.await.is_ok() };
        // What was found last is the answer when there is no newer one.
        let _ = tokio::time::timeout(PATIENCE, asked).await;
        self.found.borrow().clone()
    }
}

/// The one who looks.
pub struct Watcher {
    node: String,
    config: Config,
    metrics: Arc<Metrics>,
    events: Recorder,
    board: watch::Sender<Vec<Finding>>,
    requests: mpsc::Receiver<oneshot::Sender<()>>,
    /// What was put back, and when.
    restored: BTreeMap<String, Instant>,
    forwarding: BTreeMap<String, Instant>,
}

impl Watcher {
    pub fn new(config: &Config, metrics: Arc<Metrics>, events: Recorder) -> (Self, Findings) {
        let (board, found) = watch::channel(Vec::new());
        let (sender, requests) = mpsc::channel(16);
        let watcher = Self {
            node: config.node_name.clone(),
            config: config.clone(),
            metrics,
            events,
            board,
            requests,
            restored: BTreeMap::new(),
            forwarding: BTreeMap::new(),
        };
        (watcher, Findings { found, requests: sender })
    }

    /// For ever. `changed` wakes it when devices have changed.
    pub async fn watch(mut self, kernel: Kernel, mut changed: watch::Receiver<()>) {
        loop {
            self.look(&kernel).await;
            let asked = tokio::select! {
                asked = self.requests.recv() => asked,
                _ = changed.changed() => None,
                () = tokio::time::sleep(INTERVAL) => None,
            };
            if let Some(asked) = asked {
                self.look(&kernel).await;
                // Whoever has gone away meanwhile needs no answer.
                let _ = asked.send(());
            }
        }
    }

    async fn look(&mut self, kernel: &Kernel) {
        match self.observe(kernel).await {
            Ok(observed) => self.publish(judge(&observed)),
            Err(error) => warn!("cannot look for what disturbs the network: {error:#}"),
        }
    }

    async fn observe(&mut self, kernel: &Kernel) -> anyhow::Result<Observed> {
        let attachments = kernel.with(|datapath| datapath.attachments()).await?;
        let Inspection { detached, foreign, tunnels } = leme_datapath::inspect(attachments).await?;
        let (names, restored) = kernel
            .with(move |datapath| anyhow::Ok((datapath.reattach(&detached)?, datapath.restore_forwarding()?)))
            .await?;
        remember(&mut self.restored, names, "a program of ours was detached; it is attached again");
        remember(&mut self.forwarding, restored, "forwarding was off for a device of ours; it is on again");
        let (nics, fill) = kernel.with(|datapath| (datapath.config().nics.clone(), datapath.fill())).await;
        let places = observe::Places::new(&self.config);
        let node = tokio::task::spawn_blocking(move || observe::node(&places, &nics)).await??;
        Ok(Observed {
            foreign,
            tunnels,
            restored: self.restored.keys().cloned().collect(),
            forwarding: self.forwarding.keys().cloned().collect(),
            fill: fill?,
            ..node
        })
    }

    fn publish(&self, mut findings: Vec<Finding>) {
        findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
        let before = self.board.borrow().clone();
        for gone in before.iter().filter(|finding| !findings.contains(finding)) {
            info!(id = gone.id, what = gone.what, "no longer so");
        }
        for new in findings.iter().filter(|finding| !before.contains(finding)) {
            self.tell(new);
        }
        self.metrics.found(findings.iter().map(|finding| (finding.id.as_str(), finding.severity.name())));
        self.board.send_replace(findings);
    }

    fn tell(&self, finding: &Finding) {
        let Finding { id, what, advice, .. } = finding;
        match finding.severity {
            Severity::Info => info!(id, what, advice, "about this node"),
            Severity::Warning | Severity::Error => {
                warn!(id, what, advice, "something disturbs the network");
                let about = reference(&self.node);
                self.events.event(about, Kind::Warning, &reason(id), format!("{what}: {advice}"));
            }
        }
    }
}

/// Notes what was put back just now, says it once, and forgets what was long ago.
fn remember(memory: &mut BTreeMap<String, Instant>, restored: Vec<String>, message: &'static str) {
    for what in restored {
        warn!(what, "{message}");
        memory.insert(what, Instant::now());
    }
    memory.retain(|_, at| at.elapsed() < MEMORY);
}

/// As the kubelet refers to its node in events.
fn reference(node: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.into()),
        uid: Some(node.into()),
        ..ObjectReference::default()
    }
}

/// `foreign-xdp` → `ForeignXdp`, as reasons of events are written.
fn reason(id: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    id.split('-').filter(|word| !word.is_empty()).map(capital).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_events_are_words_without_spaces() {
        assert_eq!(reason("kube-proxy-rules"), "KubeProxyRules");
    }

    #[test]
    fn what_was_put_back_is_remembered_for_a_while() {
        let mut memory = BTreeMap::new();
        remember(&mut memory, vec!["from_pod on leme1".into()], "again");
        remember(&mut memory, Vec::new(), "again");
        assert!(memory.contains_key("from_pod on leme1"));
    }
}
