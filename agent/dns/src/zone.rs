//! The cluster domain as a pure function: what is known of Services and EndpointSlices, and a question, make an answer.
//!
//! Kubernetes DNS specification 1.1. Fed by `cluster`, asked by `server`; never does IO and knows nothing of messages,
//! transports or other zones. Objects are kept in the few bytes that answers need.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
};

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, CNAME, PTR, SOA, SRV, TXT},
};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};

/// Seconds that a resolver may keep an answer, as CoreDNS has it.
pub const TTL: u32 = 5;
/// The version of the specification, told at `dns-version.<domain>`.
const SPECIFICATION: &str = "1.1.0";
/// The label that ties an EndpointSlice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: Box<str>,
    pub name: Box<str>,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

#[derive(Debug, Default)]
struct Service {
    addresses: Box<[Ipv4Addr]>,
    headless: bool,
    external_name: Option<Box<str>>,
    publish_not_ready: bool,
    ports: Box<[Port]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    name: Box<str>,
    protocol: Protocol,
    number: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Default)]
struct Slice {
    ports: Box<[Port]>,
    endpoints: Box<[Endpoint]>,
}

#[derive(Debug)]
struct Endpoint {
    address: Ipv4Addr,
    ready: bool,
    hostname: Option<Box<str>>,
}

impl Endpoint {
    /// The pod's hostname where its Service governs it, else its address with dashes.
    fn label(&self) -> String {
        self.hostname.as_deref().map_or_else(|| self.address.to_string().replace('.', "-"), str::to_owned)
    }
}

/// What a question about this zone comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Records, and others that save the client a question.
    Found {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// The name exists without records of the type.
    NoData,
    NoSuchName,
    /// Not a name of the cluster domain, nor an address that the cluster gave a name.
    Elsewhere,
}

impl From<Vec<Record>> for Answer {
    fn from(answers: Vec<Record>) -> Self {
        match answers.is_empty() {
            true => Self::NoData,
            false => Self::Found { answers, additionals: Vec::new() },
        }
    }
}

#[derive(Debug)]
pub struct Zone {
    /// Lower case, with dots at both ends: `.cluster.local.`
    suffix: String,
    services: HashMap<Box<str>, BTreeMap<Box<str>, Service>>,
    slices: HashMap<Key, BTreeMap<Box<str>, Slice>>,
    owners: HashMap<Key, Box<str>>,
    by_address: HashMap<Ipv4Addr, Key>,
}

impl Zone {
    pub fn new(domain: &str) -> Self {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        Self {
            suffix: format!(".{domain}."),
            services: HashMap::new(),
            slices: HashMap::new(),
            owners: HashMap::new(),
            by_address: HashMap::new(),
        }
    }

    pub fn upsert_service(&mut self, object: &core::Service) {
        let key = key(&object.metadata);
        self.delete_service(&key);
        let service = read_service(object);
        self.by_address.extend(service.addresses.iter().map(|address| (*address, key.clone())));
        self.services.entry(key.namespace).or_default().insert(key.name, service);
    }

    pub fn delete_service(&mut self, key: &Key) {
        let Some(namespace) = self.services.get_mut(&key.namespace) else { return };
        let Some(service) = namespace.remove(&key.name) else { return };
        if namespace.is_empty() {
            self.services.remove(&key.namespace);
        }
        for address in &service.addresses {
            // The address may be another Service's by now: events of different objects come in any order.
            if self.by_address.get(address) == Some(key) {
                self.by_address.remove(address);
            }
        }
    }

    pub fn upsert_slice(&mut self, object: &discovery::EndpointSlice) {
        let key = key(&object.metadata);
        self.delete_slice(&key);
        let Some(service) = object.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) else { return };
        let owner = Key { namespace: key.namespace.clone(), name: service.as_str().into() };
        self.slices.entry(owner).or_default().insert(key.name.clone(), read_slice(object));
        self.owners.insert(key, service.as_str().into());
    }

    pub fn delete_slice(&mut self, key: &Key) {
        let Some(service) = self.owners.remove(key) else { return };
        let owner = Key { namespace: key.namespace.clone(), name: service };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(&key.name);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
    }

    /// Whether the zone has the say over a name, before anything is known of the cluster too.
    pub fn owns(&self, name: &Name) -> bool {
        self.relative(name).is_some()
    }

    /// The record that says how long a negative answer may be kept.
    pub fn soa(&self) -> Record {
        let authority = self.absolute(&["ns", "dns"]);
        let mailbox = self.absolute(&["hostmaster"]);
        let soa = SOA::new(authority, mailbox, 1, 7200, 1800, 86400, TTL);
        Record::from_rdata(self.absolute(&[]), TTL, RData::SOA(soa))
    }

    pub fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        if let Some(address) = reverse_address(name) {
            return self.pointers(name, address, kind);
        }
        let Some(relative) = self.relative(name) else { return Answer::Elsewhere };
        let labels: Vec<&str> = relative.split('.').filter(|label| !label.is_empty()).collect();
        match labels.as_slice() {
            [] if kind == RecordType::SOA => vec![self.soa()].into(),
            [] | ["svc"] | ["pod"] | [_, "pod"] => Answer::NoData,
            ["dns-version"] => self.version(name, kind),
            [dashed, _, "pod"] => pod(name, dashed, kind),
            [namespace, "svc"] => exists(self.services.contains_key(*namespace)),
            [rest @ .., service, namespace, "svc"] => self.service(name, kind, rest, &Key::new(namespace, service)),
            _ => Answer::NoSuchName,
        }
    }

    /// The part of a name in front of the domain, in lower case; nothing if it is not in the domain.
    fn relative(&self, name: &Name) -> Option<String> {
        let name = format!(".{}", name.to_ascii().to_ascii_lowercase());
        let name = if name.ends_with('.') { name } else { format!("{name}.") };
        name.strip_suffix(&self.suffix).map(str::to_owned)
    }

    fn absolute(&self, labels: &[&str]) -> Name {
        let mut text = labels.join(".");
        text.push_str(if labels.is_empty() { &self.suffix[1..] } else { &self.suffix });
        // Labels come from validated object names; one that is not a name has no record to give.
        Name::from_ascii(text).unwrap_or_default()
    }

    fn name_of(&self, key: &Key) -> Name {
        self.absolute(&[&key.name, &key.namespace, "svc"])
    }

    fn version(&self, name: &Name, kind: RecordType) -> Answer {
        let text = || RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]));
        only(kind == RecordType::TXT, || vec![record(name, text())])
    }

    fn service(&self, name: &Name, kind: RecordType, rest: &[&str], key: &Key) -> Answer {
        let Some(service) = self.services.get(&key.namespace).and_then(|named| named.get(&key.name)) else {
            return Answer::NoSuchName;
        };
        if let Some(target) = &service.external_name {
            return external(name, target, rest);
        }
        match rest {
            [] if service.headless => self.headless(name, kind, service, key, |_| true),
            [] => self.cluster_ip(name, kind, service, key),
            [hostname] if is_protocol(hostname) => exists(self.has_protocol(service, key, hostname)),
            [hostname] if service.headless => self.headless(name, kind, service, key, |label| label == *hostname),
            [port, protocol] => self.ports(name, kind, service, key, port, protocol),
            _ => Answer::NoSuchName,
        }
    }

    fn cluster_ip(&self, name: &Name, kind: RecordType, service: &Service, key: &Key) -> Answer {
        match kind {
            RecordType::A => addresses(name, service.addresses.iter()).into(),
            RecordType::SRV => self.service_records(name, service, key, |_| true),
            _ => Answer::NoData,
        }
    }

    /// Without an endpoint that is ready, the name does not exist (specification, 2.4.1).
    fn headless(
        &self,
        name: &Name,
        kind: RecordType,
        service: &Service,
        key: &Key,
        is_meant: impl Fn(&str) -> bool,
    ) -> Answer {
        let meant: Vec<Ipv4Addr> =
            self.endpoints(service, key).filter(|e| is_meant(&e.label())).map(|e| e.address).collect();
        match kind {
            _ if meant.is_empty() => Answer::NoSuchName,
            RecordType::A => addresses(name, meant.iter()).into(),
            RecordType::SRV if name.num_labels() == self.name_of(key).num_labels() => {
                self.service_records(name, service, key, |_| true)
            }
            _ => Answer::NoData,
        }
    }

    fn ports(&self, name: &Name, kind: RecordType, service: &Service, key: &Key, port: &str, protocol: &str) -> Answer {
        let (Some(port), Some(protocol)) = (port.strip_prefix('_'), parse_protocol(protocol)) else {
            return Answer::NoSuchName;
        };
        match self.service_records(name, service, key, |p| *p.name == *port && p.protocol == protocol) {
            Answer::NoData => Answer::NoSuchName,
            found if kind == RecordType::SRV => found,
            _ => Answer::NoData,
        }
    }

    /// One record per port of a Service with an address, one per port and endpoint of a headless one.
    fn service_records(&self, name: &Name, service: &Service, key: &Key, is_meant: impl Fn(&Port) -> bool) -> Answer {
        let named = |port: &&Port| !port.name.is_empty() && is_meant(port);
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        let mut add = |port: u16, target: Name, at: &[Ipv4Addr]| {
            answers.push(record(name, RData::SRV(SRV::new(0, 100, port, target.clone()))));
            for extra in addresses(&target, at.iter()) {
                if !additionals.contains(&extra) {
                    additionals.push(extra);
                }
            }
        };
        if service.headless {
            for slice in self.slices.get(key).into_iter().flat_map(BTreeMap::values) {
                for port in slice.ports.iter().filter(named) {
                    for endpoint in published(service, slice) {
                        let target = self.absolute(&[&endpoint.label(), &key.name, &key.namespace, "svc"]);
                        add(port.number, target, &[endpoint.address]);
                    }
                }
            }
        } else {
            service.ports.iter().filter(named).for_each(|port| add(port.number, self.name_of(key), &service.addresses));
        }
        match answers.is_empty() {
            true => Answer::NoData,
            false => Answer::Found { answers, additionals },
        }
    }

    fn has_protocol(&self, service: &Service, key: &Key, label: &str) -> bool {
        let slices = self.slices.get(key).into_iter().flat_map(BTreeMap::values);
        let ports = service.ports.iter().chain(slices.flat_map(|slice| slice.ports.iter()));
        ports.into_iter().any(|port| Some(port.protocol) == parse_protocol(label) && !port.name.is_empty())
    }

    fn endpoints<'a>(&'a self, service: &'a Service, key: &Key) -> impl Iterator<Item = &'a Endpoint> {
        let slices = self.slices.get(key).into_iter().flat_map(BTreeMap::values);
        slices.flat_map(|slice| published(service, slice))
    }

    /// The Service that has the address, else every headless Service with an endpoint there.
    fn pointers(&self, name: &Name, address: Ipv4Addr, kind: RecordType) -> Answer {
        let names = match self.by_address.get(&address) {
            Some(key) => vec![self.name_of(key)],
            None => self.endpoint_names(address),
        };
        if names.is_empty() {
            return Answer::Elsewhere;
        }
        only(kind == RecordType::PTR, || {
            names.into_iter().map(|target| record(name, RData::PTR(PTR(target)))).collect()
        })
    }

    /// Looks at every headless Service: reverse questions about pods are rare, an index would not be.
    fn endpoint_names(&self, address: Ipv4Addr) -> Vec<Name> {
        let named =
            self.services.iter().flat_map(|(namespace, named)| named.iter().map(move |entry| (namespace, entry)));
        let headless = named.filter(|(_, (_, service))| service.headless);
        let mut names: Vec<Name> = headless
            .flat_map(|(namespace, (name, service))| {
                let key = Key::new(namespace, name);
                let here = self.endpoints(service, &key).filter(|endpoint| endpoint.address == address);
                let labels: Vec<String> = here.map(Endpoint::label).collect();
                labels.into_iter().map(move |label| self.absolute(&[&label, &key.name, &key.namespace, "svc"]))
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

fn exists(exists: bool) -> Answer {
    if exists { Answer::NoData } else { Answer::NoSuchName }
}

fn only(wanted: bool, records: impl FnOnce() -> Vec<Record>) -> Answer {
    if wanted { records().into() } else { Answer::NoData }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn addresses<'a>(name: &Name, addresses: impl Iterator<Item = &'a Ipv4Addr>) -> Vec<Record> {
    addresses.map(|address| record(name, RData::A(A(*address)))).collect()
}

/// The canonical name is given for every type: the client asks on there.
fn external(name: &Name, target: &str, rest: &[&str]) -> Answer {
    match Name::from_ascii(format!("{}.", target.trim_end_matches('.'))) {
        Ok(target) if rest.is_empty() => vec![record(name, RData::CNAME(CNAME(target)))].into(),
        _ => Answer::NoSuchName,
    }
}

/// `1-2-3-4.<namespace>.pod`: the address is in the name.
fn pod(name: &Name, dashed: &str, kind: RecordType) -> Answer {
    match dashed.replace('-', ".").parse::<Ipv4Addr>() {
        Ok(address) => only(kind == RecordType::A, || addresses(name, [address].iter())),
        Err(_) => Answer::NoSuchName,
    }
}

/// Endpoints that have records: ready ones, or all where the Service says so.
fn published<'a>(service: &Service, slice: &'a Slice) -> impl Iterator<Item = &'a Endpoint> {
    let all = service.publish_not_ready;
    slice.endpoints.iter().filter(move |endpoint| all || endpoint.ready)
}

fn is_protocol(label: &str) -> bool {
    parse_protocol(label).is_some()
}

fn parse_protocol(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        "_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// `4.3.2.1.in-addr.arpa.` → 1.2.3.4
fn reverse_address(name: &Name) -> Option<Ipv4Addr> {
    let text = name.to_ascii().to_ascii_lowercase();
    let digits = text.trim_end_matches('.').strip_suffix(".in-addr.arpa")?;
    digits.parse::<Ipv4Addr>().ok().map(|address| Ipv4Addr::from(u32::from(address).swap_bytes()))
}

fn key(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Key {
    Key::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

fn read_service(object: &core::Service) -> Service {
    let Some(spec) = &object.spec else { return Service::default() };
    let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut found: Vec<Ipv4Addr> = listed.filter_map(|text| text.parse().ok()).collect();
    found.dedup();
    let external = spec.type_.as_deref() == Some("ExternalName");
    Service {
        addresses: found.into(),
        headless: spec.cluster_ip.as_deref() == Some("None"),
        external_name: spec.external_name.as_deref().filter(|_| external).map(Into::into),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        ports: spec.ports.iter().flatten().filter_map(|p| port(&p.name, &p.protocol, p.port)).collect(),
    }
}

fn read_slice(object: &discovery::EndpointSlice) -> Slice {
    let ports = object.ports.iter().flatten().filter_map(|p| port(&p.name, &p.protocol, p.port?));
    Slice { ports: ports.collect(), endpoints: object.endpoints.iter().flatten().filter_map(endpoint).collect() }
}

/// An absent `ready` means ready. The first address stands for the endpoint.
fn endpoint(object: &discovery::Endpoint) -> Option<Endpoint> {
    let Ok(IpAddr::V4(address)) = object.addresses.first()?.parse() else { return None };
    Some(Endpoint {
        address,
        ready: object.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true),
        hostname: object
            .hostname
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(|name| name.to_ascii_lowercase().into()),
    })
}

fn port(name: &Option<String>, protocol: &Option<String>, number: i32) -> Option<Port> {
    let protocol = match protocol.as_deref().unwrap_or("TCP") {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => return None,
    };
    Some(Port { name: name.as_deref().unwrap_or_default().into(), protocol, number: u16::try_from(number).ok()? })
}

#[cfg(test)]
mod tests;
