//! Which of several servers runs the controllers, and which the scheduler: whoever holds the Lease, by the rules and
//! with the figures of upstream's client-go.
//!
//! A holder that cannot renew gives up before anybody else may take over: its [`Term`] ends, no request of it begins any
//! more, and those under way are cut off. One that ends gives the Lease back, so that the next need not wait.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    queue::is_conflict,
    recorder::{Kind, Recorder},
};

const NAMESPACE: &str = "kube-system";
/// Giving the Lease back may take this long: the store may be what is gone.
const RELEASE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Others take over when the Lease has not changed for this long.
    pub lease: Duration,
    /// The holder gives up when it could not renew for this long.
    pub renew: Duration,
    pub retry: Duration,
}

impl Default for Times {
    /// Upstream's.
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

/// What is elected, and who stands for it.
#[derive(Clone, Debug)]
pub struct Election {
    /// The Lease's name, in kube-system; the component's name in events.
    pub name: &'static str,
    /// Of this candidate in this run: `<hostname>_<uuid>`.
    pub identity: String,
    pub times: Times,
}

/// The time in which a candidate leads.
#[derive(Clone)]
pub struct Term {
    over: CancellationToken,
    requests: TaskTracker,
}

impl Term {
    fn new(parent: &CancellationToken) -> Self {
        Self { over: parent.child_token(), requests: TaskTracker::new() }
    }

    /// Cancelled when it ends.
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// `client`, for as long as this term lasts: whoever still has it then gets errors, and what is under way is cut off.
    pub fn client(&self, client: Client) -> Client {
        let term = self.clone();
        let service = move |request| {
            let (client, term) = (client.clone(), term.clone());
            async move {
                let _underway = term.requests.token();
                let answer = term.over.run_until_cancelled(client.send(request)).await;
                answer.unwrap_or_else(|| Err(kube::Error::Service("another server leads now".into())))
            }
        };
        Client::new(tower::service_fn(service), "default")
    }

    /// Nothing of this term goes on after this.
    async fn end(&self) {
        self.over.cancel();
        self.requests.close();
        self.requests.wait().await;
    }
}

/// Until `shutdown`: waits for the Lease, runs `work` for as long as it is held, and stands again when it is lost.
pub async fn lead<F>(client: Client, election: Election, shutdown: CancellationToken, work: impl Fn(Term) -> F)
where
    F: Future<Output = ()>,
{
    let mut candidate = Candidate::new(client, election);
    while shutdown.run_until_cancelled(candidate.acquire()).await.is_some() {
        let term = Term::new(&shutdown);
        candidate.announce("became leader");
        let over = term.over();
        tokio::join!(
            async {
                work(term.clone()).await;
                over.cancel();
            },
            async {
                over.run_until_cancelled(candidate.keep()).await;
                over.cancel();
            }
        );
        term.end().await;
        candidate.announce("stopped leading");
    }
    candidate.release().await;
}

struct Candidate {
    leases: Api<Lease>,
    recorder: Recorder,
    election: Election,
    /// The Lease as it was last seen to change, and when: other clocks are not asked.
    observed: Option<(Lease, Instant)>,
}

impl Candidate {
    fn new(client: Client, election: Election) -> Self {
        let recorder = Recorder::new(client.clone(), election.name);
        Self { leases: Api::namespaced(client, NAMESPACE), recorder, election, observed: None }
    }

    /// Returns when this candidate holds the Lease.
    async fn acquire(&mut self) {
        while !self.attempt().await {
            // Candidates that began together need not meet each time.
            sleep(self.election.times.retry.mul_f64(1.0 + 0.2 * fastrand::f64())).await;
        }
        tracing::info!(lease = self.election.name, identity = self.election.identity, "this server leads");
    }

    /// Returns when the Lease is lost, or could not be renewed in time.
    async fn keep(&mut self) {
        let Times { renew, retry, .. } = self.election.times;
        let mut renewed = Instant::now();
        loop {
            sleep(retry).await;
            let asked = Instant::now();
            match timeout_at(renewed + renew, self.attempt()).await {
                Ok(true) => renewed = asked,
                Ok(false) if self.is_others() || renewed.elapsed() >= renew => break,
                Ok(false) => {}
                Err(_) => break,
            }
        }
        tracing::warn!(lease = self.election.name, "this server does not lead any more");
    }

    /// Takes or renews the Lease if it may be. Whatever goes wrong is a no.
    async fn attempt(&mut self) -> bool {
        let limit = self.election.times.renew;
        match timeout(limit, self.take()).await {
            Err(_) => {
                tracing::debug!(lease = self.election.name, "no lease: the API does not answer");
                false
            }
            Ok(Ok(taken)) => taken,
            Ok(Err(error)) => {
                if !is_conflict(&error) {
                    tracing::debug!(lease = self.election.name, "no lease: {error}");
                }
                false
            }
        }
    }

    async fn take(&mut self) -> kube::Result<bool> {
        let asked = Instant::now();
        let Some(current) = self.leases.get_opt(self.election.name).await? else {
            let lease = self.claim(None);
            let created = self.leases.create(&PostParams::default(), &lease).await?;
            self.observed = Some((created, asked));
            return Ok(true);
        };
        if self.observed.as_ref().is_none_or(|(seen, _)| seen.spec != current.spec) {
            self.observed = Some((current.clone(), asked));
        }
        if self.is_others() {
            return Ok(false);
        }
        let replaced =
            self.leases.replace(self.election.name, &PostParams::default(), &self.claim(Some(&current))).await?;
        self.observed = Some((replaced, asked));
        Ok(true)
    }

    /// Somebody else holds it, and it has changed within its lifetime.
    fn is_others(&self) -> bool {
        let Some((lease, since)) = &self.observed else { return false };
        let Some(spec) = &lease.spec else { return false };
        let held = spec.holder_identity.as_deref().is_some_and(|h| !h.is_empty() && h != self.election.identity);
        let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
        held && since.elapsed() < Duration::from_secs(seconds)
    }

    /// The Lease as this candidate's, from now on.
    fn claim(&self, current: Option<&Lease>) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let before = current.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let same = before.holder_identity.as_deref() == Some(&self.election.identity);
        let transitions = before.lease_transitions.unwrap_or_default();
        let name = ObjectMeta { name: Some(self.election.name.into()), ..ObjectMeta::default() };
        let mut lease = current.cloned().unwrap_or(Lease { metadata: name, spec: None });
        lease.spec = Some(LeaseSpec {
            acquire_time: if same { before.acquire_time } else { now.clone() },
            holder_identity: Some(self.election.identity.clone()),
            lease_duration_seconds: i32::try_from(self.election.times.lease.as_secs()).ok(),
            lease_transitions: Some(transitions + i32::from(current.is_some() && !same)),
            renew_time: now,
            ..before
        });
        lease
    }

    /// Gives the Lease back, if it is this candidate's: as upstream, nobody holds it for a second.
    async fn release(&self) {
        let give = async {
            let Some(mut lease) = self.leases.get_opt(self.election.name).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(&self.election.identity) {
                return Ok(());
            }
            let now = Some(MicroTime(Timestamp::now()));
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            (spec.acquire_time, spec.renew_time) = (now.clone(), now);
            self.leases.replace(self.election.name, &PostParams::default(), &lease).await.map(drop)
        };
        match timeout(RELEASE, give).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(lease = self.election.name, "not given back: {error}"),
            Err(_) => tracing::debug!(lease = self.election.name, "not given back: the API does not answer"),
        }
    }

    fn announce(&self, what: &str) {
        if let Some((lease, _)) = &self.observed {
            let message = format!("{} {what}", self.election.identity);
            self.recorder.record(lease, Kind::Normal, "LeaderElection", message);
        }
    }
}

#[cfg(test)]
mod tests;
