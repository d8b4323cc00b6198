//! A pod's spec, in upstream's order: volumes, containers, then what concerns the pod as a whole.

use leme_schema::{names, quantity::Quantity};
use serde_json::Value;

use super::super::{FieldError, field::At, metadata::validate_labels};
use super::volumes::{validate_mounts, validate_volumes};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const DNS_POLICIES: &[&str] = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const MAX_ID: i64 = 2_147_483_647;
const MAX_DEADLINE: i64 = 2_147_483_647;
const FIELD_PATHS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];
const HOOKS: &[&str] = &["exec", "httpGet", "tcpSocket", "sleep"];

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

fn validate_containers(spec: &At<'_>) -> Vec<FieldError> {
    let (main, init, volumes) = (spec.at("containers"), spec.at("initContainers"), spec.at("volumes"));
    let mut errors = Vec::new();
    if main.is_empty() {
        errors.push(main.required(""));
    }
    let mut names: Vec<&str> = Vec::new();
    let mut host_ports: Vec<String> = Vec::new();
    for container in main.items() {
        errors.extend(validate_container(&container, &volumes, &mut names));
        errors.extend(validate_host_ports(&container.at("ports"), spec, &mut host_ports));
        errors.extend(validate_probes(&container));
    }
    for container in init.items() {
        errors.extend(validate_container(&container, &volumes, &mut names));
        errors.extend(validate_init(&container));
    }
    errors
}

fn validate_container<'a>(container: &At<'a>, volumes: &At<'_>, seen: &mut Vec<&'a str>) -> Vec<FieldError> {
    let (name, image) = (container.at("name"), container.at("image"));
    let mut errors = Vec::new();
    match name.text() {
        "" => errors.push(name.required("")),
        text => {
            errors.extend(name.check(names::dns1123_label));
            if seen.contains(&text) {
                errors.push(name.duplicate());
            }
            seen.push(text);
        }
    }
    if image.is_empty() {
        errors.push(image.required(""));
    } else if image.text().trim() != image.text() {
        errors.push(image.invalid("must not have leading or trailing whitespace"));
    }
    errors.extend(container.at("terminationMessagePolicy").one_of_if_set(&["FallbackToLogsOnError", "File"]));
    errors.extend(validate_ports(&container.at("ports")));
    errors.extend(validate_env(&container.at("env")));
    errors.extend(validate_env_from(&container.at("envFrom")));
    errors.extend(validate_mounts(&container.at("volumeMounts"), volumes));
    errors.extend(container.at("imagePullPolicy").one_of_if_set(PULL_POLICIES));
    errors.extend(validate_resources(&container.at("resources")));
    errors.extend(validate_security(&container.at("securityContext")));
    errors
}

fn validate_init(container: &At<'_>) -> Vec<FieldError> {
    if container.at("restartPolicy").text() == "Always" {
        return validate_probes(container);
    }
    ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"]
        .iter()
        .map(|field| container.at(field))
        .filter(At::is_set)
        .map(|at| at.forbidden("may not be set for init containers without restartPolicy=Always"))
        .collect()
}

fn validate_ports(ports: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for port in ports.items() {
        let (name, number, host) = (port.at("name"), port.at("containerPort"), port.at("hostPort"));
        if !name.is_empty() {
            errors.extend(name.check(names::port_name));
            if seen.contains(&name.text()) {
                errors.push(name.duplicate());
            }
            seen.push(name.text());
        }
        match number.int().unwrap_or_default() {
            0 => errors.push(number.required("")),
            _ => errors.extend(number.port()),
        }
        if host.int().unwrap_or_default() != 0 {
            errors.extend(host.port());
        }
        errors.extend(port.at("protocol").one_of(PROTOCOLS));
    }
    errors
}

/// Ports on the node: no two alike, and on the host's network they are the container's own.
fn validate_host_ports(ports: &At<'_>, spec: &At<'_>, taken: &mut Vec<String>) -> Vec<FieldError> {
    let host_network = spec.at("hostNetwork").flag();
    let mut errors = Vec::new();
    for port in ports.items() {
        let (number, host) = (port.at("containerPort"), port.at("hostPort"));
        if host_network && host.value != number.value {
            errors.push(number.invalid("must match `hostPort` when `hostNetwork` is true"));
        }
        if let Some(chosen) = host.int().filter(|port| *port != 0) {
            let key = format!("{}/{}/{chosen}", port.at("protocol").text(), port.at("hostIP").text());
            if taken.contains(&key) {
                errors.push(host.duplicate_value(&key.as_str().into()));
            }
            taken.push(key);
        }
    }
    errors
}

fn validate_env(env: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for variable in env.items() {
        let name = variable.at("name");
        match name.text() {
            "" => errors.push(name.required("")),
            _ => errors.extend(name.check(names::env_var_name)),
        }
        if variable.at("valueFrom").is_set() {
            errors.extend(validate_env_source(&variable));
        }
    }
    errors
}

fn validate_env_source(variable: &At<'_>) -> Vec<FieldError> {
    const SOURCES: &[&str] = &["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let from = variable.at("valueFrom");
    let wrong = |message: &str| from.invalid_value(&"".into(), message);
    let mut errors = Vec::new();
    let set: Vec<&str> = SOURCES.iter().copied().filter(|source| from.at(source).is_set()).collect();
    for source in &set {
        let at = from.at(source);
        match *source {
            "fieldRef" => errors.extend(validate_field_path(&at.at("fieldPath"))),
            "resourceFieldRef" => errors.extend(validate_resource_field(&at.at("resource"))),
            "configMapKeyRef" | "secretKeyRef" => errors.extend(validate_key(&at)),
            _ => {}
        }
    }
    match set.len() {
        0 => errors.push(wrong(
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        )),
        _ if !variable.at("value").is_empty() => errors.push(wrong("may not be specified when `value` is not empty")),
        1 => {}
        _ => errors.push(wrong("may not have more than one field specified at a time")),
    }
    errors
}

fn validate_field_path(path: &At<'_>) -> Vec<FieldError> {
    match path.text() {
        "" => vec![path.required("")],
        known if FIELD_PATHS.contains(&known) => Vec::new(),
        map if map.ends_with("']")
            && ["metadata.labels['", "metadata.annotations['"].iter().any(|p| map.starts_with(p)) =>
        {
            Vec::new()
        }
        "metadata.labels" | "metadata.annotations" => vec![path.unsupported(FIELD_PATHS)],
        unknown => {
            vec![path.invalid(format!("error converting fieldPath: field label not supported: {unknown}"))]
        }
    }
}

fn validate_resource_field(resource: &At<'_>) -> Option<FieldError> {
    let huge = |text: &str| text.starts_with("limits.hugepages-") || text.starts_with("requests.hugepages-");
    match resource.text() {
        "" => Some(resource.required("")),
        text => (!RESOURCE_FIELDS.contains(&text) && !huge(text)).then(|| resource.unsupported(RESOURCE_FIELDS)),
    }
}

fn validate_key(source: &At<'_>) -> Vec<FieldError> {
    let key = source.at("key");
    if key.is_empty() { vec![key.required("")] } else { key.check(names::config_map_key) }
}

fn validate_env_from(sources: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for source in sources.items() {
        if !source.at("prefix").is_empty() {
            errors.extend(source.at("prefix").check(names::env_var_name));
        }
        let set: Vec<At<'_>> =
            ["configMapRef", "secretRef"].iter().map(|field| source.at(field)).filter(At::is_set).collect();
        for reference in set.iter().filter(|reference| reference.at("name").is_empty()) {
            errors.push(reference.at("name").required(""));
        }
        match set.len() {
            0 => errors.push(source.invalid_value(&"".into(), "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => errors.push(source.invalid_value(&"".into(), "may not have more than one field specified at a time")),
        }
    }
    errors
}

fn validate_resources(resources: &At<'_>) -> Vec<FieldError> {
    let (limits, requests) = (resources.at("limits"), resources.at("requests"));
    let mut errors: Vec<FieldError> = limits.entries().flat_map(|(name, at)| validate_amount(name, &at)).collect();
    for (name, at) in requests.entries() {
        errors.extend(validate_amount(name, &at));
        let Some(limit) = limits.value.get(name).and_then(Value::as_str) else { continue };
        let exceeds = match (Quantity::parse(at.text()), Quantity::parse(limit)) {
            (Ok(request), Ok(limit)) => request.nano_value() > limit.nano_value(),
            _ => false,
        };
        if exceeds {
            let message = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(requests.invalid_value(at.value, message));
        } else if name.contains('/') && at.text() != limit {
            errors.push(requests.invalid_value(at.value, format!("must be equal to {name} limit of {limit}")));
        }
    }
    errors
}

fn validate_amount(name: &str, at: &At<'_>) -> Vec<FieldError> {
    let named = |message: &str| at.invalid_value(&name.into(), message);
    let mut errors: Vec<FieldError> = names::qualified_name(name).iter().map(|m| named(m)).collect();
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if errors.is_empty() && !standard && !name.contains('/') {
        errors.push(named("must be a standard resource type or fully qualified"));
        errors.push(named("must be a standard resource for containers"));
    }
    if Quantity::parse(at.text()).is_ok_and(|quantity| quantity.nano_value() < 0) {
        errors.push(at.invalid("must be greater than or equal to 0"));
    }
    errors
}

fn validate_security(context: &At<'_>) -> Vec<FieldError> {
    let mut errors = validate_ids(context);
    errors.extend(context.at("procMount").one_of_if_set(&["Default", "Unmasked"]));
    if context.at("allowPrivilegeEscalation").value == false {
        if context.at("privileged").flag() {
            errors.push(context.invalid("cannot set `allowPrivilegeEscalation` to false and `privileged` to true"));
        }
        let mut added = context.down(&["capabilities", "add"]).items();
        if added.any(|capability| capability.text() == "CAP_SYS_ADMIN") {
            errors.push(
                context.invalid("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"),
            );
        }
    }
    errors
}

fn validate_ids(context: &At<'_>) -> Vec<FieldError> {
    let single = ["runAsUser", "runAsGroup", "fsGroup"].map(|field| context.at(field));
    let groups = context.at("supplementalGroups");
    let wrong = |at: &At<'_>| at.int().is_some_and(|id| !(0..=MAX_ID).contains(&id));
    let message = format!("must be between 0 and {MAX_ID}, inclusive");
    single.into_iter().chain(groups.items()).filter(wrong).map(|at| at.invalid(&message)).collect()
}

fn validate_probes(container: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (name, once) in [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)] {
        let probe = container.at(name);
        if !probe.is_set() {
            continue;
        }
        errors.extend(validate_handler(&probe, HANDLERS));
        for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            errors.extend(probe.at(field).not_negative());
        }
        let threshold = probe.at("successThreshold");
        if once && threshold.int().is_some_and(|n| n != 1) {
            errors.push(threshold.invalid("must be 1"));
        }
        let grace = probe.at("terminationGracePeriodSeconds");
        if grace.is_set() && name == "readinessProbe" {
            errors.push(grace.invalid("must not be set for readinessProbes"));
        } else if grace.int().is_some_and(|seconds| seconds <= 0) {
            errors.push(grace.invalid("must be greater than 0"));
        }
    }
    for hook in ["postStart", "preStop"] {
        let at = container.down(&["lifecycle", hook]);
        if at.is_set() {
            errors.extend(validate_handler(&at, HOOKS));
        }
    }
    errors
}

fn validate_handler(at: &At<'_>, kinds: &[&str]) -> Vec<FieldError> {
    let mut set = kinds.iter().filter(|kind| at.at(kind).is_set());
    let Some(kind) = set.next() else { return vec![at.required("must specify a handler type")] };
    let handler = at.at(kind);
    let mut errors = Vec::new();
    match *kind {
        "exec" if handler.at("command").is_empty() => errors.push(handler.at("command").required("")),
        "httpGet" => {
            if handler.at("path").is_empty() {
                errors.push(handler.at("path").required(""));
            }
            errors.extend(validate_port_reference(&handler.at("port")));
            errors.extend(handler.at("scheme").one_of(&["HTTP", "HTTPS"]));
        }
        "tcpSocket" => errors.extend(validate_port_reference(&handler.at("port"))),
        "grpc" => errors.extend(handler.at("port").port()),
        _ => {}
    }
    if let Some(other) = set.next() {
        errors.push(at.at(other).forbidden("may not specify more than 1 handler type"));
    }
    errors
}

/// A number, or the name of one of the container's ports.
fn validate_port_reference(port: &At<'_>) -> Vec<FieldError> {
    match port.value {
        Value::String(_) => port.check(names::port_name),
        _ => port.port().into_iter().collect(),
    }
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

pub(super) fn validate_tolerations(tolerations: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for toleration in tolerations.items() {
        let part = |field: &str| toleration.at(field);
        let (key, operator, value, effect) = (part("key"), part("operator"), part("value"), part("effect"));
        if !key.is_empty() {
            errors.extend(key.check(names::qualified_name));
        } else if operator.text() != "Exists" {
            errors.push(operator.invalid_value(
                &operator.text().into(),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if part("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
            let shown = effect.text().into();
            errors.push(effect.invalid_value(&shown, "effect must be 'NoExecute' when `tolerationSeconds` is set"));
        }
        match operator.text() {
            "" | "Equal" => errors.extend(value.check(names::label_value)),
            "Exists" if !value.is_empty() => {
                errors.push(operator.invalid_value(value.value, "value must be empty when `operator` is 'Exists'"));
            }
            "Exists" => {}
            _ => errors.push(operator.unsupported(&["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            errors.extend(effect.one_of(EFFECTS));
        }
    }
    errors
}

fn validate_affinity(affinity: &At<'_>) -> Vec<FieldError> {
    let node = affinity.at("nodeAffinity");
    let required = node.at("requiredDuringSchedulingIgnoredDuringExecution");
    let terms = required.at("nodeSelectorTerms");
    let mut errors = Vec::new();
    if required.is_set() && terms.is_empty() {
        errors.push(terms.required("must have at least one node selector term"));
    }
    errors.extend(terms.items().flat_map(|term| validate_node_term(&term)));
    for preferred in node.at("preferredDuringSchedulingIgnoredDuringExecution").items() {
        errors.extend(validate_weight(&preferred.at("weight")));
        errors.extend(validate_node_term(&preferred.at("preference")));
    }
    for kind in ["podAffinity", "podAntiAffinity"].map(|kind| affinity.at(kind)) {
        for term in kind.at("requiredDuringSchedulingIgnoredDuringExecution").items() {
            errors.extend(validate_pod_term(&term));
        }
        for preferred in kind.at("preferredDuringSchedulingIgnoredDuringExecution").items() {
            errors.extend(validate_weight(&preferred.at("weight")));
            errors.extend(validate_pod_term(&preferred.at("podAffinityTerm")));
        }
    }
    errors
}

fn validate_weight(weight: &At<'_>) -> Option<FieldError> {
    let fine = weight.int().is_some_and(|w| (1..=100).contains(&w));
    (!fine).then(|| weight.invalid_value(&weight.int().unwrap_or_default().into(), "must be in the range 1-100"))
}

fn validate_pod_term(term: &At<'_>) -> Vec<FieldError> {
    let key = term.at("topologyKey");
    let mut errors = super::super::apps::validate_selector(&term.at("labelSelector"));
    match key.text() {
        "" => errors.push(key.required("can not be empty")),
        _ => errors.extend(key.check(names::qualified_name)),
    }
    errors
}

fn validate_node_term(term: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for expression in term.at("matchExpressions").items() {
        let (operator, values) = (expression.at("operator"), expression.at("values"));
        let count = values.items().count();
        match operator.text() {
            "In" | "NotIn" if count == 0 => {
                errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if count > 0 => {
                errors.push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "Gt" | "Lt" if count != 1 => {
                errors.push(values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => errors.push(operator.invalid("not a valid selector operator")),
        }
        errors.extend(expression.at("key").check(names::qualified_name));
    }
    errors
}

fn validate_spread(constraints: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for constraint in constraints.items() {
        let (skew, key) = (constraint.at("maxSkew"), constraint.at("topologyKey"));
        if skew.int().unwrap_or_default() <= 0 {
            errors.push(skew.invalid_value(&skew.int().unwrap_or_default().into(), "must be greater than zero"));
        }
        if key.is_empty() {
            errors.push(key.required("can not be empty"));
        }
        errors.extend(constraint.at("whenUnsatisfiable").one_of(&["DoNotSchedule", "ScheduleAnyway"]));
        errors.extend(super::super::apps::validate_selector(&constraint.at("labelSelector")));
    }
    errors
}
