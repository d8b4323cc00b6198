//! A slim copy of the cluster's Services, by namespace: what containers learn of them through their environment, and
//! whose pods they select.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::pods::env::ServiceEnv;

type Namespaces = BTreeMap<String, BTreeMap<String, Known>>;
type Labels = BTreeMap<String, String>;

struct Known {
    /// None for one without an address.
    env: Option<ServiceEnv>,
    selector: Labels,
}

#[derive(Clone, Default)]
pub struct Services {
    known: Arc<RwLock<Namespaces>>,
}

impl Services {
    /// Follows the API until `shutdown`.
    pub async fn watch(self, client: Client, shutdown: CancellationToken) {
        let stream = watcher(Api::<Service>::all(client), watcher::Config::default()).default_backoff();
        let mut stream = std::pin::pin!(stream);
        let mut initial = Namespaces::new();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = stream.next() => event,
            };
            match event {
                None => return,
                Some(Ok(watcher::Event::Init)) => initial.clear(),
                Some(Ok(watcher::Event::InitApply(service))) => put(&mut initial, &service),
                Some(Ok(watcher::Event::InitDone)) => *self.write() = std::mem::take(&mut initial),
                Some(Ok(watcher::Event::Apply(service))) => put(&mut self.write(), &service),
                Some(Ok(watcher::Event::Delete(service))) => remove(&mut self.write(), &service),
                Some(Err(error)) => tracing::debug!(%error, "watch of services"),
            }
        }
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Namespaces> {
        self.known.write().expect("no holder panics")
    }

    /// The namespace's Services if the pod wants links to them, and always the API's own.
    pub fn variables(&self, namespace: &str, links: bool) -> Vec<(String, String)> {
        let known = self.known.read().expect("no holder panics");
        let api = known.get("default").and_then(|services| services.get("kubernetes"));
        let own = known.get(namespace).filter(|_| links).into_iter().flatten().map(|(_, service)| service);
        let own = api.into_iter().chain(own).filter_map(|service| service.env.as_ref());
        let mut variables: Vec<_> = own.flat_map(ServiceEnv::variables).collect();
        variables.sort();
        variables.dedup_by(|a, b| a.0 == b.0);
        variables
    }

    /// Whether some Service sends its clients to pods with these labels.
    pub fn select(&self, namespace: &str, labels: &Labels) -> bool {
        let known = self.known.read().expect("no holder panics");
        let matches = |selector: &Labels| selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        let own = known.get(namespace).into_iter().flatten().map(|(_, service)| &service.selector);
        own.into_iter().any(|selector| !selector.is_empty() && matches(selector))
    }
}

fn put(namespaces: &mut Namespaces, service: &Service) {
    let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else { return };
    let spec = service.spec.as_ref();
    let address = spec.and_then(|spec| spec.cluster_ip.clone()).filter(|ip| !ip.is_empty() && ip != "None");
    let ports = spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let ports = ports.map(|port| (port.name.clone(), port.port, port.protocol.clone().unwrap_or_else(|| "TCP".into())));
    let env = address.map(|address| ServiceEnv { name: name.clone(), address, ports: ports.collect() });
    let selector = spec.and_then(|spec| spec.selector.clone()).unwrap_or_default();
    namespaces.entry(namespace.clone()).or_default().insert(name.clone(), Known { env, selector });
}

fn remove(namespaces: &mut Namespaces, service: &Service) {
    let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else { return };
    if let Some(services) = namespaces.get_mut(namespace) {
        services.remove(name);
        if services.is_empty() {
            namespaces.remove(namespace);
        }
    }
}
