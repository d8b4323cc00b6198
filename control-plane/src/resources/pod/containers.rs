//! A pod's containers: their names, ports, environment, resources, security and probes.

use leme_schema::{names, quantity::Quantity};
use serde_json::Value;

use super::super::{FieldError, field::At};
use super::volumes::validate_mounts;

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const MAX_ID: i64 = 2_147_483_647;
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

pub(super) fn validate_containers(spec: &At<'_>) -> Vec<FieldError> {
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

pub(super) fn validate_ids(context: &At<'_>) -> Vec<FieldError> {
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
