//! Requests for certificates: kubelets' own are approved, approved ones are signed, old ones go.
//!
//! The authority itself is not here: whoever starts the controllers hands in a [`Signer`]. What a signer's name promises
//! is upstream's, request by request (`request`).

mod approver;
mod cleaner;
mod request;
mod signer;

use std::{fmt::Debug, sync::Arc, time::Duration};

use k8s_openapi::{
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::informer::Informers;

/// Signs with the cluster's authority.
pub trait Signer: Debug + Send + Sync {
    /// A certificate (PEM) for the subject, names and key of a request (PEM), for these usages (Kubernetes' words) only.
    ///
    /// # Errors
    /// When the request cannot be read or has something that the authority cannot put into a certificate.
    fn sign(&self, request: &[u8], usages: &[String], lifetime: Duration) -> anyhow::Result<Vec<u8>>;
}

const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

pub async fn start(client: Client, informers: Arc<Informers>, signer: Arc<dyn Signer>, shutdown: CancellationToken) {
    let approver = approver::start(client.clone(), informers.clone(), shutdown.clone());
    let signer = signer::start(client.clone(), informers.clone(), signer, shutdown.clone());
    let cleaner = cleaner::start(client, informers, shutdown);
    futures::future::join3(approver, signer, cleaner).await;
}

fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    condition(request, kind).is_some()
}

fn condition<'a>(request: &'a CertificateSigningRequest, kind: &str) -> Option<&'a CertificateSigningRequestCondition> {
    request.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

fn certificate(request: &CertificateSigningRequest) -> Option<&[u8]> {
    request.status.as_ref()?.certificate.as_ref().map(|bytes| bytes.0.as_slice()).filter(|bytes| !bytes.is_empty())
}

/// The request with one condition more.
fn with(request: &CertificateSigningRequest, kind: &str, reason: &str, message: &str) -> CertificateSigningRequest {
    let mut changed = request.clone();
    let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.push(CertificateSigningRequestCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(Time(Timestamp::now())),
        last_transition_time: None,
    });
    changed
}
