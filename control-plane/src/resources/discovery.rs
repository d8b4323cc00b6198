//! Endpoints and EndpointSlices: where a Service's pods are.

use std::net::IpAddr;

use jiff::Timestamp;
use leme_schema::names;
use serde_json::{Value, json};

use super::{
    Context, FieldError, Strategy, age,
    field::{At, bump_generation, items, set_generation, text},
};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const ADDRESS_TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20_000;
const MAX_ADDRESSES: usize = 100;
/// How many of them a table shows before it says that there are more.
const SHOWN: usize = 3;

pub(super) struct Endpoints;

impl Strategy for Endpoints {
    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        At::root(object).at("subsets").items().flat_map(|subset| validate_subset(&subset)).collect()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        self.validate_create(context, object)
    }

    fn warnings(&self, _context: &Context<'_>, _object: &Value) -> Vec<String> {
        vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let metadata = &object["metadata"];
        let created = metadata.get("creationTimestamp");
        vec![metadata["name"].clone(), json!(ready_endpoints(object)), json!(age(created, now))]
    }
}

fn validate_subset(subset: &At<'_>) -> Vec<FieldError> {
    let (ready, waiting) = (subset.at("addresses"), subset.at("notReadyAddresses"));
    let mut errors = Vec::new();
    if ready.is_empty() && waiting.is_empty() {
        errors.push(subset.required("must specify `addresses` or `notReadyAddresses`"));
    }
    for address in ready.items().chain(waiting.items()) {
        errors.extend(validate_address(&address.at("ip")));
        if !address.at("hostname").is_empty() {
            errors.extend(address.at("hostname").check(names::dns1123_label));
        }
    }
    let ports = subset.at("ports");
    let several = ports.items().count() > 1;
    for port in ports.items() {
        match port.at("name").text() {
            "" if several => errors.push(port.at("name").required("")),
            "" => {}
            _ => errors.extend(port.at("name").check(names::dns1123_label)),
        }
        errors.extend(port.at("port").port());
        errors.extend(port.at("protocol").one_of(PROTOCOLS));
    }
    errors
}

/// An endpoint may not be a node's own or the link's.
fn validate_address(at: &At<'_>) -> Vec<FieldError> {
    let Ok(address) = at.text().parse::<IpAddr>() else { return at.check(names::ip) };
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    };
    let link_multicast = matches!(address, IpAddr::V4(v4) if v4.octets()[..3] == [224, 0, 0]);
    [
        (address.is_unspecified(), format!("may not be unspecified ({address})")),
        (address.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (link_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()),
    ]
    .into_iter()
    .filter(|(wrong, _)| *wrong)
    .map(|(_, message)| at.invalid(message))
    .collect()
}

fn ready_endpoints(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in items(object, "/subsets") {
        let addresses = items(subset, "/addresses").iter().map(|a| text(a, "/ip"));
        match items(subset, "/ports") {
            [] => all.extend(addresses.map(str::to_owned)),
            ports => {
                for address in addresses {
                    all.extend(ports.iter().map(|port| join(address, port["port"].as_u64().unwrap_or_default())));
                }
            }
        }
    }
    shorten(&all, ",", " + ", " more...", "<none>")
}

fn join(address: &str, port: u64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// The first few, and how many more there are.
fn shorten(all: &[String], separator: &str, before: &str, after: &str, none: &str) -> String {
    match all.len() {
        0 => none.to_owned(),
        n if n > SHOWN => format!("{}{before}{}{after}", all[..SHOWN].join(separator), n - SHOWN),
        _ => all.join(separator),
    }
}

pub(super) struct EndpointSlice;

impl Strategy for EndpointSlice {
    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        set_generation(object, 1);
    }

    fn prepare_update(&self, _context: &Context<'_>, object: &mut Value, old: &Value) {
        bump_generation(object, old, &["addressType", "endpoints", "ports"]);
    }

    fn validate_create(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let root = At::root(object);
        let kind = root.at("addressType");
        let mut errors: Vec<FieldError> = kind.one_of(ADDRESS_TYPES).into_iter().collect();
        errors.extend(validate_endpoints(&root.at("endpoints"), kind.text()));
        errors.extend(validate_slice_ports(&root.at("ports")));
        errors
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate_create(context, object);
        errors.extend(At::root(object).at("addressType").immutable(old));
        errors
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let metadata = &object["metadata"];
        let ports: Vec<String> = items(object, "/ports")
            .iter()
            .map(|p| p["port"].as_u64().map_or("*".to_owned(), |port| port.to_string()))
            .collect();
        let addresses: Vec<String> = items(object, "/endpoints")
            .iter()
            .flat_map(|e| items(e, "/addresses"))
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        vec![
            metadata["name"].clone(),
            object["addressType"].clone(),
            json!(shorten(&ports, ",", " + ", " more...", "<unset>")),
            json!(shorten(&addresses, ",", " + ", " more...", "<unset>")),
            json!(age(metadata.get("creationTimestamp"), now)),
        ]
    }
}

fn validate_endpoints(endpoints: &At<'_>, kind: &str) -> Vec<FieldError> {
    let count = endpoints.items().count();
    if count > MAX_ENDPOINTS {
        return vec![endpoints.too_many(count, MAX_ENDPOINTS)];
    }
    endpoints.items().flat_map(|endpoint| validate_endpoint(&endpoint, kind)).collect()
}

fn validate_endpoint(endpoint: &At<'_>, kind: &str) -> Vec<FieldError> {
    let addresses = endpoint.at("addresses");
    let count = addresses.items().count();
    let mut errors = Vec::new();
    match count {
        0 => errors.push(addresses.required("must contain at least 1 address")),
        n if n > MAX_ADDRESSES => errors.push(addresses.too_many(n, MAX_ADDRESSES)),
        _ => {}
    }
    for address in addresses.items() {
        let parsed = address.text().parse::<IpAddr>();
        match (kind, parsed) {
            ("FQDN", _) => errors.extend(address.check(names::dns1123_subdomain)),
            ("IPv4", Ok(IpAddr::V6(_))) => errors.push(address.invalid("must be an IPv4 address")),
            ("IPv6", Ok(IpAddr::V4(_))) => errors.push(address.invalid("must be an IPv6 address")),
            ("IPv4" | "IPv6", _) => errors.extend(validate_address(&address)),
            _ => {}
        }
    }
    if !endpoint.at("nodeName").is_empty() {
        errors.extend(endpoint.at("nodeName").check(names::dns1123_subdomain));
    }
    if !endpoint.at("hostname").is_empty() {
        errors.extend(endpoint.at("hostname").check(names::dns1123_label));
    }
    errors
}

fn validate_slice_ports(ports: &At<'_>) -> Vec<FieldError> {
    let count = ports.items().count();
    if count > MAX_PORTS {
        return vec![ports.too_many(count, MAX_PORTS)];
    }
    let mut errors = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for port in ports.items() {
        let name = port.at("name");
        if !name.is_empty() {
            errors.extend(name.check(names::dns1123_label));
        }
        if seen.contains(&name.text()) {
            errors.push(name.duplicate_value(&name.text().into()));
        }
        seen.push(name.text());
        if port.at("port").is_set() {
            errors.extend(port.at("port").port());
        }
        errors.extend(port.at("protocol").one_of(PROTOCOLS));
        if !port.at("appProtocol").is_empty() {
            errors.extend(port.at("appProtocol").check(names::qualified_name));
        }
    }
    errors
}
