//! The controllers and the scheduler: what makes the cluster move towards what its objects say.
//!
//! The control plane starts [`run`] beside its API. Everything here speaks the Kubernetes API through `kube` clients and
//! nothing else: same admission, validation and authorization as anybody, each controller under its own account.
//! It never imports the API server or the store.
//!
//! One [`informer::Informer`] per kind is shared by all controllers. Events turn into keys, a [`queue::Queue`] per
//! controller holds each key once, and a reconciler looks at the informers and acts; what it is woken for does not matter.

pub mod backends;
pub mod bootstrap_token;
pub mod certificates;
pub mod deployment;
pub mod election;
pub mod endpoints;
pub mod endpointslice;
pub mod garbage;
pub mod informer;
pub mod namespace;
pub mod node_lifecycle;
pub mod objects;
pub mod pod_cidr;
pub mod pod_gc;
pub mod pods;
pub mod queue;
pub mod recorder;
pub mod replicaset;
pub mod root_ca;
pub mod scheduler;
pub mod service_account;

use std::{sync::Arc, time::Duration};

use ipnetwork::IpNetwork;
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use certificates::Signer;
use informer::Informers;

/// What the controllers need to know beyond the API.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes get their pod CIDRs out of this one.
    pub pod_cidr: IpNetwork,
    /// Bits of a node's own pod CIDR: 24 for IPv4, as upstream.
    pub node_cidr_mask: u8,
    /// Published as `kube-root-ca.crt` in every namespace.
    pub root_ca: String,
    /// How long a node may be silent before it counts as gone; upstream's 50 s.
    pub node_grace_period: Duration,
}

/// Makes a client that acts as this user. Groups are the caller's matter: service accounts belong to theirs.
pub type MakeClient = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// The user that the scheduler is.
pub const SCHEDULER: &str = "system:kube-scheduler";
/// The user that reads for all controllers.
pub const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";

/// Runs every controller and the scheduler until `shutdown`. Losing the API is retried, never fatal.
pub async fn run(make_client: MakeClient, options: Options, signer: Arc<dyn Signer>, shutdown: CancellationToken) {
    let informers = Informers::new(make_client(CONTROLLER_MANAGER));
    let mut tasks = start_controllers(&make_client, &options, signer, &informers, &shutdown);
    tasks.spawn(scheduler::start(make_client(SCHEDULER), informers.clone(), shutdown.clone()));
    watch_until(informers.run(shutdown), tasks).await;
}

/// Where servers elect one of them for each part: the controllers alone.
pub async fn run_controllers(
    make_client: MakeClient,
    options: Options,
    signer: Arc<dyn Signer>,
    shutdown: CancellationToken,
) {
    let informers = Informers::new(make_client(CONTROLLER_MANAGER));
    let tasks = start_controllers(&make_client, &options, signer, &informers, &shutdown);
    watch_until(informers.run(shutdown), tasks).await;
}

/// The scheduler alone.
pub async fn run_scheduler(make_client: MakeClient, shutdown: CancellationToken) {
    let informers = Informers::new(make_client(SCHEDULER));
    let mut tasks = JoinSet::new();
    tasks.spawn(scheduler::start(make_client(SCHEDULER), informers.clone(), shutdown.clone()));
    watch_until(informers.run_for_scheduler(shutdown), tasks).await;
}

/// Each `start` registered its handlers before it returned its future: no controller misses an object.
async fn watch_until(watches: impl Future<Output = ()>, mut tasks: JoinSet<()>) {
    watches.await;
    // A controller that is cut off is one that crashed, which each survives. Waiting could take for ever: for a first
    // list that never comes now, for a write that a store without a quorum does not answer.
    tasks.shutdown().await;
}

fn start_controllers(
    make_client: &MakeClient,
    options: &Options,
    signer: Arc<dyn Signer>,
    informers: &Arc<Informers>,
    shutdown: &CancellationToken,
) -> JoinSet<()> {
    let account = |name: &str| make_client(&format!("system:serviceaccount:kube-system:{name}"));
    let mut tasks = JoinSet::new();
    tasks.spawn(deployment::start(account("deployment-controller"), informers.clone(), shutdown.clone()));
    tasks.spawn(replicaset::start(account("replicaset-controller"), informers.clone(), shutdown.clone()));
    tasks.spawn(endpointslice::start(account("endpointslice-controller"), informers.clone(), shutdown.clone()));
    tasks.spawn(endpoints::start(account("endpoint-controller"), informers.clone(), shutdown.clone()));
    tasks.spawn(namespace::start(account("namespace-controller"), informers.clone(), shutdown.clone()));
    tasks.spawn(service_account::start(account("service-account-controller"), informers.clone(), shutdown.clone()));
    tasks.spawn(bootstrap_token::start_cleaner(account("token-cleaner"), informers.clone(), shutdown.clone()));
    tasks.spawn(bootstrap_token::start_signer(account("bootstrap-signer"), informers.clone(), shutdown.clone()));
    tasks.spawn(certificates::start(account("certificate-controller"), informers.clone(), signer, shutdown.clone()));
    tasks.spawn(root_ca::start(
        account("root-ca-cert-publisher"),
        informers.clone(),
        options.root_ca.clone(),
        shutdown.clone(),
    ));
    tasks.spawn(node_lifecycle::start(
        account("node-controller"),
        informers.clone(),
        options.node_grace_period,
        shutdown.clone(),
    ));
    tasks.spawn(pod_cidr::start(account("node-controller"), informers.clone(), options.clone(), shutdown.clone()));
    tasks.spawn(pod_gc::start(account("pod-garbage-collector"), informers.clone(), shutdown.clone()));
    tasks.spawn(garbage::start(account("generic-garbage-collector"), shutdown.clone()));
    tasks
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use super::*;

    #[derive(Debug)]
    struct Nobody;

    impl Signer for Nobody {
        fn sign(&self, _request: &[u8], _usages: &[String], _lifetime: Duration) -> anyhow::Result<Vec<u8>> {
            anyhow::bail!("nobody signs here")
        }
    }

    /// A client of an API that takes every request and answers none.
    fn unanswered(_account: &str) -> Client {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| {
            pending::<Result<http::Response<kube::client::Body>, Infallible>>()
        });
        Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn the_controllers_end_when_told_to_although_their_first_lists_never_came() {
        let options = Options {
            pod_cidr: "10.244.0.0/16".parse().expect("a network"),
            node_cidr_mask: 24,
            root_ca: String::new(),
            node_grace_period: Duration::from_secs(50),
        };
        let shutdown = CancellationToken::new();
        let controllers = tokio::spawn(run(Arc::new(unanswered), options, Arc::new(Nobody), shutdown.clone()));
        tokio::task::yield_now().await;
        shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(1), controllers).await;
        assert!(matches!(ended, Ok(Ok(()))), "still running");
    }
}
