//! Server-side apply and the ownership of fields (`metadata.managedFields`).
//!
//! The API calls [`apply`] for apply patches, with a body from [`crate::decode_applied`], and conforms and defaults the
//! result; it calls [`track_update`] after every other write. Which manager owns what is all in the object itself.

mod fields;

use serde_json::{Map, Value, json};

use crate::conform;
use crate::definition::Definition;
use fields::{Kind, Set};

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    pub name: &'a str,
    /// Of the request: `apps/v1`.
    pub api_version: &'a str,
    /// "" for the object itself.
    pub subresource: &'a str,
    /// RFC 3339, seconds.
    pub time: &'a str,
}

/// Fields of other managers that an apply would change: answered with 409 and one cause for each.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", self.message())]
pub struct Conflicts(pub Vec<Conflict>);

#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    /// As upstream prints it: `"alice"`, `"kubectl" using v1 at 2024-05-01T10:00:00Z`.
    pub manager: String,
    /// `.data.x`
    pub field: String,
}

/// One entry of `managedFields`.
#[derive(Clone, Debug)]
struct Entry {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: Set,
}

/// Never owned by anybody.
const UNOWNED: [&[&str]; 12] = [
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:resourceVersion"],
    &["f:metadata", "f:deletionTimestamp"],
    &["f:metadata", "f:deletionGracePeriodSeconds"],
];

/// The live object (if there is one) with what `applied` says, without what its manager said before and says no longer.
///
/// # Errors
/// Others own fields that would change, and `force` is not set.
pub fn apply(
    definition: &'static Definition,
    live: Option<&Value>,
    applied: &Value,
    manager: Manager<'_>,
    force: bool,
) -> Result<Value, Conflicts> {
    let kind = Kind::Object(definition);
    let empty = json!({});
    let live = live.unwrap_or(&empty);
    let mut entries = entries(live);
    let mut merged = live.clone();
    merge(kind, &mut merged, applied);
    let owned = stripped(Set::of(kind, applied), manager.subresource);
    let changed = stripped(Set::difference_of(kind, Some(live), Some(&merged)).set, manager.subresource);
    let mine = |entry: &Entry| entry.is(manager, "Apply");
    settle_conflicts(&mut entries, &changed, &mine, force)?;
    let last = entries.iter().find(|entry| mine(entry)).map(|entry| entry.fields.clone()).unwrap_or_default();
    entries
        .iter()
        .filter(|entry| !mine(entry))
        .fold(last.minus(&owned), |gone, entry| gone.minus(&entry.fields))
        .remove_from(kind, &mut merged);
    set_entry(&mut entries, manager, "Apply", owned);
    write_entries(&mut merged, entries);
    Ok(merged)
}

/// Records that `manager` made `new` out of `old` (`None` on create): it owns what changed, and nobody else does any more.
pub fn track_update(definition: &'static Definition, old: Option<&Value>, new: &mut Value, manager: Manager<'_>) {
    let kind = Kind::Object(definition);
    let blank = conform(definition, json!({})).map(|decoded| decoded.value).unwrap_or_default();
    let changes = Set::difference_of(kind, Some(old.unwrap_or(&blank)), Some(new));
    let changed = stripped(changes.set, manager.subresource);
    let mut entries = entries(old.unwrap_or(&Value::Null));
    let emptied = new.pointer("/metadata/managedFields").and_then(Value::as_array).is_some_and(Vec::is_empty);
    if emptied {
        entries.clear();
    }
    let gone = changed.union(&changes.removed);
    let mut own = Set::default();
    for entry in &mut entries {
        if entry.is(manager, "Update") {
            own = entry.fields.minus(&changes.removed);
        } else {
            entry.fields = entry.fields.minus(&gone);
        }
    }
    set_entry(&mut entries, manager, "Update", own.union(&changed));
    write_entries(new, entries);
}

impl Conflicts {
    fn message(&self) -> String {
        if let [one] = &self.0[..] {
            return format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.field);
        }
        let mut managers: Vec<&str> = self.0.iter().map(|one| one.manager.as_str()).collect();
        managers.sort_unstable();
        managers.dedup();
        let mut lines = Vec::new();
        for manager in managers {
            lines.push(format!("conflicts with {manager}:"));
            lines.extend(self.0.iter().filter(|one| one.manager == manager).map(|one| format!("- {}", one.field)));
        }
        format!("Apply failed with {} conflicts: {}", self.0.len(), lines.join("\n"))
    }
}

/// Takes the changed fields from others, or says that they are theirs.
fn settle_conflicts(
    entries: &mut [Entry],
    changed: &Set,
    mine: &dyn Fn(&Entry) -> bool,
    force: bool,
) -> Result<(), Conflicts> {
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|entry| !mine(entry)) {
        let contested = entry.fields.intersection(changed);
        let manager = entry.printed();
        conflicts.extend(contested.paths().into_iter().map(|field| Conflict { manager: manager.clone(), field }));
        entry.fields = entry.fields.minus(&contested);
    }
    if conflicts.is_empty() || force { Ok(()) } else { Err(Conflicts(conflicts)) }
}

/// Objects and maps field by field, keyed lists item by item, everything else as one value.
fn merge(kind: Kind<'_>, target: &mut Value, applied: &Value) {
    match (kind, &mut *target, applied) {
        (Kind::Object(_) | Kind::Map(_), Value::Object(current), Value::Object(change)) => {
            for (key, value) in change {
                merge(kind.child(key).0, current.entry(key).or_insert(Value::Null), value);
            }
        }
        (Kind::Items(..) | Kind::Values, Value::Array(_), Value::Array(_)) => merge_list(kind, target, applied),
        _ => *target = applied.clone(),
    }
}

/// Applied items stand in their order; the live ones that were not applied keep their place before the next that was.
fn merge_list(kind: Kind<'_>, target: &mut Value, applied: &Value) {
    let current = target.take();
    let live = kind.parts(&current).unwrap_or_default();
    let wanted = kind.parts(applied).unwrap_or_default();
    let mut list = Vec::new();
    let mut rest = live.iter().peekable();
    for (step, value, inner) in &wanted {
        let place = live.iter().find(|(other, ..)| other == step);
        while place.is_some() && rest.peek().is_some_and(|(other, ..)| !wanted.iter().any(|(step, ..)| step == other)) {
            list.extend(rest.next().map(|(_, item, _)| (*item).clone()));
        }
        let mut item = place.map_or(Value::Null, |(_, item, _)| (*item).clone());
        merge(*inner, &mut item, value);
        list.push(item);
        rest.next_if(|(other, ..)| other == step);
    }
    let left = rest.filter(|(other, ..)| !wanted.iter().any(|(step, ..)| step == other));
    list.extend(left.map(|(_, item, _)| (*item).clone()));
    *target = Value::Array(list);
}

impl Set {
    /// Removes the members of this set from a value.
    fn remove_from(&self, kind: Kind<'_>, value: &mut Value) {
        match value {
            Value::Object(map) => map.retain(|key, value| self.keeps(&format!("f:{key}"), kind.child(key).0, value)),
            Value::Array(_) => {
                let steps: Vec<(String, Kind<'_>)> =
                    kind.parts(value).unwrap_or_default().into_iter().map(|(step, _, inner)| (step, inner)).collect();
                let mut steps = steps.into_iter();
                if let (Value::Array(items), true) = (value, steps.len() > 0) {
                    items.retain_mut(|item| steps.next().is_none_or(|(step, inner)| self.keeps(&step, inner, item)));
                }
            }
            _ => {}
        }
    }

    fn keeps(&self, step: &str, kind: Kind<'_>, value: &mut Value) -> bool {
        let Some(set) = self.children.get(step) else { return true };
        set.remove_from(kind, value);
        let hollow = match value {
            Value::Object(map) => map.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => true,
        };
        let item = step.starts_with("k:");
        !(set.member && (set.children.is_empty() || hollow || item))
    }
}

fn stripped(mut set: Set, subresource: &str) -> Set {
    for path in UNOWNED {
        set.without(path);
    }
    set.without(if subresource == "status" { &["f:spec"] } else { &["f:status"] });
    set.member = false;
    set
}

fn entries(object: &Value) -> Vec<Entry> {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    list.into_iter().flatten().map(Entry::parse).collect()
}

fn set_entry(entries: &mut Vec<Entry>, manager: Manager<'_>, operation: &str, fields: Set) {
    match entries.iter_mut().find(|entry| entry.is(manager, operation)) {
        Some(entry) => {
            if entry.fields != fields {
                entry.time = manager.time.to_owned();
            }
            entry.fields = fields;
        }
        None => entries.push(Entry {
            manager: manager.name.to_owned(),
            operation: operation.to_owned(),
            api_version: manager.api_version.to_owned(),
            subresource: manager.subresource.to_owned(),
            time: manager.time.to_owned(),
            fields,
        }),
    }
}

/// In upstream's order; managers that own nothing go, and the list with the last of them.
fn write_entries(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| a.order().cmp(&b.order()));
    let Some(object) = object.as_object_mut() else { return };
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = metadata.as_object_mut() else { return };
    metadata.remove("managedFields");
    if !entries.is_empty() {
        metadata.insert("managedFields".to_owned(), entries.iter().map(Entry::to_value).collect());
    }
}

impl Entry {
    fn parse(value: &Value) -> Self {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            manager: text("manager"),
            operation: text("operation"),
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: Set::parse(&value["fieldsV1"]),
        }
    }

    fn to_value(&self) -> Value {
        let mut entry = Map::new();
        let texts = [
            ("manager", self.manager.as_str()),
            ("operation", &self.operation),
            ("apiVersion", &self.api_version),
            ("time", &self.time),
            ("fieldsType", "FieldsV1"),
            ("subresource", &self.subresource),
        ];
        entry.extend(
            texts.into_iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| (key.to_owned(), json!(text))),
        );
        entry.insert("fieldsV1".to_owned(), self.fields.to_value());
        Value::Object(entry)
    }

    fn is(&self, manager: Manager<'_>, operation: &str) -> bool {
        let own = (self.manager.as_str(), self.operation.as_str(), self.subresource.as_str());
        own == (manager.name, operation, manager.subresource) && self.api_version == manager.api_version
    }

    fn order(&self) -> (&str, &str, &str, &str) {
        (&self.operation, &self.time, &self.manager, &self.subresource)
    }

    fn printed(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == "Update" {
            text.push_str(&format!(" using {} at {}", self.api_version, self.time));
        }
        text
    }
}

#[cfg(test)]
mod tests;
