use std::{net::SocketAddr, os::unix::fs::PermissionsExt};

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::{rt::TokioIo, server::conn::auto};
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Says its name with this status, over HTTP/2, under a certificate for `certified`.
struct Server {
    address: SocketAddr,
    ends: CancellationToken,
}

impl Server {
    async fn start(authority: &Authority, name: &'static str, status: u16, certified: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), ends: CancellationToken::new() };
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([certified.to_owned()]).unwrap().signed_by(&key, authority).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let tls = tls.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let mut tls = tls.with_single_cert(vec![leaf.der().clone()], key).unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let ends = server.ends.clone();
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = ends.run_until_cancelled(listener.accept()).await {
                let (acceptor, ends) = (acceptor.clone(), ends.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
                        assert_eq!(request.version(), http::Version::HTTP_2);
                        let body = Full::new(Bytes::from_static(name.as_bytes()));
                        let answer = Response::builder().status(status).body(body).unwrap();
                        std::future::ready(Ok::<_, std::convert::Infallible>(answer))
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    ends.run_until_cancelled(builder.serve_connection(TokioIo::new(stream), answer)).await;
                });
            }
        });
        server
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Returns when nobody listens any more.
    async fn end(&self) {
        self.ends.cancel();
        while tokio::net::TcpStream::connect(self.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}

fn config(authority: &Authority, url: &str) -> kube::Config {
    let mut config = kube::Config::new(url.parse().unwrap());
    config.root_cert = Some(vec![authority.der().to_vec()]);
    config
}

async fn who_answers(client: &Client) -> Result<String, kube::Error> {
    client.request_text(Request::get("/version").body(Vec::new()).unwrap()).await
}

/// What a connection carries when it breaks fails, and is asked again by its caller.
async fn who_answers_in_the_end(client: &Client) -> String {
    for _ in 0..3 {
        if let Ok(name) = who_answers(client).await {
            return name;
        }
    }
    panic!("nobody answers");
}

#[tokio::test]
async fn when_a_server_is_gone_the_next_is_asked_and_stays_the_one_also_after_a_restart() {
    let (authority, directory) = (authority(), tempfile::tempdir().unwrap());
    let first = Server::start(&authority, "first", 200, "127.0.0.1").await;
    let second = Server::start(&authority, "second", 200, "127.0.0.1").await;
    let (config, file) = (config(&authority, &first.url()), directory.path().join("node/servers.json"));
    let servers = Servers::load(&config.cluster_url, file.clone());
    let asking = client(&config, servers.clone()).unwrap();
    servers.learn(vec![first.url(), second.url()]);
    assert_eq!(who_answers(&asking).await.unwrap(), "first");
    first.end().await;
    assert_eq!(who_answers_in_the_end(&asking).await, "second");
    servers.learn(vec![second.url()]);
    assert_eq!(who_answers(&asking).await.unwrap(), "second");

    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let restarted = client(&config, Servers::load(&config.cluster_url, file)).unwrap();
    assert_eq!(who_answers(&restarted).await.unwrap(), "second", "not even one request fails");
}

#[tokio::test]
async fn a_server_that_is_not_who_it_says_is_not_believed() {
    let (authority, directory) = (authority(), tempfile::tempdir().unwrap());
    let impostor = Server::start(&authority, "impostor", 200, "192.0.2.1").await;
    let honest = Server::start(&authority, "honest", 200, "127.0.0.1").await;
    let config = config(&authority, &impostor.url());
    let servers = Servers::load(&config.cluster_url, directory.path().join("servers.json"));
    let asking = client(&config, servers.clone()).unwrap();
    assert!(who_answers(&asking).await.is_err());
    servers.learn(vec![honest.url()]);
    assert_eq!(who_answers(&asking).await.unwrap(), "honest");
}

#[tokio::test]
async fn a_server_that_has_lost_its_store_is_left() {
    let (authority, directory) = (authority(), tempfile::tempdir().unwrap());
    let ill = Server::start(&authority, "ill", 503, "127.0.0.1").await;
    let well = Server::start(&authority, "well", 200, "127.0.0.1").await;
    let config = config(&authority, &ill.url());
    let servers = Servers::load(&config.cluster_url, directory.path().join("servers.json"));
    servers.learn(vec![well.url()]);
    let asking = client(&config, servers).unwrap();
    assert_eq!(who_answers(&asking).await.unwrap(), "well");
}

#[test]
fn servers_are_what_the_slices_of_the_kubernetes_service_say_and_the_first_is_the_kubeconfigs() {
    let slice = |kind: &str, addresses: &[&str]| -> EndpointSlice {
        let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
        let ports = json!([{"name": "https", "port": 6443}]);
        serde_json::from_value(json!({"addressType": kind, "endpoints": endpoints, "ports": ports})).unwrap()
    };
    let mut learnt = addresses(&slice("IPv4", &["192.0.2.1", "192.0.2.2"]));
    learnt.extend(addresses(&slice("IPv6", &["2001:db8::1"])));
    assert_eq!(learnt, ["https://192.0.2.1:6443", "https://192.0.2.2:6443", "https://[2001:db8::1]:6443"]);
    let known = with_given("https://192.0.2.2:6443".into(), learnt.into_iter());
    assert_eq!(known, ["https://192.0.2.2:6443", "https://192.0.2.1:6443", "https://[2001:db8::1]:6443"]);
    assert!(addresses(&serde_json::from_value(json!({"addressType": "IPv4", "endpoints": []})).unwrap()).is_empty());
}
