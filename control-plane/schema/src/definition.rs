//! Types: the fields of every object, their shapes, and how lists and maps merge.
//!
//! All of it comes from `fields.txt`. Starting costs one scan for the names of the types; a type is parsed when it is
//! first asked for and then lives for ever, so a server pays only for the kinds it meets. Nothing here knows a kind.

use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};

static TEXT: &str = include_str!("fields.txt");

/// Prefixes of the long names, in upstream's OpenAPI, of the types whose short names start so.
const PREFIXES: [(&str, &str); 4] = [
    ("meta.", "io.k8s.apimachinery.pkg.apis."),
    ("apiextensions.", "io.k8s.apiextensions-apiserver.pkg.apis."),
    ("apiregistration.", "io.k8s.kube-aggregator.pkg.apis."),
    ("", "io.k8s.api."),
];

/// API groups whose name is not that of their Go package.
const GROUPS: [(&str, &str); 14] = [
    ("core", ""),
    ("meta", "meta.k8s.io"),
    ("admissionregistration", "admissionregistration.k8s.io"),
    ("apiextensions", "apiextensions.k8s.io"),
    ("apiregistration", "apiregistration.k8s.io"),
    ("authentication", "authentication.k8s.io"),
    ("authorization", "authorization.k8s.io"),
    ("certificates", "certificates.k8s.io"),
    ("coordination", "coordination.k8s.io"),
    ("discovery", "discovery.k8s.io"),
    ("events", "events.k8s.io"),
    ("flowcontrol", "flowcontrol.apiserver.k8s.io"),
    ("rbac", "rbac.authorization.k8s.io"),
    ("", ""),
];
const MORE_GROUPS: [&str; 5] = ["networking", "node", "resource", "scheduling", "storage"];

/// An object type.
#[derive(Debug)]
pub struct Definition {
    /// `core.v1.Pod`
    short: &'static str,
    /// Sorted by name.
    fields: Vec<Field>,
    /// Applied as one value, not field by field.
    pub atomic: bool,
}

#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub shape: Shape,
    /// A pointer in Go: a zero value that was given is kept.
    pub pointer: bool,
    pub empty: Empty,
    pub merge: Merge,
    /// The field's number in the protobuf message, after those of the messages that JSON flattens into this type.
    pub(crate) number: Box<[u32]>,
    /// The Go name of a list or map type, `v1.ResourceList`.
    alias: Option<&'static str>,
}

/// What an empty field looks like on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Empty {
    /// Left out, structs and times excepted (Go's omitempty).
    Omitted,
    /// Shown.
    Shown,
    /// Left out, whatever it is (Go's omitzero).
    OmittedZero,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// The Go name of a string type: `v1.Protocol`, `string`.
    String(&'static str),
    Int32,
    Int64,
    Bool,
    Float,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    Any,
    Object(TypeId),
    List(Box<Shape>),
    Map(Box<Shape>),
}

/// A type's place in the registry; types may contain themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TypeId(u16);

/// How a list or map merges.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merge {
    pub list: ListType,
    /// Maps and structs that are applied as one value.
    pub atomic: bool,
    /// Strategic merge: `merge`, `replace`, `retainKeys`.
    pub merge: bool,
    pub retain_keys: bool,
    pub merge_key: Option<&'static str>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<&'static str>),
}

struct Slot {
    short: &'static str,
    text: &'static str,
    definition: OnceLock<Definition>,
}

struct Registry {
    slots: Vec<Slot>,
    names: HashMap<&'static str, TypeId>,
}

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::scan);

/// The type of that name, as upstream's OpenAPI writes it (`io.k8s.api.core.v1.Pod`) or without its prefix (`core.v1.Pod`).
pub fn definition(name: &str) -> Option<&'static Definition> {
    let short = PREFIXES.iter().find_map(|(_, prefix)| name.strip_prefix(prefix)).unwrap_or(name);
    REGISTRY.names.get(short).map(|id| id.definition())
}

/// The type of a kind: `("apps", "v1", "Deployment")`.
pub fn definition_of(group: &str, version: &str, kind: &str) -> Option<&'static Definition> {
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    definition(&format!("{package}.{version}.{kind}"))
}

/// Every type there is.
pub fn all() -> impl Iterator<Item = &'static Definition> {
    REGISTRY.names.values().map(|id| id.definition())
}

impl TypeId {
    pub fn definition(self) -> &'static Definition {
        let slot = &REGISTRY.slots[usize::from(self.0)];
        slot.definition.get_or_init(|| Definition::parse(slot.short, slot.text))
    }
}

impl Definition {
    /// `io.k8s.api.core.v1.Pod`
    pub fn name(&self) -> String {
        let prefix = PREFIXES.iter().find(|(start, _)| self.short.starts_with(start)).map_or("", |(_, prefix)| prefix);
        format!("{prefix}{}", self.short)
    }

    /// `core.v1.Pod`
    pub fn short(&self) -> &'static str {
        self.short
    }

    pub fn kind(&self) -> &'static str {
        self.part(2)
    }

    pub fn version(&self) -> &'static str {
        self.part(1)
    }

    /// The Go package: `core`, `apps`, `rbac`.
    pub fn package(&self) -> &'static str {
        self.part(0)
    }

    /// `""`, `apps`, `rbac.authorization.k8s.io`
    pub fn group(&self) -> String {
        let package = self.package();
        match GROUPS.iter().find(|(name, _)| *name == package) {
            Some((_, group)) => (*group).to_owned(),
            None if MORE_GROUPS.contains(&package) => format!("{package}.k8s.io"),
            None => package.to_owned(),
        }
    }

    /// `v1`, `apps/v1`
    pub fn api_version(&self) -> String {
        match self.group().as_str() {
            "" => self.version().to_owned(),
            group => format!("{group}/{}", self.version()),
        }
    }

    /// `v1.Pod`, as Go prints the type.
    pub fn go_type(&self) -> &'static str {
        &self.short[self.short.find('.').map_or(0, |dot| dot + 1)..]
    }

    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|at| &self.fields[at])
    }

    /// Options and other bodies of `meta.k8s.io` come under any API version.
    pub fn is_meta(&self) -> bool {
        self.short.starts_with("meta.")
    }

    fn part(&self, at: usize) -> &'static str {
        self.short.split('.').nth(at).unwrap_or(self.short)
    }

    fn parse(short: &'static str, text: &'static str) -> Self {
        let mut lines = text.lines();
        let atomic = lines.next().is_some_and(|head| head.split(' ').any(|word| word == "atomic"));
        let mut fields: Vec<Field> = lines.map(Field::parse).collect();
        fields.sort_by_key(|field| field.name);
        Self { short, fields, atomic }
    }
}

impl Field {
    /// A repeated field of the protobuf message; `meta.v1.Verbs` alone is a message of items.
    pub(crate) fn is_repeated(&self) -> bool {
        matches!(self.shape, Shape::List(_)) && self.alias != Some("v1.Verbs")
    }

    /// The type's name in Go's words: `[]v1.Container`, `map[string]string`.
    pub fn go_type(&self) -> String {
        self.alias.map_or_else(|| self.shape.go_type(), str::to_owned)
    }

    fn parse(line: &'static str) -> Self {
        let mut words = line.split_ascii_whitespace();
        let name = words.next().expect("a line of fields.txt starts with the field's name");
        let written = words.next().expect("a field of fields.txt has a shape");
        let (written, empty) = match written.as_bytes().last() {
            Some(b'!') => (&written[..written.len() - 1], Empty::Shown),
            Some(b'0') => (&written[..written.len() - 1], Empty::OmittedZero),
            _ => (written, Empty::Omitted),
        };
        let (written, pointer) = written.strip_prefix('*').map_or((written, false), |rest| (rest, true));
        let (written, alias) = written.split_once('=').map_or((written, None), |(shape, alias)| (shape, Some(alias)));
        let (numbers, words): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with('#'));
        let number = numbers.first().map_or_else(Box::default, |written| parse_number(written));
        Self {
            name,
            shape: Shape::parse(written),
            pointer,
            empty,
            merge: Merge::parse(words.into_iter()),
            number,
            alias,
        }
    }
}

impl Shape {
    pub fn go_type(&self) -> String {
        match self {
            Self::String(name) => (*name).to_owned(),
            Self::Int32 => "int32".to_owned(),
            Self::Int64 => "int64".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Float => "float64".to_owned(),
            Self::Bytes => "[]uint8".to_owned(),
            Self::Time => "v1.Time".to_owned(),
            Self::MicroTime => "v1.MicroTime".to_owned(),
            Self::Quantity => "resource.Quantity".to_owned(),
            Self::IntOrString => "intstr.IntOrString".to_owned(),
            Self::Any => "interface {}".to_owned(),
            Self::Object(id) => id.definition().go_type().to_owned(),
            Self::List(item) => format!("[]{}", item.go_type()),
            Self::Map(value) => format!("map[string]{}", value.go_type()),
        }
    }

    /// The object type behind this shape, if it is one.
    pub fn object(&self) -> Option<&'static Definition> {
        match self {
            Self::Object(id) => Some(id.definition()),
            _ => None,
        }
    }

    fn parse(written: &'static str) -> Self {
        if let Some(item) = written.strip_prefix("[]") {
            return Self::List(Box::new(Self::parse(item)));
        }
        if let Some(value) = written.strip_prefix("{}") {
            return Self::Map(Box::new(Self::parse(value)));
        }
        let (base, name) = written.split_once(':').unwrap_or((written, written));
        match base {
            "string" => Self::String(name),
            "int32" => Self::Int32,
            "int64" => Self::Int64,
            "bool" => Self::Bool,
            "float64" => Self::Float,
            "bytes" => Self::Bytes,
            "Time" => Self::Time,
            "MicroTime" => Self::MicroTime,
            "Quantity" => Self::Quantity,
            "IntOrString" => Self::IntOrString,
            "any" => Self::Any,
            other => Self::Object(REGISTRY.names[other]),
        }
    }
}

impl Merge {
    fn parse(words: impl Iterator<Item = &'static str>) -> Self {
        let mut merge = Self::default();
        for word in words {
            match word.split_once('=') {
                None if word == "atomic" => merge.atomic = true,
                None if word == "set" => merge.list = ListType::Set,
                Some(("map", keys)) => merge.list = ListType::Map(keys.split(',').collect()),
                Some(("patch", strategy)) => merge.take_strategy(strategy),
                _ => {}
            }
        }
        merge
    }

    /// As upstream's OpenAPI writes it.
    pub fn strategy(&self) -> Option<&'static str> {
        match (self.merge, self.retain_keys) {
            (true, true) => Some("merge,retainKeys"),
            (true, false) => Some("merge"),
            (false, true) => Some("retainKeys"),
            (false, false) => None,
        }
    }

    fn take_strategy(&mut self, written: &'static str) {
        let (strategies, key) = written.split_once(':').map_or((written, None), |(all, key)| (all, Some(key)));
        self.merge = strategies.split(',').any(|one| one == "merge");
        self.retain_keys = strategies.split(',').any(|one| one == "retainKeys");
        self.merge_key = key;
    }
}

impl Registry {
    fn scan() -> Self {
        let mut registry = Self { slots: Vec::new(), names: HashMap::new() };
        let mut rest = &TEXT[TEXT.find("\nadmissionregistration").map_or(0, |at| at + 1)..];
        while !rest.is_empty() {
            let end = next_type(rest);
            registry.add(rest[..end].trim_end());
            rest = &rest[end..];
        }
        registry
    }

    fn add(&mut self, text: &'static str) {
        let short = text.split([' ', '\n']).next().unwrap_or(text);
        let id = TypeId(u16::try_from(self.slots.len()).expect("there are fewer types than 65536"));
        self.slots.push(Slot { short, text, definition: OnceLock::new() });
        self.names.insert(short, id);
    }
}

/// `#2.1`
fn parse_number(written: &str) -> Box<[u32]> {
    let parts = written.trim_start_matches('#').split('.');
    parts.map(|part| part.parse().expect("a field's number in fields.txt is a number")).collect()
}

/// Where the next block starts: after the first line break that is not followed by a field's indentation.
fn next_type(text: &str) -> usize {
    text.match_indices('\n')
        .map(|(at, _)| at + 1)
        .find(|at| text.as_bytes().get(*at).is_none_or(|byte| *byte != b' '))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests;
