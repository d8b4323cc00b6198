//! ServiceAccounts: nothing beyond what every kind has.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Strategy, age};

pub(super) struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let metadata = &object["metadata"];
        vec![metadata["name"].clone(), json!(age(metadata.get("creationTimestamp"), now))]
    }
}
