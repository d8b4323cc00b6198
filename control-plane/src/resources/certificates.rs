//! Certificate signing requests: what is asked never changes, who asks is filled in by the server, and approval and
//! status are written apart, each through its own subresource.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use leme_schema::names;
use serde_json::{Value, json};
use x509_parser::{
    certification_request::X509CertificationRequest,
    pem::{Pem, parse_x509_pem},
    prelude::FromDer,
};

use super::{
    Context, FieldError, NameRule, Strategy, age,
    field::{At, int, items, or_none, restore, split_status, text},
    human_duration,
};
use crate::{api::create::timestamp, auth::User};

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const STATUSES: &[&str] = &["False", "True", "Unknown"];
/// Conditions that are decisions: once there, they stay.
const DECISIONS: &[&str] = &["Approved", "Denied", "Failed"];
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const SHORTEST: i64 = 600;

pub(super) struct CertificateSigningRequest;

impl Strategy for CertificateSigningRequest {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        sign_with_name(context.user, object);
        object["status"] = json!({});
    }

    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        restore(object, old, "spec");
        match context.subresource {
            None => split_status(None, object, old),
            Some(subresource) => {
                if subresource == "approval" && object["status"].is_object() {
                    restore(&mut object["status"], &old["status"], "certificate");
                }
                date_conditions(context.now, object, old);
            }
        }
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let root = At::root(object);
        let mut errors = validate_spec(&root.at("spec"));
        errors.extend(validate_conditions(&root.down(&["status", "conditions"])));
        let certificate = root.down(&["status", "certificate"]);
        if let Some(Err(why)) = (!certificate.is_empty()).then(|| check_certificate(certificate.text())) {
            errors.push(certificate.invalid_value(&"<certificate data>".into(), why));
        }
        errors
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate_create(context, object);
        let status = At::root(object).at("status");
        let (conditions, certificate) = (status.at("conditions"), status.at("certificate"));
        for kind in DECISIONS.iter().filter(|kind| decision(object, kind).is_none() && decision(old, kind).is_some()) {
            errors.push(conditions.forbidden(format!("updates may not remove a condition of type {kind:?}")));
        }
        if certificate.text() != text(old, "/status/certificate") {
            if context.subresource != Some("status") {
                errors.push(certificate.forbidden("updates may not set certificate content"));
            }
            if !text(old, "/status/certificate").is_empty() {
                errors.push(certificate.forbidden("updates may not modify existing certificate content"));
            }
        }
        if context.subresource != Some("approval") {
            errors.extend(DECISIONS[..2].iter().filter_map(|kind| undecided(&conditions, kind, object, old)));
        }
        errors
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let metadata = &object["metadata"];
        let duration = match int(object, "/spec/expirationSeconds") {
            0 => "<none>".to_owned(),
            seconds => human_duration(seconds),
        };
        vec![
            metadata["name"].clone(),
            json!(age(metadata.get("creationTimestamp"), now)),
            or_none(text(object, "/spec/signerName")),
            json!(text(object, "/spec/username")),
            json!(duration),
            json!(outcome(object)),
        ]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "spec.signerName").then(|| text(object, "/spec/signerName").to_owned())
    }
}

/// Whoever sends a request signs it with the name that was authenticated, whatever the request says.
fn sign_with_name(user: &User, object: &mut Value) {
    if !object["spec"].is_object() {
        object["spec"] = json!({});
    }
    let Some(spec) = object["spec"].as_object_mut() else { return };
    let own = [
        ("username", json!(user.name), user.name.is_empty()),
        ("uid", json!(user.uid), user.uid.is_empty()),
        ("groups", json!(user.groups), user.groups.is_empty()),
        ("extra", json!(user.extra), user.extra.is_empty()),
    ];
    for (field, value, absent) in own {
        match absent {
            true => spec.remove(field),
            false => spec.insert(field.to_owned(), value),
        };
    }
}

/// Times that the writer left out: now, or when the same state was reached before.
fn date_conditions(now: Timestamp, object: &mut Value, old: &Value) {
    let Some(conditions) = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut) else { return };
    for condition in conditions {
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = timestamp(now).into();
        }
        if condition["lastTransitionTime"].is_null() {
            let same = |c: &&Value| c["type"] == condition["type"] && c["status"] == condition["status"];
            let before = items(old, "/status/conditions").iter().find(same).map(|c| c["lastTransitionTime"].clone());
            let since = before.filter(Value::is_string).unwrap_or_else(|| timestamp(now).into());
            condition["lastTransitionTime"] = since;
        }
    }
}

fn validate_spec(spec: &At<'_>) -> Vec<FieldError> {
    let (request, usages) = (spec.at("request"), spec.at("usages"));
    let mut errors = Vec::new();
    if let Err(why) = check_request(request.text()) {
        errors.push(request.invalid(why));
    }
    if usages.is_empty() {
        errors.push(usages.required(""));
    }
    let mut seen = Vec::new();
    for usage in usages.items() {
        errors.extend((!USAGES.contains(&usage.text())).then(|| usage.unsupported(USAGES)));
        errors.extend(seen.contains(&usage.text()).then(|| usage.duplicate()));
        seen.push(usage.text());
    }
    errors.extend(validate_signer(&spec.at("signerName")));
    let seconds = spec.at("expirationSeconds");
    if seconds.int().is_some_and(|seconds| seconds < SHORTEST) {
        errors.push(seconds.invalid("may not specify a duration less than 600 seconds (10 minutes)"));
    }
    errors
}

fn validate_signer(signer: &At<'_>) -> Vec<FieldError> {
    let (domain, path) = match signer.text().split('/').collect::<Vec<_>>()[..] {
        [""] => return vec![signer.required("")],
        _ if signer.text() == LEGACY_SIGNER => {
            return vec![signer.invalid("the legacy signerName is not allowed via this API version")];
        }
        [domain, path] => (domain, path),
        _ => {
            let form = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            return vec![signer.invalid(form)];
        }
    };
    let mut errors = Vec::new();
    if domain.len() > 253 {
        errors.push(signer.too_long(253));
    }
    let mut judge = |text: &str, rule: fn(&str) -> Vec<String>| {
        let bad = text.split('.').map(|label| (label, rule(label))).find(|(_, complaints)| !complaints.is_empty());
        for (label, complaint) in bad.iter().flat_map(|(label, complaints)| complaints.iter().map(move |c| (label, c)))
        {
            let why = format!("validating label {label:?}: {complaint}");
            errors.push(signer.invalid_value(&text.into(), why));
        }
    };
    judge(domain, names::dns1123_label);
    judge(path, names::dns1123_subdomain);
    if !domain.contains('.') {
        errors.push(
            signer.invalid_value(&domain.into(), "should be a domain with at least two segments separated by dots"),
        );
    }
    if signer.text().len() > 571 {
        errors.push(signer.too_long(571));
    }
    errors
}

fn validate_conditions(conditions: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for condition in conditions.items() {
        let (kind, status) = (condition.at("type"), condition.at("status"));
        let allowed = if DECISIONS.contains(&kind.text()) { &["True"] } else { STATUSES };
        errors.extend(kind.is_empty().then(|| kind.required("")));
        errors.extend(status.one_of(allowed));
        errors.extend(seen.contains(&kind.text()).then(|| kind.duplicate()));
        seen.push(kind.text());
        let other = match kind.text() {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => continue,
        };
        if seen.contains(&other) {
            errors.push(kind.invalid("Approved and Denied conditions are mutually exclusive"));
        }
    }
    errors
}

fn decision<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    items(object, "/status/conditions").iter().find(|condition| condition["type"] == kind)
}

/// Outside of `approval` nobody approves or denies, or rewrites how it was done.
fn undecided(conditions: &At<'_>, kind: &str, object: &Value, old: &Value) -> Option<FieldError> {
    let deed = match (decision(object, kind), decision(old, kind)) {
        (Some(_), None) => "add",
        (Some(new), Some(old)) if new != old => "modify",
        _ => return None,
    };
    Some(conditions.forbidden(format!("updates may not {deed} a condition of type {kind:?}")))
}

/// `Approved,Issued`
fn outcome(object: &Value) -> String {
    let mut words = vec![match (decision(object, "Denied"), decision(object, "Approved")) {
        (Some(_), _) => "Denied",
        (None, Some(_)) => "Approved",
        (None, None) => "Pending",
    }];
    if decision(object, "Failed").is_some() {
        words.push("Failed");
    }
    if !text(object, "/status/certificate").is_empty() {
        words.push("Issued");
    }
    words.join(",")
}

/// The groups that a request asks for.
pub fn organizations(object: &Value) -> Result<Vec<String>, String> {
    let pem = request_block(text(object, "/spec/request"))?;
    let request = parse(&pem)?;
    let subject = &request.certification_request_info.subject;
    Ok(subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect())
}

fn check_request(encoded: &str) -> Result<(), String> {
    let pem = request_block(encoded)?;
    parse(&pem)?.verify_signature().map_err(|error| error.to_string())
}

fn request_block(encoded: &str) -> Result<Pem, String> {
    let block = STANDARD.decode(encoded).ok().and_then(|bytes| Some(parse_x509_pem(&bytes).ok()?.1));
    block
        .filter(|pem| pem.label == "CERTIFICATE REQUEST")
        .ok_or_else(|| "PEM block type must be CERTIFICATE REQUEST".to_owned())
}

fn parse(pem: &Pem) -> Result<X509CertificationRequest<'_>, String> {
    X509CertificationRequest::from_der(&pem.contents).map(|(_, request)| request).map_err(|error| error.to_string())
}

/// One or more certificates in PEM, and no other block.
fn check_certificate(encoded: &str) -> Result<(), String> {
    let bytes = STANDARD.decode(encoded).map_err(|error| error.to_string())?;
    let blocks: Vec<Pem> =
        Pem::iter_from_buffer(&bytes).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if blocks.is_empty() {
        return Err("must contain at least one CERTIFICATE PEM block".into());
    }
    for block in blocks {
        if block.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
        }
        block.parse_x509().map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
