//! Health, and what stands in every cluster.

use std::sync::atomic::{AtomicBool, Ordering};

use leme_store::{Error, Outcome, Page, Record, Revision, Transaction, Watch};

use super::*;

#[tokio::test]
async fn the_services_of_every_cluster_are_there() {
    let cluster = Cluster::start().await;
    let service = cluster.get("/api/v1/namespaces/default/services/kubernetes").await.body;
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let slice = cluster.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await.body;
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.10"]));
    let dns = cluster.get("/api/v1/namespaces/kube-system/services/kube-dns").await.body;
    assert_eq!(dns["spec"]["clusterIP"], "10.96.0.10");
}

#[tokio::test]
async fn health_needs_no_credentials_and_everything_else_does() {
    let cluster = Cluster::start().await;
    let anonymous = async |path: &str| {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        Answer::read(cluster.app.router().oneshot(request).await.unwrap()).await
    };
    for path in ["/healthz", "/livez?verbose", "/version"] {
        assert_eq!(anonymous(path).await.status, 200, "{path}");
    }
    assert_eq!(anonymous("/readyz").await.status, 500);
    cluster.app.set_ready();
    assert_eq!(anonymous("/readyz").await.status, 200);
    for path in ["/api", "/api/v1/pods", "/metrics"] {
        assert_eq!(anonymous(path).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn health_names_a_store_that_is_gone() {
    let gone = Arc::new(AtomicBool::new(false));
    let wrap = |store| Arc::new(Leaving { store, gone: gone.clone() }) as Arc<dyn Store>;
    let (cluster, _) = Cluster::with_store(|_| (), wrap).await;
    cluster.app.set_ready();
    let health = async |path: &str| {
        let response = cluster.request("admin", Method::GET, path, &[], Body::empty()).await;
        let status = response.status().as_u16();
        (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap())
    };
    assert_eq!(health("/livez/etcd").await, (200, "ok".to_owned()));
    gone.store(true, Ordering::Relaxed);
    assert_eq!(health("/livez/etcd").await.0, 500);
    assert_eq!(health("/livez?exclude=etcd").await.0, 200);
    let (status, told) = health("/readyz").await;
    assert_eq!(status, 500);
    assert!(told.contains("[-]etcd failed") && told.contains("[+]informer-sync ok"), "{told}");
}

/// A store that answers until it is gone.
struct Leaving {
    store: Arc<dyn Store>,
    gone: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl Store for Leaving {
    async fn revision(&self) -> Result<Revision, Error> {
        match self.gone.load(Ordering::Relaxed) {
            true => Err(Error::Unavailable { action: "read", subject: "the revision".into(), reason: "gone".into() }),
            false => self.store.revision().await,
        }
    }

    async fn get(&self, key: &str) -> Result<(Option<Record>, Revision), Error> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page, Error> {
        self.store.list(prefix, after, limit, at).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, Error> {
        self.store.commit(transaction).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        self.store.watch(prefix, from).await
    }

    async fn frontier(&self, prefix: &str) -> Result<Revision, Error> {
        self.store.frontier(prefix).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.store.compact(revision).await
    }
}
