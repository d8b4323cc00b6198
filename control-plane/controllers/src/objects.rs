//! What several controllers ask of any object: selectors, owners, template hashes.

use std::{collections::BTreeMap, fmt::Write};

use k8s_openapi::apimachinery::pkg::{
    apis::meta::v1::{LabelSelector, LabelSelectorRequirement, OwnerReference},
    util::intstr::IntOrString,
};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use sha2::{Digest, Sha256};

pub type Labels = BTreeMap<String, String>;

/// An absent selector selects nothing, an empty one everything: upstream's rule.
pub fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().flatten().all(|requirement| meets(requirement, labels))
}

fn meets(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let listed = || value.is_some_and(|value| requirement.values.iter().flatten().any(|wanted| wanted == value));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

/// A Service's selector: all pairs must be there; an empty one selects nothing.
pub fn contains(labels: &Labels, selector: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The owner reference that makes `owner` the controller of something.
pub fn controlled_by<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A short stable name for a value, in the alphabet of upstream's safe names (no vowels, no look-alikes).
pub fn short_hash(value: &impl Serialize, salt: Option<i32>) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut text = serde_json::to_string(value).expect("API types serialize");
    if let Some(salt) = salt {
        write!(text, "{salt}").expect("writing to a string");
    }
    let digest = Sha256::digest(text);
    digest.iter().take(10).map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

/// `25%` of `total`, or the number itself.
pub fn scaled(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent: i32 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent.saturating_mul(total);
            if round_up { product.saturating_add(99) / 100 } else { product / 100 }
        }
        None => 0,
    }
}

pub fn is_deleting<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn selectors_match_as_upstream_defines_them() {
        let selector: LabelSelector = serde_json::from_value(serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "old", "operator": "DoesNotExist"}
            ]
        }))
        .unwrap();
        assert!(selects(&selector, &labels(&[("app", "web"), ("tier", "a")])));
        assert!(!selects(&selector, &labels(&[("app", "web"), ("tier", "c")])));
        assert!(!selects(&selector, &labels(&[("app", "web"), ("tier", "a"), ("old", "")])));
        assert!(selects(&LabelSelector::default(), &labels(&[])), "an empty selector selects everything");
        assert!(!contains(&labels(&[("a", "b")]), &labels(&[])), "a Service without selector selects nothing");
    }

    #[test]
    fn percentages_round_the_way_each_side_needs() {
        let quarter = IntOrString::String("25%".into());
        assert_eq!(scaled(Some(&quarter), 3, true), 1);
        assert_eq!(scaled(Some(&quarter), 3, false), 0);
        assert_eq!(scaled(Some(&IntOrString::Int(2)), 3, false), 2);
    }

    #[test]
    fn hashes_are_stable_and_salted() {
        assert_eq!(short_hash(&"template", None), short_hash(&"template", None));
        assert_ne!(short_hash(&"template", None), short_hash(&"template", Some(1)));
    }
}
