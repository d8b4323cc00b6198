//! Sets of fields as `managedFields` writes them (`FieldsV1`): a trie whose steps are `f:<field>`, `k:<keys>`, `v:<value>`.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};

use crate::defaults;
use crate::definition::{Field, ListType, Shape};

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Set {
    /// The path up to here is in the set.
    pub member: bool,
    pub children: BTreeMap<String, Set>,
}

/// How the values under a path merge.
#[derive(Clone, Copy)]
pub(super) enum Kind<'a> {
    /// One value.
    Atomic,
    Object(&'static crate::Definition),
    Map(&'a Shape),
    /// A list of objects, by these keys.
    Items(&'a Shape, &'a [&'static str]),
    /// A list of scalars, by value.
    Values,
}

impl<'a> Kind<'a> {
    pub fn of_field(field: &'a Field) -> Self {
        match (&field.shape, &field.merge.list) {
            _ if field.merge.atomic => Kind::Atomic,
            (Shape::List(item), ListType::Map(keys)) => Kind::Items(item, keys),
            (Shape::List(_), ListType::Set) => Kind::Values,
            (shape, _) => Kind::of_shape(shape),
        }
    }

    pub fn of_shape(shape: &'a Shape) -> Self {
        match shape {
            Shape::Object(id) if !id.definition().atomic => Kind::Object(id.definition()),
            Shape::Map(value) => Kind::Map(value),
            _ => Kind::Atomic,
        }
    }

    /// The kind under a step of an object or map, and whether the step is a declared field.
    pub fn child(self, key: &str) -> (Kind<'a>, bool) {
        match self {
            Kind::Object(definition) => {
                definition.field(key).map_or((Kind::Atomic, false), |field| (Kind::of_field(field), true))
            }
            Kind::Map(shape) => (Kind::of_shape(shape), false),
            _ => (Kind::Atomic, false),
        }
    }

    /// A value's parts by their steps, in order; `None` for what is one value.
    pub fn parts<'v>(self, value: &'v Value) -> Option<Vec<(String, &'v Value, Kind<'a>)>> {
        match (self, value) {
            (Kind::Object(_) | Kind::Map(_), Value::Object(map)) => {
                Some(map.iter().map(|(key, value)| (format!("f:{key}"), value, self.child(key).0)).collect())
            }
            (Kind::Items(shape, keys), Value::Array(items)) => {
                let step = |item: &'v Value| (key_step(shape, keys, item), item, Kind::of_shape(shape));
                Some(items.iter().map(step).collect())
            }
            (Kind::Values, Value::Array(items)) => {
                Some(items.iter().map(|item| (format!("v:{item}"), item, Kind::Atomic)).collect())
            }
            _ => None,
        }
    }
}

/// `k:{"containerPort":80,"protocol":"TCP"}`: a key that is absent counts with its default.
fn key_step(shape: &Shape, keys: &[&'static str], item: &Value) -> String {
    let definition = shape.object();
    let value = |key: &str| {
        let default = || definition.and_then(|definition| defaults::constant(definition, key)).cloned();
        item.get(key).cloned().or_else(default)
    };
    let keys: Map<String, Value> = keys.iter().filter_map(|key| Some(((*key).to_owned(), value(key)?))).collect();
    format!("k:{}", Value::Object(keys))
}

impl Set {
    /// The fields that a written object claims.
    pub fn of(kind: Kind<'_>, value: &Value) -> Self {
        let Some(parts) = kind.parts(value) else { return Self::leaf() };
        let is_list = value.is_array();
        let mut set = Self::default();
        for (step, part, inner) in parts {
            let declared = matches!(kind, Kind::Object(_));
            let mut child = Self::of(inner, part);
            let empty = part.is_null() || part.as_object().is_some_and(Map::is_empty);
            child.member |= is_list || empty || !declared;
            set.insert(step, child);
        }
        set
    }

    /// What differs between two values: paths that are new (with all their parts), changed, or gone.
    pub fn difference_of(kind: Kind<'_>, old: Option<&Value>, new: Option<&Value>) -> Changes {
        let mut changes = Changes::default();
        changes.compare(kind, old, new);
        changes
    }

    pub fn parse(value: &Value) -> Self {
        let mut set = Self::default();
        for (key, inner) in value.as_object().into_iter().flatten() {
            if key == "." {
                set.member = true;
                continue;
            }
            let mut child = Self::parse(inner);
            child.member |= child.children.is_empty();
            set.children.insert(key.clone(), child);
        }
        set
    }

    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        map.extend(self.children.iter().map(|(step, child)| (step.clone(), child.to_value())));
        Value::Object(map)
    }

    pub fn leaf() -> Self {
        Self { member: true, children: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    fn insert(&mut self, step: String, child: Self) {
        if !child.is_empty() {
            self.children.insert(step, child);
        }
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut set = self.clone();
        set.member |= other.member;
        for (step, theirs) in &other.children {
            let joined = set.children.get(step).map_or_else(|| theirs.clone(), |own| own.union(theirs));
            set.children.insert(step.clone(), joined);
        }
        set
    }

    pub fn minus(&self, other: &Self) -> Self {
        self.combine(other, |own, theirs| own && !theirs, Self::clone)
    }

    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |own, theirs| own && theirs, |_| Self::default())
    }

    fn combine(&self, other: &Self, rule: fn(bool, bool) -> bool, lone: fn(&Self) -> Self) -> Self {
        let mut set = Self { member: rule(self.member, other.member), ..Self::default() };
        for (step, own) in &self.children {
            let child = other.children.get(step).map_or_else(|| lone(own), |theirs| own.combine(theirs, rule, lone));
            set.insert(step.clone(), child);
        }
        set
    }

    /// Whether some member of the set is in a written one.
    pub fn meets(&self, written: &Value) -> bool {
        let Some(map) = written.as_object() else { return false };
        let leaf = map.is_empty() || map.contains_key(".");
        let below = |(step, child): (&String, &Self)| map.get(step).is_some_and(|written| child.meets(written));
        self.member && leaf || self.children.iter().any(below)
    }

    /// With every field that has members below it.
    pub fn filled(&self) -> Self {
        let children: BTreeMap<String, Self> =
            self.children.iter().map(|(step, child)| (step.clone(), child.filled())).collect();
        Self { member: self.member || !children.is_empty(), children }
    }

    /// Without a path and all below it.
    pub fn without(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [last] => {
                self.children.remove(*last);
            }
            [first, rest @ ..] => {
                if let Some(child) = self.children.get_mut(*first) {
                    child.without(rest);
                    if child.children.is_empty() {
                        child.member = false;
                    }
                    if child.is_empty() {
                        self.children.remove(*first);
                    }
                }
            }
        }
    }

    /// Every member as upstream prints paths: `.spec.containers[name="c"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect(&mut String::new(), &mut paths);
        paths
    }

    fn collect(&self, path: &mut String, paths: &mut Vec<String>) {
        if self.member {
            paths.push(path.clone());
        }
        for (step, child) in &self.children {
            let length = path.len();
            path.push_str(&printed(step));
            child.collect(path, paths);
            path.truncate(length);
        }
    }
}

fn printed(step: &str) -> String {
    let (kind, rest) = step.split_once(':').unwrap_or(("f", step));
    match kind {
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        "v" => format!("[={rest}]"),
        _ => format!(".{rest}"),
    }
}

#[derive(Debug, Default)]
pub(super) struct Changes {
    pub set: Set,
    pub removed: Set,
}

impl Changes {
    fn compare(&mut self, kind: Kind<'_>, old: Option<&Value>, new: Option<&Value>) {
        if old == new {
            return;
        }
        if let (Kind::Object(_) | Kind::Map(_), Some(Value::Object(before)), Some(Value::Object(after))) =
            (kind, old, new)
        {
            let stays = after.iter().map(|(key, value)| (key, before.get(key), Some(value)));
            let goes =
                before.iter().filter(|(key, _)| !after.contains_key(*key)).map(|(key, value)| (key, Some(value), None));
            for (key, old, new) in stays.chain(goes).filter(|(_, old, new)| old != new) {
                self.descend(&format!("f:{key}"), kind.child(key).0, old, new);
            }
            return;
        }
        let old_parts = old.and_then(|value| kind.parts(value));
        let new_parts = new.and_then(|value| kind.parts(value));
        self.set.member = new.is_some() && (old.is_none() || new_parts.is_none());
        self.removed.member = old.is_some() && new.is_none();
        let before: HashMap<&str, &Value> =
            old_parts.iter().flatten().map(|(step, value, _)| (step.as_str(), *value)).collect();
        let after: HashSet<&str> = new_parts.iter().flatten().map(|(step, ..)| step.as_str()).collect();
        for (step, value, inner) in new_parts.iter().flatten() {
            self.descend(step, *inner, before.get(step.as_str()).copied(), Some(value));
        }
        for (step, value, inner) in old_parts.iter().flatten().filter(|(step, ..)| !after.contains(step.as_str())) {
            self.descend(step, *inner, Some(value), None);
        }
    }

    fn descend(&mut self, step: &str, kind: Kind<'_>, old: Option<&Value>, new: Option<&Value>) {
        let inner = Set::difference_of(kind, old, new);
        self.set.insert(step.to_owned(), inner.set);
        self.removed.insert(step.to_owned(), inner.removed);
    }
}
