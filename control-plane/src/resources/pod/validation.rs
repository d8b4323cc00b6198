//! A pod's spec, in upstream's order: volumes, containers, then what concerns the pod as a whole.

use leme_schema::names;

use super::super::{FieldError, field::At, metadata::validate_labels};
use super::{
    containers::{validate_containers, validate_ids},
    scheduling::{validate_affinity, validate_spread, validate_tolerations},
    volumes::validate_volumes,
};

const DNS_POLICIES: &[&str] = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
const MAX_DEADLINE: i64 = 2_147_483_647;

/// Everything that is wrong with a pod's spec, also with a template's.
pub fn validate_spec(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = validate_volumes(&spec.at("volumes"));
    errors.extend(validate_containers(spec));
    errors.extend(spec.at("restartPolicy").one_of(&["Always", "OnFailure", "Never"]));
    errors.extend(validate_dns(spec));
    errors.extend(validate_labels(&spec.at("nodeSelector")));
    errors.extend(validate_ids(&spec.at("securityContext")));
    errors.extend(validate_affinity(&spec.at("affinity")));
    errors.extend(validate_names(spec));
    errors.extend(validate_tolerations(&spec.at("tolerations")));
    errors.extend(validate_spread(&spec.at("topologySpreadConstraints")));
    errors.extend(validate_times(spec));
    errors
}

fn validate_dns(spec: &At<'_>) -> Vec<FieldError> {
    const NAMESERVERS: usize = 3;
    const SEARCHES: usize = 32;
    let (policy, config) = (spec.at("dnsPolicy"), spec.at("dnsConfig"));
    let servers = config.at("nameservers");
    let mut errors: Vec<FieldError> = policy.one_of(DNS_POLICIES).into_iter().collect();
    if policy.text() == "None" && !config.is_set() {
        errors.push(config.required(format!("must provide `dnsConfig` when `dnsPolicy` is {}", policy.text())));
    } else if policy.text() == "None" && servers.is_empty() {
        errors.push(servers.required("must provide at least one DNS nameserver when `dnsPolicy` is None"));
    }
    if servers.items().count() > NAMESERVERS {
        errors.push(servers.invalid(format!("must not have more than {NAMESERVERS} nameservers")));
    }
    errors.extend(servers.items().flat_map(|server| server.check(names::ip)));
    if config.at("searches").items().count() > SEARCHES {
        errors.push(config.at("searches").invalid(format!("must not have more than {SEARCHES} search paths")));
    }
    for option in config.at("options").items().filter(|option| option.at("name").is_empty()) {
        errors.push(option.at("name").required("must not be empty"));
    }
    errors
}

fn validate_names(spec: &At<'_>) -> Vec<FieldError> {
    let label: fn(&str) -> Vec<String> = names::dns1123_label;
    let subdomain: fn(&str) -> Vec<String> = names::dns1123_subdomain;
    [
        ("serviceAccountName", subdomain),
        ("nodeName", subdomain),
        ("hostname", label),
        ("subdomain", label),
        ("priorityClassName", subdomain),
        ("runtimeClassName", subdomain),
    ]
    .into_iter()
    .map(|(field, validator)| (spec.at(field), validator))
    .filter(|(at, _)| !at.is_empty())
    .flat_map(|(at, validator)| at.check(validator))
    .collect()
}

fn validate_times(spec: &At<'_>) -> Vec<FieldError> {
    let deadline = spec.at("activeDeadlineSeconds");
    let mut errors = Vec::new();
    if deadline.int().is_some_and(|seconds| !(1..=MAX_DEADLINE).contains(&seconds)) {
        errors.push(deadline.invalid(format!("must be between 1 and {MAX_DEADLINE}, inclusive")));
    }
    errors.extend(spec.at("terminationGracePeriodSeconds").not_negative());
    errors
}
