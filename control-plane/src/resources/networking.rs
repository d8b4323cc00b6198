//! IPAddress and ServiceCIDR: what cluster IPs are drawn from, and which are taken.

use std::net::IpAddr;

use jiff::Timestamp;
use leme_schema::names;
use serde_json::{Value, json};

use super::{
    Context, FieldError, NameRule, Strategy, age,
    field::{At, split_status, text},
};

pub(super) struct IpAddress;

impl Strategy for IpAddress {
    fn name_rule(&self) -> NameRule {
        NameRule::Address
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let name = At::root(object).down(&["metadata", "name"]);
        let parent = At::root(object).down(&["spec", "parentRef"]);
        let mut errors = Vec::new();
        if let Ok(address) = name.text().parse::<IpAddr>()
            && address.to_string() != name.text()
        {
            errors.push(name.invalid("must be in canonical form"));
        }
        if !parent.is_set() {
            return errors.into_iter().chain([parent.required("")]).collect();
        }
        if !parent.at("group").is_empty() {
            errors.extend(parent.at("group").check(names::dns1123_subdomain));
        }
        for field in ["resource", "name"] {
            if parent.at(field).is_empty() {
                errors.push(parent.at(field).required(""));
            }
        }
        errors
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        At::root(object).down(&["spec", "parentRef"]).immutable(old).into_iter().collect()
    }

    fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let parent = |field: &str| text(object, &format!("/spec/parentRef/{field}")).to_owned();
        let parts = [parent("group"), parent("resource"), parent("namespace"), parent("name")];
        let named: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        vec![object["metadata"]["name"].clone(), json!(named.join("/"))]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "spec.parentRef.resource").then(|| text(object, "/spec/parentRef/resource").to_owned())
    }
}

pub(super) struct ServiceCidr;

impl Strategy for ServiceCidr {
    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({});
    }

    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        split_status(context.subresource, object, old);
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let cidrs = At::root(object).down(&["spec", "cidrs"]);
        let count = cidrs.items().count();
        if count == 0 {
            return vec![cidrs.required("at least one CIDR required")];
        }
        if count > 2 {
            return vec![cidrs.invalid("may only hold up to 2 values")];
        }
        cidrs.items().flat_map(|cidr| cidr.check(names::cidr)).collect()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors: Vec<FieldError> =
            At::root(object).down(&["spec", "cidrs"]).immutable(old).into_iter().collect();
        errors.extend(self.validate_create(context, object));
        errors
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let metadata = &object["metadata"];
        let cidrs: Vec<&str> =
            object["spec"]["cidrs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        vec![metadata["name"].clone(), json!(cidrs.join(",")), json!(age(metadata.get("creationTimestamp"), now))]
    }
}
