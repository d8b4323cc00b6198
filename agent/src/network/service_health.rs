//! `healthCheckNodePort`: tells load balancers whether this node has endpoints of its own for a Service with
//! `externalTrafficPolicy: Local`, and how many.
//!
//! The reconciler says after each application which checks there are; each is a small HTTP server on its port. Codes,
//! headers and body are kube-proxy's (pkg/proxy/healthcheck/service_health.go).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderValue, Response, StatusCode, header};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use leme_datapath::{HealthCheck, NodePorts, ObjectKey};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tracing::warn;

use super::proxy_health::ProxyHealth;

const RETRY: Duration = Duration::from_secs(5);

/// All checks of this node; dropping one ends its server and its connections.
pub struct ServiceHealth {
    addresses: Vec<IpAddr>,
    proxy: Arc<ProxyHealth>,
    servers: HashMap<ObjectKey, Server>,
}

struct Server {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl ServiceHealth {
    pub fn new(node_ports: &NodePorts, node_ip: IpAddr, proxy: Arc<ProxyHealth>) -> Self {
        Self { addresses: listen_addresses(node_ports, node_ip), proxy, servers: HashMap::new() }
    }

    /// What a Service has now; none: no check.
    pub fn set(&mut self, service: &ObjectKey, check: Option<HealthCheck>) {
        let Some(check) = check else { return drop(self.servers.remove(service)) };
        match self.servers.get(service) {
            Some(server) if server.port == check.port => server.endpoints.store(check.endpoints, Relaxed),
            _ => {
                // Two Services may have swapped ports: the old one closes first.
                self.servers.remove(service);
                let server = self.start(service, check);
                self.servers.insert(service.clone(), server);
            }
        }
    }

    /// Everything there is, after a complete list.
    pub fn set_all(&mut self, checks: HashMap<ObjectKey, HealthCheck>) {
        self.servers.retain(|service, _| checks.contains_key(service));
        checks.into_iter().for_each(|(service, check)| self.set(&service, Some(check)));
    }

    fn start(&self, service: &ObjectKey, check: HealthCheck) -> Server {
        let endpoints = Arc::new(AtomicUsize::new(check.endpoints));
        let answer = Answer { service: service.clone(), endpoints: endpoints.clone(), proxy: self.proxy.clone() };
        let serve = |address: &IpAddr| tokio::spawn(serve(SocketAddr::new(*address, check.port), answer.clone()));
        Server { port: check.port, endpoints, tasks: self.addresses.iter().map(serve).collect() }
    }
}

/// Where NodePorts answer, checks do too.
fn listen_addresses(node_ports: &NodePorts, node_ip: IpAddr) -> Vec<IpAddr> {
    match node_ports {
        NodePorts::Everywhere => vec![Ipv4Addr::UNSPECIFIED.into()],
        NodePorts::Primary => vec![node_ip],
        NodePorts::Within(networks) => {
            let within = |address: &IpAddr| networks.iter().any(|network| network.contains(*address));
            let mut addresses: Vec<IpAddr> = own_addresses().into_iter().filter(within).collect();
            addresses.sort_unstable();
            addresses.dedup();
            addresses
        }
    }
}

fn own_addresses() -> Vec<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().inspect_err(|error| warn!(%error, "cannot list the node's addresses"));
    let addresses = interfaces.into_iter().flatten().filter_map(|interface| interface.address);
    addresses.filter_map(|address| Some(address.as_sockaddr_in()?.ip().into())).collect()
}

#[derive(Clone)]
struct Answer {
    service: ObjectKey,
    endpoints: Arc<AtomicUsize>,
    proxy: Arc<ProxyHealth>,
}

impl Answer {
    fn response(&self) -> Response<String> {
        let (count, healthy) = (self.endpoints.load(Relaxed), self.proxy.is_healthy());
        let ObjectKey { namespace, name } = &self.service;
        let mut response = Response::new(format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\t\
             \"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
        ));
        if count == 0 || !healthy {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert("x-load-balancing-endpoint-weight", HeaderValue::from(count));
        response
    }
}

/// Serves until it is aborted; a port that is taken is tried again.
async fn serve(address: SocketAddr, answer: Answer) {
    let listener = listen(address, &answer.service).await;
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(conversations.spawn(converse(stream, answer.clone()))),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = conversations.join_next() => {}
        }
    }
}

async fn listen(address: SocketAddr, service: &ObjectKey) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !told => warn!(%address, %service, %error, "cannot serve the health check; trying again"),
            Err(_) => {}
        }
        told = true;
        tokio::time::sleep(RETRY).await;
    }
}

async fn converse(stream: TcpStream, answer: Answer) {
    let service = service_fn(move |_| {
        let response = answer.response();
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    // A client that hangs up in the middle is its own affair.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(60))
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn health(address: Ipv4Addr) -> ServiceHealth {
        ServiceHealth::new(&NodePorts::Primary, address.into(), Arc::default())
    }

    fn free_port(address: Ipv4Addr) -> u16 {
        std::net::TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port()
    }

    async fn ask(address: Ipv4Addr, port: u16) -> std::io::Result<String> {
        let mut stream = TcpStream::connect((address, port)).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// The server listens a moment after it was asked for.
    async fn ask_until_it_listens(address: Ipv4Addr, port: u16) -> String {
        loop {
            if let Ok(answer) = ask(address, port).await {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_load_balancer_is_told_how_many_endpoints_the_node_has() {
        let (address, service) = (Ipv4Addr::new(127, 0, 10, 1), ObjectKey::new("shop", "web"));
        let mut health = health(address);
        let port = free_port(address);
        health.set(&service, Some(HealthCheck { port, endpoints: 2 }));
        let answer = ask_until_it_listens(address, port).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        for line in
            ["content-type: application/json", "x-content-type-options: nosniff", "x-load-balancing-endpoint-weight: 2"]
        {
            assert!(head.contains(line), "{line} in {head}");
        }
        let wanted = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\
                      \"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(body, wanted);
        health.set(&service, Some(HealthCheck { port, endpoints: 0 }));
        let answer = ask(address, port).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable"), "{answer}");
        assert!(answer.contains("\"localEndpoints\": 0"), "{answer}");
    }

    #[tokio::test]
    async fn a_check_that_goes_or_moves_closes_its_port() {
        let (address, service) = (Ipv4Addr::new(127, 0, 10, 2), ObjectKey::new("shop", "web"));
        let mut health = health(address);
        let (first, second) = (free_port(address), free_port(address));
        health.set(&service, Some(HealthCheck { port: first, endpoints: 1 }));
        ask_until_it_listens(address, first).await;
        health.set_all(HashMap::from([(service.clone(), HealthCheck { port: second, endpoints: 1 })]));
        ask_until_it_listens(address, second).await;
        assert!(ask(address, first).await.is_err());
        health.set_all(HashMap::new());
        while ask(address, second).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
