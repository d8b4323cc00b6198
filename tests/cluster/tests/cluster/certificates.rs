//! A person asks for a certificate, another decides about it with `kubectl certificate`, and the cluster takes it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use leme_tests_cluster::Cluster;
use leme_tests_cluster::cluster::expect_all;
use leme_tests_cluster::command;
use leme_tests_cluster::wait::eventually;

const LIMIT: Duration = Duration::from_secs(20);

/// Key and request of `name` in files; the request is sent.
fn ask(cluster: &Cluster, name: &str) -> Result<()> {
    let file = |extension: &str| cluster.path(&format!("{name}.{extension}"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.arg("-subj").arg(format!("/O=people/O=guests/CN={name}"));
    openssl.arg("-keyout").arg(file("key")).arg("-out").arg(file("csr"));
    command::output(&mut openssl, LIMIT)?;
    let encoded = command::output(Command::new("base64").arg("-w0").arg(file("csr")), LIMIT)?;
    let manifest = format!(
        "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata:\n  name: {name}\nspec:\n  \
         request: {encoded}\n  signerName: kubernetes.io/kube-apiserver-client\n  expirationSeconds: 3600\n  usages: \
         [client auth, digital signature]\n"
    );
    fs::write(file("yaml"), manifest)?;
    cluster.kubectl(&["apply", "-f", &file("yaml").to_string_lossy()]).map(drop)
}

fn row(cluster: &Cluster, name: &str) -> Result<String> {
    cluster.kubectl(&["get", "csr", name, "--no-headers"])
}

pub(crate) fn a_person_gets_a_certificate_once_it_is_approved(cluster: &Cluster) -> Result<()> {
    ask(cluster, "jane")?;
    expect_all(&row(cluster, "jane")?, &["kubernetes.io/kube-apiserver-client", "60m", "Pending"])?;
    let said = cluster.kubectl(&["certificate", "approve", "jane"])?;
    expect_all(&said, &["certificatesigningrequest.certificates.k8s.io/jane approved"])?;
    let encoded = eventually(LIMIT, "the certificate is issued", || {
        expect_all(&row(cluster, "jane")?, &["Approved,Issued"])?;
        cluster.kubectl(&["get", "csr", "jane", "-o", "jsonpath={.status.certificate}"])
    })?;
    fs::write(cluster.path("jane.b64"), encoded)?;
    let pem = command::output(Command::new("base64").arg("-d").arg(cluster.path("jane.b64")), LIMIT)?;
    fs::write(cluster.path("jane.crt"), pem)?;
    let user = whoami(cluster, "jane")?;
    expect_all(&user, &["\"username\":\"jane\"", "\"people\"", "\"guests\""])?;
    cluster.kubectl(&["delete", "csr", "jane"]).map(drop)
}

/// What the server makes of the certificate in the cluster's folder.
fn whoami(cluster: &Cluster, name: &str) -> Result<String> {
    let file = |extension: &str| cluster.path(&format!("{name}.{extension}")).to_string_lossy().into_owned();
    let (crt, key, server) = (file("crt"), file("key"), format!("https://{}:6443", cluster.nodes[0].address));
    let connection = ["--kubeconfig", "/dev/null", "--server", &server, "--insecure-skip-tls-verify"];
    let identity = ["--client-certificate", &crt, "--client-key", &key];
    let said = cluster.kubectl(&[&connection[..], &identity, &["auth", "whoami", "-o", "json"]].concat())?;
    Ok(said.split_whitespace().collect())
}

pub(crate) fn a_denied_request_stays_without_a_certificate(cluster: &Cluster) -> Result<()> {
    ask(cluster, "john")?;
    cluster.kubectl(&["certificate", "deny", "john"])?;
    ensure!(row(cluster, "john")?.trim_end().ends_with("Denied"), "{}", row(cluster, "john")?);
    // Nobody may have it both ways; kubectl looks before it asks.
    let refusal = cluster.kubectl_refuses(&["certificate", "approve", "john"])?;
    expect_all(&refusal, &["already Denied"])?;
    cluster.kubectl(&["delete", "csr", "john"]).map(drop)
}
