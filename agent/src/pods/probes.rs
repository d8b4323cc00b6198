//! Probes of one running container: each asks at its own pace and tells the actor when its verdict changes.
//!
//! A probe never acts: whether a failure restarts the container or takes the pod out of Services is `plan`'s and
//! `status`'s matter. The tasks end when the actor drops them with the container.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Context, http};
use crate::events::Kind as EventKind;

const AGENT: &str = "kube-probe/1.36";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

/// A probe's verdict, sent when it changes.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub container_id: String,
    pub kind: Kind,
    pub success: bool,
}

pub struct Target {
    pub context: Arc<Context>,
    pub pod: Arc<core::Pod>,
    pub container: core::Container,
    pub container_id: String,
    pub ip: IpAddr,
}

/// Starts the container's probes; `started` opens the gate for those that wait for the startup probe.
pub fn start(target: Target, verdicts: mpsc::UnboundedSender<Verdict>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let target = Arc::new(target);
    let container = &target.container;
    let (gate, opened) = watch::channel(container.startup_probe.is_none());
    let gate = Arc::new(gate);
    let probes = [
        (Kind::Startup, &container.startup_probe),
        (Kind::Liveness, &container.liveness_probe),
        (Kind::Readiness, &container.readiness_probe),
    ];
    for (kind, probe) in probes {
        if let Some(probe) = probe.clone() {
            let worker = Worker { target: target.clone(), kind, probe, verdicts: verdicts.clone() };
            tasks.spawn(worker.run(gate.clone(), opened.clone()));
        }
    }
    tasks
}

struct Worker {
    target: Arc<Target>,
    kind: Kind,
    probe: core::Probe,
    verdicts: mpsc::UnboundedSender<Verdict>,
}

impl Worker {
    async fn run(self, gate: Arc<watch::Sender<bool>>, mut opened: watch::Receiver<bool>) {
        if self.kind != Kind::Startup && opened.wait_for(|open| *open).await.is_err() {
            return;
        }
        let positive = |value: Option<i32>, default: u64| value.filter(|&v| v > 0).map_or(default, |v| v as u64);
        tokio::time::sleep(Duration::from_secs(positive(self.probe.initial_delay_seconds, 0))).await;
        let failures = positive(self.probe.failure_threshold, 3);
        let successes = positive(self.probe.success_threshold, 1);
        let mut interval = tokio::time::interval(Duration::from_secs(positive(self.probe.period_seconds, 10)));
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut streak = Streak::default();
        loop {
            interval.tick().await;
            let outcome = self.ask(Duration::from_secs(positive(self.probe.timeout_seconds, 1))).await;
            if let Err(output) = &outcome {
                self.tell(output);
            }
            let Some(success) = streak.judge(outcome.is_ok(), failures, successes) else { continue };
            let verdict = Verdict { container_id: self.target.container_id.clone(), kind: self.kind, success };
            if self.verdicts.send(verdict).is_err() {
                return;
            }
            if self.kind == Kind::Startup {
                gate.send_replace(success);
                return;
            }
        }
    }

    fn tell(&self, output: &str) {
        let Target { context, pod, container, .. } = &*self.target;
        let message = format!("{:?} probe failed: {output}", self.kind);
        context.events.container(pod, &container.name, EventKind::Warning, "Unhealthy", message);
    }

    /// One question, answered in time or failed.
    async fn ask(&self, limit: Duration) -> Result<(), String> {
        let Target { container, ip, .. } = &*self.target;
        if let Some(exec) = &self.probe.exec {
            return self.exec(exec, limit).await;
        }
        if let Some(action) = &self.probe.http_get {
            let address = address(action.host.as_deref(), *ip, &action.port, container)?;
            let url = http::url(action, address);
            return match timeout(limit, http::get(action, address, AGENT)).await {
                Err(_) => Err(format!(
                    "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                )),
                Ok(Err(error)) => Err(format!("Get {url:?}: {error}")),
                Ok(Ok((status, _))) if (200..400).contains(&status) => Ok(()),
                Ok(Ok((status, _))) => Err(format!("HTTP probe failed with statuscode: {status}")),
            };
        }
        if let Some(action) = &self.probe.tcp_socket {
            let address = address(action.host.as_deref(), *ip, &action.port, container)?;
            return match timeout(limit, TcpStream::connect(address)).await {
                Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
                Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {}", http::plain(&error))),
                Ok(Ok(_)) => Ok(()),
            };
        }
        if let Some(action) = &self.probe.grpc {
            return self.grpc(action, limit).await;
        }
        Ok(())
    }

    async fn exec(&self, action: &core::ExecAction, limit: Duration) -> Result<(), String> {
        let command = action.command.clone().unwrap_or_default();
        let reply = self.target.context.cri.exec_sync(&self.target.container_id, command, limit).await;
        match reply {
            Err(error) if error.source.code() == tonic::Code::DeadlineExceeded => Err("command timed out".into()),
            Err(error) => Err(error.to_string()),
            Ok(reply) if reply.exit_code == 0 => Ok(()),
            Ok(reply) => Err(String::from_utf8_lossy(&[reply.stdout, reply.stderr].concat()).into_owned()),
        }
    }

    /// `grpc.health.v1.Health/Check`: small enough to speak without generated code.
    async fn grpc(&self, action: &core::GRPCAction, limit: Duration) -> Result<(), String> {
        let address = SocketAddr::new(self.target.ip, action.port as u16);
        let service = action.service.clone().unwrap_or_default();
        match timeout(limit, super::grpc_health::check(address, service)).await {
            Err(_) => Err(format!("timeout: failed to connect service {address:?} within {}s", limit.as_secs())),
            Ok(outcome) => outcome,
        }
    }
}

/// A port by number, or by the name the container gives it.
pub fn address(
    host: Option<&str>,
    ip: IpAddr,
    port: &IntOrString,
    container: &core::Container,
) -> Result<SocketAddr, String> {
    let ip = match host.filter(|host| !host.is_empty()) {
        Some(host) => host.parse().map_err(|_| format!("host {host:?} is no address"))?,
        None => ip,
    };
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    let number = number.and_then(|number| u16::try_from(number).ok()).filter(|&number| number > 0);
    number.map(|number| SocketAddr::new(ip, number)).ok_or_else(|| format!("invalid port number: {port:?}"))
}

/// Counts answers of one kind in a row.
#[derive(Default)]
struct Streak {
    last: Option<bool>,
    length: u64,
    told: Option<bool>,
}

impl Streak {
    /// A verdict, when a threshold is reached that changes the last one.
    fn judge(&mut self, success: bool, failures: u64, successes: u64) -> Option<bool> {
        self.length = if self.last == Some(success) { self.length + 1 } else { 1 };
        self.last = Some(success);
        let threshold = if success { successes } else { failures };
        if self.length < threshold || self.told == Some(success) {
            return None;
        }
        self.told = Some(success);
        Some(success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_its_threshold_and_is_told_once() {
        let mut streak = Streak::default();
        let answers = [false, false, false, false, true, false, false, false, true, true, true];
        let told: Vec<Option<bool>> = answers.iter().map(|&answer| streak.judge(answer, 3, 2)).collect();
        let none = None;
        let expected = [none, none, Some(false), none, none, none, none, none, none, Some(true), none];
        assert_eq!(told, expected);
    }

    #[test]
    fn ports_are_found_by_number_and_by_name() {
        let container: core::Container =
            serde_json::from_value(serde_json::json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}]}))
                .unwrap();
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let find = |port| address(None, ip, &port, &container).map(|address| address.to_string());
        assert_eq!(find(IntOrString::String("web".into())).unwrap(), "10.0.0.1:80");
        assert_eq!(find(IntOrString::Int(81)).unwrap(), "10.0.0.1:81");
        assert!(find(IntOrString::String("nothing".into())).is_err());
    }
}
