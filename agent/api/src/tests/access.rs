use std::net::SocketAddr;
use std::sync::Arc;

use axum::routing::post;
use axum::{Json, Router};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::OnePod;
use crate::Config;

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// An authority, and clients' certificates by it.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn client(&self, name: &str, group: &str) -> Identity {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }
}

/// Knows the token `good` as the user `viewer`, who may get `nodes/metrics` and nothing else.
fn api_server() -> kube::Client {
    let tokens = post(async |Json(review): Json<Value>| {
        let good = review["spec"]["token"] == "good";
        let user = json!({"username": "viewer", "groups": ["system:authenticated"]});
        Json(json!({"spec": {"token": ""}, "status": {"authenticated": good, "user": user}}))
    });
    let permissions = post(async |Json(review): Json<Value>| {
        let asked = &review["spec"]["resourceAttributes"];
        assert_eq!((&asked["resource"], &asked["name"]), (&json!("nodes"), &json!("worker")));
        let viewer = review["spec"]["user"] == "viewer";
        let allowed = viewer && asked["verb"] == "get" && asked["subresource"] == "metrics";
        Json(json!({"spec": {}, "status": {"allowed": allowed}}))
    });
    let router = Router::new()
        .route("/apis/authentication.k8s.io/v1/tokenreviews", tokens)
        .route("/apis/authorization.k8s.io/v1/subjectaccessreviews", permissions);
    kube::Client::new(router, "default")
}

async fn start(authority: &Authority, directory: &std::path::Path) -> SocketAddr {
    let client_ca_file = directory.join("ca.crt");
    std::fs::write(&client_ca_file, authority.certificate.pem()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config =
        Config { address, tls_cert_file: None, tls_private_key_file: None, client_ca_file: Some(client_ca_file) };
    let node = Arc::new(OnePod { runtime: String::new(), log: directory.join("0.log") });
    let client = api_server();
    tokio::spawn(crate::server::serve_on(listener, config, node, client, CancellationToken::new()));
    address
}

async fn get(address: SocketAddr, path: &str, identity: Option<Identity>, token: &str) -> (u16, String) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::get(path).header("host", "localhost");
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let response = sender.send_request(request.body(String::new()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn only_whom_the_api_server_lets_is_served_and_a_bad_certificate_is_a_401() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(), Authority::new());
    let address = start(&ours, directory.path()).await;
    let masters = || Some(ours.client("kube-apiserver-kubelet-client", "system:masters"));
    let stranger = || Some(other.client("kube-apiserver-kubelet-client", "system:masters"));
    let nobody = || Some(ours.client("somebody", "some-group"));
    let forbidden = "Forbidden (user=viewer, verb=get, resource=nodes, subresource(s)=[pods proxy])";
    let rows = [
        ("/healthz", None, "", 401, "Unauthorized"),
        ("/healthz", None, "bad", 401, "Unauthorized"),
        ("/healthz", stranger(), "", 401, "Unauthorized"),
        ("/healthz", masters(), "", 200, "ok"),
        (
            "/healthz",
            nobody(),
            "",
            403,
            "Forbidden (user=somebody, verb=get, resource=nodes, subresource(s)=[healthz proxy])",
        ),
        ("/pods", None, "good", 403, forbidden),
        ("/pods", stranger(), "good", 403, forbidden),
    ];
    for (path, identity, token, status, body) in rows {
        assert_eq!(get(address, path, identity, token).await, (status, body.to_owned()), "{path} {token}");
    }
    assert_eq!(get(address, "/metrics", None, "good").await.0, 200);
}

/// The server's certificate is made for each run, and not what is tested.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
