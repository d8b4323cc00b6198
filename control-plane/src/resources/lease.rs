//! Leases: who leads, and until when.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Context, FieldError, Strategy, age, field::At};

const STRATEGIES: &[&str] = &["OldestEmulationVersion"];

pub(super) struct Lease;

impl Strategy for Lease {
    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let spec = At::root(object).at("spec");
        let mut errors = Vec::new();
        let duration = spec.at("leaseDurationSeconds");
        if duration.int().is_some_and(|seconds| seconds <= 0) {
            errors.push(duration.invalid("must be greater than 0"));
        }
        errors.extend(spec.at("leaseTransitions").not_negative());
        errors.extend(spec.at("strategy").one_of_if_set(STRATEGIES));
        if !spec.at("preferredHolder").is_empty() && spec.at("strategy").is_empty() {
            errors.push(spec.at("preferredHolder").forbidden("may only be specified when strategy is set"));
        }
        errors
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        self.validate_create(context, object)
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let metadata = &object["metadata"];
        let holder = object["spec"]["holderIdentity"].as_str().unwrap_or_default();
        vec![metadata["name"].clone(), json!(holder), json!(age(metadata.get("creationTimestamp"), now))]
    }
}
