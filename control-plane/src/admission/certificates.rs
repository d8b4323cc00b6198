//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction: who may decide about a request for a
//! certificate, who may answer it, and what nobody may ask for.

use serde_json::Value;

use crate::{
    api::{
        App,
        object::text,
        status::{Failure, Outcome},
    },
    auth::{MASTERS, User, attributes::Attributes},
    resources::{self, Resource},
};

pub const KIND: &str = "CertificateSigningRequest";
const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// A certificate cannot be taken back: none ever stands for the group that no rule binds.
pub fn create(resource: &Resource, object: &Value) -> Outcome<()> {
    if text(object, &["spec", "signerName"]) != API_CLIENT {
        return Ok(());
    }
    let refuse = |why: String| {
        Err(Failure::forbidden(resource.group, resource.plural, text(object, &["metadata", "name"]), why))
    };
    match resources::organizations(object) {
        Err(why) => refuse(format!("failed to parse CSR: {why}")),
        Ok(groups) if groups.iter().any(|group| group == MASTERS) => {
            refuse(format!("use of {API_CLIENT} signer with {MASTERS} group is not allowed"))
        }
        Ok(_) => Ok(()),
    }
}

pub async fn update(
    app: &App,
    user: &User,
    resource: &Resource,
    subresource: &str,
    object: &Value,
    old: &Value,
) -> Outcome<()> {
    let answered = ["certificate", "conditions"].iter().any(|field| object["status"][field] != old["status"][field]);
    let verb = match subresource {
        "approval" => "approve",
        "status" if answered => "sign",
        _ => return Ok(()),
    };
    let signer = text(old, &["spec", "signerName"]);
    if may(app, user, verb, signer).await? {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(Failure::forbidden(resource.group, resource.plural, text(old, &["metadata", "name"]), why))
}

/// `signers` are no objects: only rules speak of them, one by one or by their domain.
async fn may(app: &App, user: &User, verb: &str, signer: &str) -> Outcome<bool> {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    for name in [signer, &domain] {
        let question = Attributes {
            user,
            verb,
            group: "certificates.k8s.io",
            namespace: "",
            plural: "signers",
            subresource: "",
            name,
            path: "",
        };
        if app.authorizer.decide(&question).await?.allowed {
            return Ok(true);
        }
    }
    Ok(false)
}
