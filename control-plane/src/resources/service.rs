//! Services: types, ports and addresses; what they draw from the shared ranges is in [`allocation`].

mod allocation;

use async_trait::async_trait;
use jiff::Timestamp;
use leme_schema::names;
use serde_json::{Value, json};

use super::{
    Companions, Context, FieldError, NameRule, StorageView, Strategy, age,
    field::{At, items, labels_text, or_none, split_status, text},
    metadata::validate_labels,
};

pub use allocation::repair;

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const POLICIES: &[&str] = &["Cluster", "Local"];
const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameNode", "PreferSameZone"];
const MAX_AFFINITY: i64 = 86_400;
const KUBELET_PORT: i64 = 10_250;

pub(super) struct Service;

#[async_trait]
impl Strategy for Service {
    fn name_rule(&self) -> NameRule {
        NameRule::ServiceLabel
    }

    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
        pair_addresses(object, None);
        default_families(object);
    }

    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        split_status(context.subresource, object, old);
        if context.subresource == Some("status") {
            return;
        }
        drop_with_type(object, old);
        keep_allocated(object, old);
        pair_addresses(object, Some(old));
        default_families(object);
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let spec = At::root(object).at("spec");
        let mut errors = validate_type(&spec);
        errors.extend(validate_ports(&spec));
        errors.extend(validate_labels(&spec.at("selector")));
        errors.extend(validate_affinity(&spec));
        errors.extend(validate_addresses(&spec));
        errors.extend(validate_families(&spec));
        errors.extend(validate_policies(&spec));
        errors
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == Some("status") {
            return validate_balancer_status(object);
        }
        let mut errors = validate_address_change(object, old);
        errors.extend(validate_health_port_change(object, old));
        errors.extend(self.validate_create(context, object));
        errors
    }

    async fn allocate(
        &self,
        context: &Context<'_>,
        view: &dyn StorageView,
        new: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<Companions, Vec<FieldError>> {
        allocation::allocate(context, view, new, old).await
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let metadata = &object["metadata"];
        vec![
            metadata["name"].clone(),
            object["spec"]["type"].clone(),
            or_none(text(object, "/spec/clusterIP")),
            json!(external_addresses(object)),
            json!(ports_text(object)),
            json!(age(metadata.get("creationTimestamp"), now)),
            json!(labels_text(object["spec"].get("selector"))),
        ]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        match path {
            "spec.clusterIP" | "spec.type" => Some(text(object, &format!("/{}", path.replace('.', "/"))).to_owned()),
            _ => None,
        }
    }
}

fn kind(object: &Value) -> &str {
    text(object, "/spec/type")
}

fn needs_address(object: &Value) -> bool {
    matches!(kind(object), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn is_headless(object: &Value) -> bool {
    text(object, "/spec/clusterIP") == "None"
}

/// A LoadBalancer may do without node ports, if it says so.
fn needs_node_ports(object: &Value) -> bool {
    match kind(object) {
        "NodePort" => true,
        "LoadBalancer" => object["spec"]["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true),
        _ => false,
    }
}

fn needs_health_port(object: &Value) -> bool {
    kind(object) == "LoadBalancer" && text(object, "/spec/externalTrafficPolicy") == "Local"
}

fn is_external(object: &Value) -> bool {
    matches!(kind(object), "NodePort" | "LoadBalancer")
        || (kind(object) == "ClusterIP" && !items(object, "/spec/externalIPs").is_empty())
}

/// `clusterIP` and the first of `clusterIPs` are one fact; the one that the writer changed wins.
fn pair_addresses(object: &mut Value, old: Option<&Value>) {
    let single = text(object, "/spec/clusterIP").to_owned();
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let untouched = old.is_none_or(|old| spec.get("clusterIPs") == old["spec"].get("clusterIPs"));
    let changed = old.is_none_or(|old| text(old, "/spec/clusterIP") != single);
    let unset = spec.get("clusterIPs").and_then(Value::as_array).is_none_or(Vec::is_empty);
    match (single.is_empty(), unset) {
        (false, true) => drop(spec.insert("clusterIPs".into(), json!([single]))),
        (false, false) if old.is_some() && changed && untouched => {
            spec.insert("clusterIPs".into(), json!([single]));
        }
        (true, false) if old.is_some() && changed && untouched => drop(spec.remove("clusterIPs")),
        _ => {}
    }
}

/// One family here: IPv4. Headless Services without a selector may point anywhere, so they say both.
fn default_families(object: &mut Value) {
    if !needs_address(object) {
        return;
    }
    let selectorless = object["spec"]["selector"].as_object().is_none_or(|s| s.is_empty());
    let anywhere = is_headless(object) && selectorless;
    let spec = &mut object["spec"];
    if spec.get("ipFamilyPolicy").is_none_or(Value::is_null) {
        let several = items(spec, "/ipFamilies").len() > 1;
        spec["ipFamilyPolicy"] = if anywhere || several { "RequireDualStack" } else { "SingleStack" }.into();
    }
    if items(spec, "/ipFamilies").is_empty() {
        let both = anywhere && text(spec, "/ipFamilyPolicy") != "SingleStack";
        spec["ipFamilies"] = if both { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
    }
}

/// Fields that the new type has no use for go, unless the writer has changed them on purpose.
fn drop_with_type(object: &mut Value, old: &Value) {
    if kind(object) == kind(old) && needs_health_port(object) == needs_health_port(old) {
        return;
    }
    let mut stale: Vec<&str> = Vec::new();
    if needs_address(old) && !needs_address(object) {
        stale.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
    }
    if kind(old) == "ExternalName" && kind(object) != "ExternalName" {
        stale.push("externalName");
    }
    if needs_health_port(old) && !needs_health_port(object) {
        stale.push("healthCheckNodePort");
    }
    if kind(old) == "LoadBalancer" && kind(object) != "LoadBalancer" {
        stale.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if is_external(old) && !is_external(object) {
        stale.push("externalTrafficPolicy");
    }
    let ports_stay = needs_node_ports(object) || !needs_node_ports(old);
    let Some(spec) = object["spec"].as_object_mut() else { return };
    for field in stale {
        if spec.get(field) == old["spec"].get(field) {
            spec.remove(field);
        }
    }
    if !ports_stay {
        let before: Vec<&Value> = items(old, "/spec/ports").iter().map(|p| &p["nodePort"]).collect();
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if before.contains(&&port["nodePort"]) {
                port.as_object_mut().map(|p| p.remove("nodePort"));
            }
        }
    }
}

/// A writer that does not mention what was allocated keeps it.
fn keep_allocated(object: &mut Value, old: &Value) {
    if needs_address(object) && needs_address(old) {
        if text(object, "/spec/clusterIP").is_empty() && items(object, "/spec/clusterIPs").is_empty() {
            for field in ["clusterIP", "clusterIPs"] {
                super::field::restore(&mut object["spec"], &old["spec"], field);
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if object["spec"].get(field).is_none_or(Value::is_null) {
                super::field::restore(&mut object["spec"], &old["spec"], field);
            }
        }
    }
    if needs_node_ports(object) && needs_node_ports(old) {
        keep_node_ports(object, old);
    }
    if needs_health_port(object) && needs_health_port(old) && object["spec"]["healthCheckNodePort"].as_i64().is_none() {
        super::field::restore(&mut object["spec"], &old["spec"], "healthCheckNodePort");
    }
}

fn keep_node_ports(object: &mut Value, old: &Value) {
    let wanted: Vec<i64> = node_ports(object).map(|(_, port)| port).collect();
    for port in object["spec"]["ports"].as_array_mut().into_iter().flatten() {
        let same = |p: &&Value| p["port"] == port["port"] && p["protocol"] == port["protocol"];
        let before = items(old, "/spec/ports").iter().find(same).and_then(|p| p["nodePort"].as_i64());
        if port["nodePort"].as_i64().unwrap_or_default() == 0
            && let Some(before) = before
            && !wanted.contains(&before)
        {
            port["nodePort"] = before.into();
        }
    }
}

/// (protocol, node port) of each port that has one.
fn node_ports(object: &Value) -> impl Iterator<Item = (&str, i64)> {
    let ports = items(object, "/spec/ports").iter();
    ports.filter_map(|p| Some((text(p, "/protocol"), p["nodePort"].as_i64().filter(|n| *n != 0)?)))
}

fn validate_type(spec: &At<'_>) -> Vec<FieldError> {
    let first = spec.at("clusterIPs").items().next().map_or("", |at| at.text());
    let headless_message = |kind: &str| {
        let at = At { path: format!("{}[0]", spec.at("clusterIPs").path), value: &Value::Null };
        at.invalid_value(&"None".into(), format!("may not be set to 'None' for {kind} services"))
    };
    let mut errors = Vec::new();
    let kind = spec.at("type").text();
    if spec.at("ports").is_empty() && first != "None" && kind != "ExternalName" {
        errors.push(spec.at("ports").required(""));
    }
    match kind {
        "LoadBalancer" => {
            if first == "None" {
                errors.push(headless_message(kind));
            }
            for port in spec.at("ports").items().map(|p| p.at("port")).filter(|p| p.int() == Some(KUBELET_PORT)) {
                errors.push(port.invalid("may not expose port 10250 externally since it is used by kubelet"));
            }
        }
        "NodePort" if first == "None" => errors.push(headless_message(kind)),
        "ExternalName" => errors.extend(validate_external_name(spec)),
        _ => {}
    }
    errors
}

fn validate_external_name(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = ["clusterIPs", "ipFamilies", "ipFamilyPolicy"]
        .iter()
        .map(|field| spec.at(field))
        .filter(|at| !at.is_empty())
        .map(|at| at.forbidden("may not be set for ExternalName services"))
        .collect();
    let name = spec.at("externalName");
    match name.text().strip_suffix('.').unwrap_or(name.text()) {
        "" => errors.push(name.required("")),
        host => errors.extend(names::dns1123_subdomain(host).iter().map(|m| name.invalid(m))),
    }
    errors
}

fn validate_ports(spec: &At<'_>) -> Vec<FieldError> {
    let ports = spec.at("ports");
    let several = ports.items().count() > 1;
    let mut errors = Vec::new();
    let mut names_seen: Vec<&str> = Vec::new();
    for port in ports.items() {
        errors.extend(validate_port(&port, several, &mut names_seen));
    }
    errors.extend(spec.at("type").one_of(TYPES));
    let mut taken: Vec<(&str, i64)> = Vec::new();
    let mut served: Vec<(&str, i64)> = Vec::new();
    for port in ports.items() {
        let protocol = port.at("protocol").text();
        let (node, number) = (port.at("nodePort"), port.at("port").int().unwrap_or_default());
        if let Some(chosen) = node.int().filter(|n| *n != 0) {
            if spec.at("type").text() == "ClusterIP" {
                errors.push(node.forbidden("may not be used when `type` is 'ClusterIP'"));
            } else if taken.contains(&(protocol, chosen)) {
                errors.push(node.duplicate());
            }
            taken.push((protocol, chosen));
        }
        if served.contains(&(protocol, number)) {
            errors.push(port.duplicate_value(&json!({
                "Name": "", "Protocol": protocol, "AppProtocol": null, "Port": number, "TargetPort": 0, "NodePort": 0,
            })));
        }
        served.push((protocol, number));
    }
    errors
}

fn validate_port<'a>(port: &At<'a>, named: bool, seen: &mut Vec<&'a str>) -> Vec<FieldError> {
    let (name, target) = (port.at("name"), port.at("targetPort"));
    let mut errors = Vec::new();
    match name.text() {
        "" if named => errors.push(name.required("")),
        "" => {}
        text => {
            errors.extend(name.check(names::dns1123_label));
            if seen.contains(&text) {
                errors.push(name.duplicate());
            }
            seen.push(text);
        }
    }
    errors.extend(port.at("port").port());
    errors.extend(port.at("protocol").one_of(PROTOCOLS));
    match target.value {
        Value::String(_) => errors.extend(target.check(names::port_name)),
        Value::Null => {}
        _ => errors.extend(target.port()),
    }
    if !port.at("appProtocol").is_empty() {
        errors.extend(port.at("appProtocol").check(names::qualified_name));
    }
    errors
}

fn validate_affinity(spec: &At<'_>) -> Vec<FieldError> {
    let (affinity, config) = (spec.at("sessionAffinity"), spec.at("sessionAffinityConfig"));
    let mut errors: Vec<FieldError> = affinity.one_of(&["ClientIP", "None"]).into_iter().collect();
    let timeout = config.down(&["clientIP", "timeoutSeconds"]);
    match affinity.text() {
        "None" if config.is_set() => {
            errors.push(config.forbidden("must not be set when session affinity is None"));
        }
        "ClientIP" if config.is_set() => match timeout.int() {
            None => errors.push(timeout.required("")),
            Some(1..=MAX_AFFINITY) => {}
            Some(_) => {
                errors.push(timeout.invalid(format!("must be greater than 0 and less than {MAX_AFFINITY}")));
            }
        },
        _ => {}
    }
    errors
}

fn validate_addresses(spec: &At<'_>) -> Vec<FieldError> {
    let (single, all) = (spec.at("clusterIP"), spec.at("clusterIPs"));
    let mut errors = Vec::new();
    if all.items().next().is_some_and(|first| first.text() != single.text()) {
        errors.push(all.invalid("first value must match `clusterIP`"));
    }
    if all.items().count() > 2 {
        errors.push(all.invalid("may only hold up to 2 values"));
    }
    for (i, address) in all.items().enumerate() {
        if address.text() == "None" {
            if i > 0 {
                errors.push(address.invalid("'None' must be the first and only value"));
            }
        } else {
            errors.extend(address.check(names::ip));
        }
    }
    errors.extend(spec.at("externalIPs").items().flat_map(|address| address.check(names::ip)));
    errors
}

fn validate_families(spec: &At<'_>) -> Vec<FieldError> {
    let (policy, families) = (spec.at("ipFamilyPolicy"), spec.at("ipFamilies"));
    let mut errors: Vec<FieldError> =
        policy.one_of_if_set(&["PreferDualStack", "RequireDualStack", "SingleStack"]).into_iter().collect();
    let anywhere = spec.at("clusterIP").text() == "None" && spec.at("selector").is_empty();
    for family in families.items() {
        match family.text() {
            "IPv4" => {}
            "IPv6" if anywhere => {}
            "IPv6" => errors.push(family.invalid("not configured on this cluster")),
            _ => errors.push(family.unsupported(&["IPv4", "IPv6"])),
        }
    }
    if policy.text() == "RequireDualStack" && !anywhere {
        errors.push(policy.invalid("this cluster is not configured for dual-stack services"));
    }
    errors
}

fn validate_policies(spec: &At<'_>) -> Vec<FieldError> {
    const ONLY_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";
    let balancer = spec.at("type").text() == "LoadBalancer";
    let object = json!({"spec": spec.value});
    let (external, health) = (spec.at("externalTrafficPolicy"), spec.at("healthCheckNodePort"));
    let mut errors = Vec::new();
    for field in ["loadBalancerSourceRanges", "allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if !balancer && spec.at(field).is_set() && !(spec.at(field).value.is_array() && spec.at(field).is_empty()) {
            errors.push(spec.at(field).forbidden(ONLY_BALANCER));
        }
    }
    errors.extend(spec.at("loadBalancerSourceRanges").items().flat_map(|cidr| cidr.check(names::cidr)));
    match is_external(&object) {
        true => errors.extend(external.one_of(POLICIES)),
        false if !external.is_empty() => {
            errors.push(external.invalid("may only be set for externally-accessible services"));
        }
        false => {}
    }
    if !needs_health_port(&object) && health.int().unwrap_or_default() != 0 {
        errors.push(
            health.invalid("may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"),
        );
    }
    errors.extend(spec.at("internalTrafficPolicy").one_of_if_set(POLICIES));
    errors.extend(spec.at("trafficDistribution").one_of_if_set(DISTRIBUTIONS));
    errors
}

/// Load balancers probe the port they were told: it stays as long as there is one.
fn validate_health_port_change(object: &Value, old: &Value) -> Option<FieldError> {
    let port = At::root(object).down(&["spec", "healthCheckNodePort"]);
    let stays = needs_health_port(object) && needs_health_port(old);
    if stays && port.int().unwrap_or_default() != 0 { port.immutable(old) } else { None }
}

fn validate_balancer_status(object: &Value) -> Vec<FieldError> {
    let ingress = At::root(object).down(&["status", "loadBalancer", "ingress"]);
    if kind(object) != "LoadBalancer" && !ingress.is_empty() {
        return vec![ingress.forbidden("may only be used when `spec.type` is \"LoadBalancer\"")];
    }
    ingress.items().flat_map(|ingress| validate_ingress(&ingress)).collect()
}

fn validate_ingress(ingress: &At<'_>) -> Vec<FieldError> {
    let (address, mode, host) = (ingress.at("ip"), ingress.at("ipMode"), ingress.at("hostname"));
    let mut errors = Vec::new();
    if !address.is_empty() {
        errors.extend(address.check(names::ip));
    }
    match (address.is_empty(), mode.is_set()) {
        (true, true) => errors.push(mode.forbidden("may not be specified when `ip` is not set")),
        (false, false) => errors.push(mode.required("must be specified when `ip` is set")),
        _ => errors.extend(mode.one_of_if_set(&["Proxy", "VIP"])),
    }
    if !host.is_empty() {
        errors.extend(host.check(names::dns1123_subdomain));
        if host.text().parse::<std::net::IpAddr>().is_ok() {
            errors.push(host.invalid("must be a DNS name, not an IP address"));
        }
    }
    errors
}

fn validate_address_change(object: &Value, old: &Value) -> Vec<FieldError> {
    let (now, before) = (items(object, "/spec/clusterIPs"), items(old, "/spec/clusterIPs"));
    let first = At { path: "spec.clusterIPs[0]".into(), value: &object["spec"]["clusterIPs"] };
    match (now.first(), before.first()) {
        _ if !needs_address(object) || !needs_address(old) => Vec::new(),
        (Some(a), Some(b)) if a != b => vec![first.invalid("may not change once set")],
        (None, Some(_)) => vec![first.invalid("primary clusterIP can not be unset")],
        _ => Vec::new(),
    }
}

fn external_addresses(object: &Value) -> String {
    let external: Vec<&str> = items(object, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    let or_none = |all: Vec<&str>| if all.is_empty() { "<none>".to_owned() } else { all.join(",") };
    match kind(object) {
        "ExternalName" => text(object, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let ingress = items(object, "/status/loadBalancer/ingress").iter();
            let mut all: Vec<&str> = ingress
                .map(|i| [text(i, "/ip"), text(i, "/hostname")])
                .flat_map(|pair| pair.into_iter().find(|t| !t.is_empty()))
                .collect();
            all.extend(external);
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ => or_none(external),
    }
}

fn ports_text(object: &Value) -> String {
    let port = |p: &Value| match p["nodePort"].as_i64().unwrap_or_default() {
        0 => format!("{}/{}", p["port"], text(p, "/protocol")),
        node => format!("{}:{node}/{}", p["port"], text(p, "/protocol")),
    };
    let all: Vec<String> = items(object, "/spec/ports").iter().map(port).collect();
    if all.is_empty() { "<none>".to_owned() } else { all.join(",") }
}
