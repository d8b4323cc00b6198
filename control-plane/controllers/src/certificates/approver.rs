//! Approves what kubelets ask for themselves, if whoever asks may: bootstrap tokens and nodes that renew.

use std::sync::Arc;

use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    certificates::v1::CertificateSigningRequest,
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use tokio_util::sync::CancellationToken;

use super::{KUBELET_CLIENT, certificate, has, request::Request, with};
use crate::{
    informer::{Informers, ObjectKey, wake_self},
    queue::{Next, Outcome, Queue, unless_gone},
};

/// The subresource that the asker must be allowed to create, and what is said then.
type Case = (&'static str, &'static str);
const SELF: Case = ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.");
const NODE: Case = ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.");

pub fn start(client: Client, informers: Arc<Informers>, shutdown: CancellationToken) -> impl Future<Output = ()> {
    let queue = Queue::new();
    informers.certificate_requests.on_change(wake_self(queue.adder()));
    async move {
        informers.certificate_requests.wait_until_synced().await;
        let reconcile = move |key: ObjectKey| {
            let (client, informers) = (client.clone(), informers.clone());
            async move {
                match informers.certificate_requests.get(&key) {
                    Some(request) => approve(&client, &request).await,
                    None => Ok(Next::Wait),
                }
            }
        };
        queue.run("certificate-approver", 2, shutdown, reconcile).await;
    }
}

async fn approve(client: &Client, request: &CertificateSigningRequest) -> Outcome {
    for (subresource, message) in cases(request) {
        if may(client, request, subresource).await? {
            let api: Api<CertificateSigningRequest> = Api::all(client.clone());
            let approved = with(request, "Approved", "AutoApproved", message);
            let (name, params) = (request.name_any(), PostParams::default());
            unless_gone(api.replace_subresource("approval", &name, &params, &approved).await)?;
            break;
        }
    }
    // Who may not ask today may tomorrow, but asks again then: a person decides about this one.
    Ok(Next::Wait)
}

/// What a request that nobody has decided about is a case of.
fn cases(request: &CertificateSigningRequest) -> Vec<Case> {
    let spec = &request.spec;
    let decided = certificate(request).is_some() || has(request, "Approved") || has(request, "Denied");
    if decided || spec.signer_name != KUBELET_CLIENT {
        return Vec::new();
    }
    let usages = spec.usages.as_deref().unwrap_or_default();
    match Request::parse(&spec.request.0) {
        Ok(parsed) if parsed.fits(KUBELET_CLIENT, usages).is_ok() => match spec.username.as_ref() {
            Some(user) if *user == parsed.common_name => vec![SELF, NODE],
            _ => vec![NODE],
        },
        _ => Vec::new(),
    }
}

async fn may(client: &Client, request: &CertificateSigningRequest, subresource: &str) -> kube::Result<bool> {
    let spec = &request.spec;
    let text = |text: &str| Some(text.to_owned());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: text("certificates.k8s.io"),
                version: text("*"),
                resource: text("certificatesigningrequests"),
                subresource: text(subresource),
                verb: text("create"),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = Api::<SubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequestSpec};

    use super::{super::request::tests::request, *};

    fn asked(user: &str, signer: &str, group: &str) -> CertificateSigningRequest {
        CertificateSigningRequest {
            spec: CertificateSigningRequestSpec {
                username: Some(user.into()),
                signer_name: signer.into(),
                usages: Some(vec!["digital signature".into(), "client auth".into()]),
                request: ByteString(request("system:node:n", group, vec![])),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        }
    }

    #[test]
    fn a_node_renews_its_own_certificate_and_asks_for_others_as_a_bootstrapper() {
        let own = asked("system:node:n", KUBELET_CLIENT, "system:nodes");
        assert_eq!(cases(&own), [SELF, NODE]);
        assert_eq!(cases(&asked("system:bootstrap:abcdef", KUBELET_CLIENT, "system:nodes")), [NODE]);
        assert_eq!(cases(&asked("system:node:n", KUBELET_CLIENT, "system:masters")), []);
        assert_eq!(cases(&asked("system:node:n", super::super::API_CLIENT, "system:nodes")), []);
        assert_eq!(cases(&with(&own, "Denied", "", "")), [], "what a person has decided stands");
    }
}
