//! How a node gets its identity: with a kubeconfig that can do nothing else it asks for a client certificate, and writes
//! the kubeconfig that holds it. The kubelet's protocol: a CertificateSigningRequest that the cluster approves and signs.
//!
//! [`crate::run`] comes here before anything speaks to the server. The key is on disk before anybody is asked, so that
//! an agent that dies in between goes on with the same request.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::PostParams;
use kube::config::Kubeconfig;
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::json;
use sha2::{Digest, Sha256};
use tracing::info;

use crate::Config;

const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const PAUSE: Duration = Duration::from_millis(200);

/// Leaves a kubeconfig with this node's certificate where there is none.
pub(crate) async fn ensure(config: &Config, bootstrap: &Path) -> Result<()> {
    if config.kubeconfig.exists() {
        return Ok(());
    }
    let key_file = config.root_dir.join("pki/kubelet-client.key.tmp");
    let key = keep_key(&key_file)?;
    let client =
        Client::try_from(crate::client_config(bootstrap).await?).context("making a client of the API server")?;
    let asked = ask(&client, &config.node_name, &key).await;
    if asked.as_ref().is_err_and(|error| error.is::<Refused>()) {
        // A request with the same key would only find the same refusal.
        let _ = fs::remove_file(&key_file);
    }
    let certificate = asked?;
    let text = kubeconfig(bootstrap, &config.node_name, &certificate, &key.serialize_pem())?;
    write_private(&config.kubeconfig, &text)?;
    let _ = fs::remove_file(&key_file);
    info!(kubeconfig = %config.kubeconfig.display(), "the cluster has signed this node's certificate");
    Ok(())
}

#[derive(Debug, thiserror::Error)]
#[error("certificate request {name} was refused: {why}")]
struct Refused {
    name: String,
    why: String,
}

fn keep_key(path: &Path) -> Result<KeyPair> {
    if let Ok(text) = fs::read_to_string(path)
        && let Ok(key) = KeyPair::from_pem(&text)
    {
        return Ok(key);
    }
    let key = KeyPair::generate().context("making a key")?;
    write_private(path, &key.serialize_pem())?;
    Ok(key)
}

/// Asks, or finds what was asked with the same key, and waits for the certificate.
async fn ask(client: &Client, node: &str, key: &KeyPair) -> Result<String> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let request = request(node, key)?;
    let name = request.metadata.name.clone().unwrap_or_default();
    match api.create(&PostParams::default(), &request).await {
        Err(kube::Error::Api(answer)) if answer.code == 409 => {}
        Err(kube::Error::Api(answer)) if answer.code == 401 => {
            bail!("the bootstrap token is not valid any more; make another: leme token create --print-join-command")
        }
        outcome => drop(outcome.context("asking for a certificate")?),
    }
    loop {
        let now = api.get(&name).await.with_context(|| format!("looking at certificate request {name}"))?;
        if let Some(certificate) = answer(&now)? {
            return Ok(certificate);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The certificate once it is there.
fn answer(request: &CertificateSigningRequest) -> Result<Option<String>> {
    let Some(status) = &request.status else { return Ok(None) };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    if let Some(refusal) = conditions.iter().find(|condition| ["Denied", "Failed"].contains(&condition.type_.as_str()))
    {
        let words = [refusal.reason.as_deref(), refusal.message.as_deref()];
        let why = words.into_iter().flatten().collect::<Vec<_>>().join(": ");
        return Err(Refused { name: request.metadata.name.clone().unwrap_or_default(), why }.into());
    }
    let bytes = status.certificate.as_ref().map(|bytes| bytes.0.clone()).filter(|bytes| !bytes.is_empty());
    bytes.map(|bytes| String::from_utf8(bytes).context("reading the certificate")).transpose()
}

fn request(node: &str, key: &KeyPair) -> Result<CertificateSigningRequest> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    let pem = params.serialize_request(key).and_then(|request| request.pem()).context("making a request")?;
    let mut digest = Sha256::new();
    digest.update(key.public_key_raw());
    digest.update(node);
    let name: String = digest.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut request = CertificateSigningRequest {
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: SIGNER.into(),
            usages: Some(["digital signature", "client auth"].map(str::to_owned).into()),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    };
    request.metadata.name = Some(format!("node-csr-{name}"));
    Ok(request)
}

/// The cluster of the bootstrap kubeconfig, and this node as its user.
fn kubeconfig(bootstrap: &Path, node: &str, certificate: &str, key: &str) -> Result<String> {
    let text = Kubeconfig::read_from(bootstrap).with_context(|| format!("reading {}", bootstrap.display()))?;
    let cluster = text.clusters.first().and_then(|named| named.cluster.clone());
    let cluster = cluster.with_context(|| format!("{} names no cluster", bootstrap.display()))?;
    let user = format!("system:node:{node}");
    let whole = json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{"name": "kubernetes", "cluster": cluster}],
        "users": [{"name": user, "user": {
            "client-certificate-data": BASE64_STANDARD.encode(certificate),
            "client-key-data": BASE64_STANDARD.encode(key),
        }}],
        "contexts": [{"name": user, "context": {"cluster": "kubernetes", "user": user}}],
        "current-context": user,
    });
    Ok(serde_json::to_string_pretty(&whole)?)
}

/// Whole or not at all, and only its owner may read it.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let write = || {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        let temporary: PathBuf = path.with_extension("new");
        let _ = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::{CertificateSigningRequestCondition, CertificateSigningRequestStatus};

    use super::*;

    #[test]
    fn the_same_node_asks_with_the_same_key_under_the_same_name() {
        let key = KeyPair::generate().unwrap();
        let name = |node: &str, key: &KeyPair| request(node, key).unwrap().metadata.name;
        assert_eq!(name("a", &key), name("a", &key));
        assert_ne!(name("a", &key), name("b", &key));
        assert_ne!(name("a", &key), name("a", &KeyPair::generate().unwrap()));
    }

    #[test]
    fn a_key_is_made_once_and_is_its_owners_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pki/key");
        let first = keep_key(&path).unwrap().serialize_pem();
        assert_eq!(keep_key(&path).unwrap().serialize_pem(), first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_answer_is_a_certificate_or_a_refusal_with_its_words_and_until_then_nothing() {
        let mut asked = request("a", &KeyPair::generate().unwrap()).unwrap();
        assert!(answer(&asked).unwrap().is_none());
        let status = CertificateSigningRequestStatus {
            certificate: Some(ByteString(b"PEM".to_vec())),
            ..CertificateSigningRequestStatus::default()
        };
        asked.status = Some(status.clone());
        assert_eq!(answer(&asked).unwrap().as_deref(), Some("PEM"));
        let denied = CertificateSigningRequestCondition {
            type_: "Denied".into(),
            message: Some("not you".into()),
            ..CertificateSigningRequestCondition::default()
        };
        asked.status = Some(CertificateSigningRequestStatus { conditions: Some(vec![denied]), ..status });
        let error = answer(&asked).unwrap_err();
        assert!(error.is::<Refused>() && error.to_string().ends_with("was refused: not you"), "{error}");
    }
}
