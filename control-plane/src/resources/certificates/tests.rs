use rcgen::{CertificateParams, DnType, KeyPair};

use super::*;
use crate::{auth::NOBODY, resources::by_plural};

fn context(subresource: Option<&'static str>) -> Context<'static> {
    let resource = by_plural("certificates.k8s.io", "v1", "certificatesigningrequests").unwrap();
    Context { resource, user: &NOBODY, now: Timestamp::UNIX_EPOCH, subresource }
}

fn request() -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "people");
    params.distinguished_name.push(DnType::CommonName, "jane");
    let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    STANDARD.encode(pem)
}

fn object() -> Value {
    json!({"metadata": {"name": "jane"}, "spec": {
        "request": request(), "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"],
    }})
}

fn complaints(errors: Vec<FieldError>) -> Vec<String> {
    errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
}

fn created(field: &str, value: Value) -> Vec<String> {
    let mut object = object();
    object["spec"][field] = value;
    complaints(CertificateSigningRequest.validate_create(&context(None), &object))
}

#[test]
fn a_request_is_judged_in_upstreams_words() {
    assert_eq!(created("usages", json!(["client auth"])), Vec::<String>::new());
    for (field, value, want) in [
        ("request", json!("YWJj"), "spec.request: Invalid value: \"YWJj\": PEM block type must be CERTIFICATE REQUEST"),
        ("usages", json!([]), "spec.usages: Required value"),
        ("usages", json!(["any", "any"]), "spec.usages[1]: Duplicate value: \"any\""),
        ("signerName", json!(""), "spec.signerName: Required value"),
        (
            "signerName",
            json!("kubernetes.io/legacy-unknown"),
            "spec.signerName: Invalid value: \"kubernetes.io/legacy-unknown\": the legacy signerName is not allowed via \
             this API version",
        ),
        (
            "signerName",
            json!("example.com"),
            "spec.signerName: Invalid value: \"example.com\": must be a fully qualified domain and path of the form \
             'example.com/signer-name'",
        ),
        (
            "signerName",
            json!("example/signer"),
            "spec.signerName: Invalid value: \"example\": should be a domain with at least two segments separated by dots",
        ),
        (
            "expirationSeconds",
            json!(599),
            "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)",
        ),
    ] {
        assert_eq!(created(field, value.clone()).join("\n"), want, "{field} {value}");
    }
    assert!(
        created("usages", json!(["flying"]))[0].starts_with("spec.usages[0]: Unsupported value: \"flying\": supported")
    );
}

#[test]
fn a_request_that_was_tampered_with_is_refused() {
    let pem = String::from_utf8(STANDARD.decode(request()).unwrap()).unwrap();
    let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
    let mut der = block.contents;
    let at = der.windows(4).position(|four| four == b"jane").unwrap();
    der[at] = b'k';
    let forged =
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", STANDARD.encode(der));
    let found = created("request", STANDARD.encode(forged).into());
    assert!(found[0].contains("signature verification error"), "{found:?}");
}

#[test]
fn who_asks_is_what_was_authenticated_and_not_what_the_request_says() {
    let mut object = object();
    object["spec"]["username"] = "admin".into();
    object["spec"]["groups"] = json!(["system:masters"]);
    object["spec"]["uid"] = "0".into();
    object["status"] = json!({"certificate": "YQ=="});
    let jane = User::authenticated("jane", ["people".to_owned()]);
    let context = Context { user: &jane, ..context(None) };
    CertificateSigningRequest.prepare_create(&context, &mut object);
    assert_eq!(object["spec"]["username"], "jane");
    assert_eq!(object["spec"]["groups"], json!(["people", "system:authenticated"]));
    assert_eq!((object["spec"].get("uid"), &object["status"]), (None, &json!({})));
}

/// What a write through a subresource makes of an object, and what is wrong with it.
fn updated(subresource: Option<&'static str>, old: &Value, status: Value) -> (Value, Vec<String>) {
    let mut new = old.clone();
    new["status"] = status;
    new["spec"]["usages"] = json!(["any"]);
    let context = context(subresource);
    CertificateSigningRequest.prepare_update(&context, &mut new, old);
    let errors = complaints(CertificateSigningRequest.validate_update(&context, &new, old));
    assert_eq!(new["spec"], old["spec"], "what is asked never changes");
    (new, errors)
}

#[test]
fn each_door_lets_its_own_through() {
    let old = object();
    let approved =
        json!({"conditions": [{"type": "Approved", "status": "True", "reason": "r"}], "certificate": "YQ=="});
    let (new, errors) = updated(Some("approval"), &old, approved.clone());
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(new["status"].get("certificate"), None, "approving signs nothing");
    assert_eq!(new["status"]["conditions"][0]["lastUpdateTime"], "1970-01-01T00:00:00Z");
    let (plain, _) = updated(None, &old, approved.clone());
    assert_eq!(plain.get("status"), old.get("status"));
    let (_, errors) = updated(Some("status"), &old, json!({"conditions": approved["conditions"]}));
    assert_eq!(errors, ["status.conditions: Forbidden: updates may not add a condition of type \"Approved\""]);
    let (_, errors) = updated(Some("approval"), &new, json!({}));
    assert_eq!(errors, ["status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""]);
    let both = json!({"conditions": [{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"}]});
    let (_, errors) = updated(Some("approval"), &old, both);
    assert!(errors[0].ends_with("Approved and Denied conditions are mutually exclusive"), "{errors:?}");
}

#[test]
fn a_table_shows_what_came_of_it() {
    for (status, want) in [
        (json!({}), "Pending"),
        (json!({"conditions": [{"type": "Approved"}]}), "Approved"),
        (json!({"conditions": [{"type": "Approved"}], "certificate": "YQ=="}), "Approved,Issued"),
        (json!({"conditions": [{"type": "Approved"}, {"type": "Failed"}]}), "Approved,Failed"),
        (json!({"conditions": [{"type": "Denied"}]}), "Denied"),
    ] {
        let mut object = object();
        object["status"] = status;
        object["spec"]["expirationSeconds"] = 3600.into();
        let cells = CertificateSigningRequest.cells(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(cells[4..], ["60m", want]);
    }
}

#[test]
fn the_groups_of_a_request_are_read() {
    assert_eq!(organizations(&object()).unwrap(), ["people"]);
}
