//! How a machine that knows a token and the hash of a key finds out whom to trust: `cluster-info`, read without trust,
//! is true when the token's secret has signed it and its authority has one of the keys that were named.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use leme_control_plane::{cluster_info_signature, pki};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;
use serde_json::{Value, json};

use super::token::Token;

const PATH: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const LIMIT: Duration = Duration::from_secs(10);
/// Certificates and tokens are judged by the clock.
const SKEW: i64 = 300;

/// The cluster as its signed `cluster-info` says.
#[derive(Debug, PartialEq)]
pub(crate) struct Found {
    pub(crate) server: String,
    /// PEM.
    pub(crate) authority: String,
}

/// Which authorities are believed.
pub(crate) enum Pins {
    /// `sha256:…` of their public keys.
    Hashes(Vec<String>),
    /// Whoever knows the token's secret.
    TokenAlone,
}

/// # Errors
/// A sentence for each way in which this is not the cluster that was meant.
pub(crate) async fn discover(endpoint: &str, token: &Token, pins: &Pins) -> Result<Found> {
    let (info, date) = read(endpoint).await?;
    if let Some(server) = date {
        expect_same_time(server, Timestamp::now())?;
    }
    verify(&info, token, pins)
}

async fn read(endpoint: &str) -> Result<(ConfigMap, Option<Timestamp>)> {
    let url = format!("https://{endpoint}");
    let client = super::client(&kubeconfig(&json!({"server": url, "insecure-skip-tls-verify": true}), None)).await;
    let client = client.with_context(|| format!("{endpoint} is no address: expected HOST:PORT"))?;
    let exchange = async {
        let answer = client.send(http::Request::get(PATH).body(Body::empty())?).await?;
        let (status, date) = (answer.status(), answer.headers().get("date").cloned());
        let bytes = answer.into_body().collect_bytes().await?;
        Ok::<_, anyhow::Error>((status, date, bytes))
    };
    let unreachable = || {
        format!(
            "no API server answers at {url}: is it running, is this its address, does a firewall drop port {}?",
            endpoint.rsplit(':').next().unwrap_or_default()
        )
    };
    let answer = tokio::time::timeout(LIMIT, exchange).await;
    let (status, date, bytes) = answer
        .map_err(|_| anyhow!("no answer in {} s", LIMIT.as_secs()))
        .and_then(|answer| answer)
        .with_context(unreachable)?;
    if !status.is_success() {
        bail!("{url} answers, but does not show cluster-info ({status}): is it a cluster that machines can join?");
    }
    let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok()).map(|date| date.timestamp());
    Ok((serde_json::from_slice(&bytes).with_context(|| format!("{url} answers, but not as an API server"))?, date))
}

fn expect_same_time(server: Timestamp, own: Timestamp) -> Result<()> {
    let ahead = own.duration_since(server).as_secs();
    if ahead.abs() > SKEW {
        let side = if ahead > 0 { "ahead of" } else { "behind" };
        bail!(
            "this machine's clock is {} s {side} the server's: certificates would not be valid; set it (timedatectl, chrony)",
            ahead.abs()
        );
    }
    Ok(())
}

fn verify(info: &ConfigMap, token: &Token, pins: &Pins) -> Result<Found> {
    let text = |key: &str| info.data.as_ref().and_then(|data| data.get(key));
    let config = text("kubeconfig").context("the cluster's cluster-info holds no kubeconfig")?;
    let Some(signature) = text(&format!("jws-kubeconfig-{}", token.id)) else {
        bail!(
            "the cluster knows no token {}: it has expired, was deleted, or is another cluster's; \
             make one on a control-plane node: leme token create --print-join-command",
            token.id
        )
    };
    if *signature != cluster_info_signature(config, &token.id, &token.secret) {
        bail!("the token {} has another secret than the one given: was it copied whole?", token.id);
    }
    let found = parse(config)?;
    if let Pins::Hashes(hashes) = pins {
        expect_pinned(&found.authority, hashes)?;
    }
    Ok(found)
}

/// One of the authorities must have one of the keys.
fn expect_pinned(authority: &str, hashes: &[String]) -> Result<()> {
    let mut seen = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        let certificate = certificate.context("the cluster's authority is no certificate")?;
        seen.push(format!("sha256:{}", pki::public_key_hash(&certificate)?));
    }
    if seen.iter().any(|hash| hashes.iter().any(|pinned| pinned.eq_ignore_ascii_case(hash))) {
        return Ok(());
    }
    bail!(
        "the cluster's certificate authority has another key ({}) than --discovery-token-ca-cert-hash names: \
         this is another cluster, or somebody in between",
        seen.join(", ")
    )
}

#[derive(Deserialize)]
struct File {
    clusters: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

fn parse(config: &str) -> Result<Found> {
    let file: File = serde_norway::from_str(config).context("the cluster's cluster-info cannot be read")?;
    let Cluster { server, certificate_authority_data } =
        file.clusters.into_iter().next().context("cluster-info names no cluster")?.cluster;
    let authority = BASE64_STANDARD.decode(certificate_authority_data)?;
    Ok(Found { server, authority: String::from_utf8(authority)? })
}

impl Found {
    /// A kubeconfig that is the token's.
    pub(crate) fn kubeconfig(&self, token: &Token) -> String {
        let authority = BASE64_STANDARD.encode(&self.authority);
        let cluster = json!({"server": self.server, "certificate-authority-data": authority});
        kubeconfig(&cluster, Some(token))
    }
}

fn kubeconfig(cluster: &Value, token: Option<&Token>) -> String {
    let user = token.map_or(json!({}), |token| json!({"token": token.to_string()}));
    let name = "tls-bootstrap-token-user";
    let whole = json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{"name": "kubernetes", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": "kubernetes", "user": name}}],
        "current-context": name,
    });
    whole.to_string()
}

#[cfg(test)]
mod tests {
    use leme_control_plane::pki::Authority;

    use super::*;

    fn token(text: &str) -> Token {
        text.parse().unwrap()
    }

    fn info(authority: &str) -> ConfigMap {
        let encoded = BASE64_STANDARD.encode(authority);
        let config = format!(
            "clusters:\n- cluster:\n    certificate-authority-data: {encoded}\n    server: https://192.0.2.1:6443\n"
        );
        let signature = cluster_info_signature(&config, "abcdef", "0123456789abcdef");
        ConfigMap {
            data: Some([("jws-kubeconfig-abcdef".into(), signature), ("kubeconfig".into(), config)].into()),
            ..ConfigMap::default()
        }
    }

    #[test]
    fn a_cluster_is_believed_for_its_token_and_its_key_and_refused_in_words_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path(), "ca", "kubernetes").unwrap().certificate;
        let der = CertificateDer::from_pem_slice(authority.as_bytes()).unwrap();
        let hash = format!("sha256:{}", pki::public_key_hash(&der).unwrap());
        let right = token("abcdef.0123456789abcdef");
        let pinned = |hashes: &[&str]| Pins::Hashes(hashes.iter().map(|hash| (*hash).to_owned()).collect());
        let info = info(&authority);
        let found = verify(&info, &right, &pinned(&["sha256:00", &hash])).unwrap();
        assert_eq!(found, Found { server: "https://192.0.2.1:6443".into(), authority });
        let refused = |token: &str, pins: &Pins| verify(&info, &self::token(token), pins).unwrap_err().to_string();
        assert!(refused("zzzzzz.0123456789abcdef", &Pins::TokenAlone).contains("knows no token zzzzzz"));
        assert!(refused("abcdef.0123456789abcdeg", &Pins::TokenAlone).contains("another secret"));
        assert!(refused("abcdef.0123456789abcdef", &pinned(&["sha256:00"])).contains("another key"));
    }

    #[test]
    fn a_clock_that_is_off_is_said_with_its_direction() {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let server = time("2026-01-01T12:00:00Z");
        assert!(expect_same_time(server, time("2026-01-01T12:04:59Z")).is_ok());
        let error = expect_same_time(server, time("2026-01-01T10:00:00Z")).unwrap_err().to_string();
        assert!(error.contains("7200 s behind"), "{error}");
    }
}
