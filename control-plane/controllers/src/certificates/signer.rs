//! Signs what was approved, or says why not.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};
use kube::{Api, Client, ResourceExt, api::PostParams};
use tokio_util::sync::CancellationToken;

use super::{API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, Signer, certificate, has, request::Request, with};
use crate::{
    informer::{Informers, ObjectKey, wake_self},
    queue::{Next, Outcome, Queue, unless_gone},
};

/// Upstream's `--cluster-signing-duration`: the most that a certificate gets.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
const SHORTEST: Duration = Duration::from_secs(600);

pub fn start(
    client: Client,
    informers: Arc<Informers>,
    signer: Arc<dyn Signer>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> {
    let queue = Queue::new();
    informers.certificate_requests.on_change(wake_self(queue.adder()));
    async move {
        informers.certificate_requests.wait_until_synced().await;
        let reconcile = move |key: ObjectKey| {
            let (client, informers, signer) = (client.clone(), informers.clone(), signer.clone());
            async move {
                match informers.certificate_requests.get(&key) {
                    Some(request) => answer(&client, &*signer, &request).await,
                    None => Ok(Next::Wait),
                }
            }
        };
        queue.run("certificate-signer", 2, shutdown, reconcile).await;
    }
}

async fn answer(client: &Client, signer: &dyn Signer, request: &CertificateSigningRequest) -> Outcome {
    if let Some(answered) = answered(signer, request)? {
        let api: Api<CertificateSigningRequest> = Api::all(client.clone());
        unless_gone(api.replace_status(&request.name_any(), &PostParams::default(), &answered).await)?;
    }
    Ok(Next::Wait)
}

/// The request with its certificate or its failure; `None` when it is not for us or not approved.
fn answered(
    signer: &dyn Signer,
    request: &CertificateSigningRequest,
) -> anyhow::Result<Option<CertificateSigningRequest>> {
    let spec = &request.spec;
    let ours = [API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING].contains(&spec.signer_name.as_str());
    let open = has(request, "Approved") && !has(request, "Denied") && !has(request, "Failed");
    if !ours || !open || certificate(request).is_some() {
        return Ok(None);
    }
    let usages = spec.usages.as_deref().unwrap_or_default();
    let fits = Request::parse(&spec.request.0).and_then(|parsed| parsed.fits(&spec.signer_name, usages));
    if let Err(why) = fits {
        return Ok(Some(with(request, "Failed", "SignerValidationFailure", &why.to_string())));
    }
    let signed = signer.sign(&spec.request.0, usages, lifetime(spec.expiration_seconds))?;
    let mut answered = request.clone();
    answered.status.get_or_insert_default().certificate = Some(ByteString(signed));
    Ok(Some(answered))
}

fn lifetime(asked: Option<i32>) -> Duration {
    let asked = asked.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    asked.map_or(LONGEST, |asked| asked.clamp(SHORTEST, LONGEST))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;

    use super::{super::request::tests::request, *};

    /// Signs anything with the words that it heard.
    #[derive(Debug)]
    struct Parrot;

    impl Signer for Parrot {
        fn sign(&self, _request: &[u8], usages: &[String], lifetime: Duration) -> anyhow::Result<Vec<u8>> {
            Ok(format!("{} {}", usages.join("+"), lifetime.as_secs()).into_bytes())
        }
    }

    fn asked(signer: &str, group: &str) -> CertificateSigningRequest {
        let spec = CertificateSigningRequestSpec {
            signer_name: signer.into(),
            usages: Some(vec!["digital signature".into(), "client auth".into()]),
            request: ByteString(request("system:node:n", group, vec![])),
            expiration_seconds: Some(3600),
            ..CertificateSigningRequestSpec::default()
        };
        CertificateSigningRequest { spec, ..CertificateSigningRequest::default() }
    }

    #[test]
    fn what_is_approved_and_fits_is_signed_once() {
        let pending = asked(KUBELET_CLIENT, "system:nodes");
        assert_eq!(answered(&Parrot, &pending).unwrap(), None);
        let approved = with(&pending, "Approved", "", "");
        let signed = answered(&Parrot, &approved).unwrap().unwrap();
        assert_eq!(certificate(&signed), Some(&b"digital signature+client auth 3600"[..]));
        assert_eq!(answered(&Parrot, &signed).unwrap(), None);
        let other = with(&asked("example.com/a", "system:nodes"), "Approved", "", "");
        assert_eq!(answered(&Parrot, &other).unwrap(), None, "another signer's");
    }

    #[test]
    fn what_is_approved_and_does_not_fit_fails_in_words_and_only_once() {
        let approved = with(&asked(KUBELET_CLIENT, "system:masters"), "Approved", "", "");
        let failed = answered(&Parrot, &approved).unwrap().unwrap();
        let condition = super::super::condition(&failed, "Failed").unwrap();
        assert_eq!(condition.message.as_deref(), Some("subject organization is not system:nodes"));
        assert_eq!(answered(&Parrot, &failed).unwrap(), None);
    }

    #[test]
    fn a_certificate_lives_as_long_as_asked_within_bounds() {
        for (asked, seconds) in [(None, 31_536_000), (Some(3600), 3600), (Some(1), 600), (Some(i32::MAX), 31_536_000)] {
            assert_eq!(lifetime(asked).as_secs(), seconds);
        }
    }
}
