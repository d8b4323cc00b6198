//! Server-side apply and the ownership of fields (`metadata.managedFields`).
//!
//! The API calls [`apply`] for apply patches, with a body from [`crate::decode_applied`], and conforms and defaults the
//! result; for every other write it calls [`track_update`] once the body has its defaults. Which manager owns what is all in the object itself.

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
    /// As written: most writes leave most entries alone.
    raw: Value,
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

/// Where client-side apply keeps what it applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Who owns what was there before anybody's ownership was known.
const BEFORE: &str = "before-first-apply";
/// Who owns what managers did whose entries were too many, and how many may stand.
const ANCIENT: (&str, usize) = ("ancient-changes", 10);

/// The live object (if there is one) with what `applied` says, without what its manager said before and says no longer.
///
/// kubectl's own applies count what client-side apply has left in its annotation as their own, and keep it up to date.
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
    let base = live.unwrap_or(&empty);
    let mut entries = entries(base);
    if entries.is_empty() && live.is_some() {
        let all = stripped(Set::difference_of(kind, Some(&blank(definition)), live).set, "");
        set_entry(&mut entries, Manager { name: BEFORE, ..manager }, "Update", all, true);
    }
    let mut merged = base.clone();
    merge(kind, &mut merged, applied);
    let owned = stripped(Set::of(kind, applied), manager.subresource);
    let changed = stripped(Set::difference_of(kind, live, Some(&merged)).set, manager.subresource);
    let mine = |entry: &Entry| entry.is(manager, "Apply");
    let legacy = (manager.name == "kubectl").then(|| last_applied(definition, base)).flatten();
    settle_conflicts(&mut entries, &changed, &mine, force, &legacy.clone().unwrap_or_default())?;
    let last = entries.iter().find(|entry| mine(entry)).map(Entry::fields).unwrap_or_default();
    entries
        .iter()
        .filter(|entry| !mine(entry))
        .fold(last.minus(&owned.filled()), |gone, entry| gone.minus(&entry.fields().filled()))
        .remove_from(kind, &mut merged);
    let annotations = base.pointer("/metadata/annotations").and_then(Value::as_object);
    if manager.name == "kubectl" && annotations.is_some_and(|all| all.contains_key(LAST_APPLIED)) {
        merged["metadata"]["annotations"][LAST_APPLIED] = format!("{applied}\n").into();
    }
    let moved = merged != *base;
    set_entry(&mut entries, manager, "Apply", owned, moved);
    write_entries(&mut merged, entries);
    Ok(merged)
}

/// Records that `manager` made `new` out of `old` (`None` on create): it owns what changed, and nobody else does any more.
///
/// The writer may have sent entries of its own; they count, except on a subresource. Entries that say nothing (`[{}]`)
/// end the tracking, as upstream has it: an object without any is not tracked until somebody applies it.
pub fn track_update(definition: &'static Definition, old: Option<&Value>, new: &mut Value, manager: Manager<'_>) {
    let kind = Kind::Object(definition);
    let sent = sent_entries(new, manager.subresource);
    let reset = sent.as_ref().is_some_and(Vec::is_empty);
    let mut entries = match sent {
        Some(entries) => entries,
        None => old.map(entries).unwrap_or_default(),
    };
    if let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    if old.is_some() && (entries.is_empty() || reset) {
        return;
    }
    let changes = match old {
        Some(old) => Set::difference_of(kind, Some(old), Some(new)),
        None => Set::difference_of(kind, Some(&blank(definition)), Some(new)),
    };
    let (changed, removed) =
        (stripped(changes.set, manager.subresource), stripped(changes.removed, manager.subresource));
    let gone = changed.union(&removed);
    let mut own = Set::default();
    for entry in &mut entries {
        if entry.is(manager, "Update") {
            own = entry.fields().minus(&removed);
        } else {
            entry.lose(&gone);
        }
    }
    let touched = !changed.is_empty();
    set_entry(&mut entries, manager, "Update", own.union(&changed), touched);
    write_entries(new, bounded(entries));
}

/// An object of the kind in which nothing is set.
fn blank(definition: &'static Definition) -> Value {
    conform(definition, json!({})).map(|decoded| decoded.value).unwrap_or_default()
}

/// Entries in a request's body; empty if they ask to forget all.
fn sent_entries(new: &Value, subresource: &str) -> Option<Vec<Entry>> {
    let list = listed(new)?;
    let nothing = |entry: &Value| entry.as_object().is_none_or(Map::is_empty);
    match &list[..] {
        _ if !subresource.is_empty() => None,
        [] => Some(Vec::new()),
        [one] if nothing(one) => Some(Vec::new()),
        all => Some(all.iter().map(Entry::parse).collect()),
    }
}

/// What client-side apply wrote last and nobody has changed since.
fn last_applied(definition: &'static Definition, live: &Value) -> Option<Set> {
    let text = live.pointer("/metadata/annotations")?.get(LAST_APPLIED)?.as_str()?;
    let last: Value =
        serde_json::from_str(text).ok().filter(|last: &Value| last["apiVersion"] == live["apiVersion"])?;
    let kind = Kind::Object(definition);
    let since = Set::difference_of(kind, Some(&last), Some(live));
    Some(Set::of(kind, &last).minus(&since.set).minus(&since.removed))
}

/// At most as many updaters as upstream keeps; the oldest become one for each version.
fn bounded(mut entries: Vec<Entry>) -> Vec<Entry> {
    let (ancient, most) = ANCIENT;
    let mut surplus = entries.iter().filter(|entry| entry.operation == "Update").count().saturating_sub(most);
    entries.sort_by(|a, b| a.order().cmp(&b.order()));
    let mut kept: Vec<Entry> = Vec::new();
    for entry in entries {
        if surplus == 0 || entry.operation != "Update" {
            kept.push(entry);
        } else if let Some(bucket) =
            kept.iter_mut().find(|one| one.operation == "Update" && one.api_version == entry.api_version)
        {
            bucket.set_fields(&bucket.fields().union(&entry.fields()));
            bucket.manager = ancient.to_owned();
            bucket.subresource.clear();
            bucket.time = entry.time;
            surplus -= 1;
        } else {
            kept.push(entry);
        }
    }
    kept
}

/// Whether two objects differ in nothing but the times of their entries.
pub fn same_but_times(a: &Value, b: &Value) -> bool {
    let entries = |(a, b): (&Value, &Value)| same_but(a, b, "time");
    same_but(a, b, "metadata")
        && same_but(&a["metadata"], &b["metadata"], "managedFields")
        && matches!((listed(a), listed(b)), (Some(a), Some(b)) if a.len() == b.len() && a.iter().zip(b).all(entries))
}

/// Whether two JSON objects are the same apart from one key.
fn same_but(a: &Value, b: &Value, key: &str) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return false };
    let of = |map: &Map<String, Value>| map.len() - usize::from(map.contains_key(key));
    of(a) == of(b) && a.iter().all(|(name, value)| name == key || b.get(name) == Some(value))
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
    allowed: &Set,
) -> Result<(), Conflicts> {
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|entry| !mine(entry)) {
        let contested = entry.fields().intersection(changed);
        let manager = entry.printed();
        conflicts.extend(
            contested.minus(allowed).paths().into_iter().map(|field| Conflict { manager: manager.clone(), field }),
        );
        entry.lose(&contested);
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
        if set.member && (set.children.is_empty() || step.starts_with("k:")) {
            return false;
        }
        set.remove_from(kind, value);
        !is_hollow(value)
    }
}

fn is_hollow(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
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
    listed(object).into_iter().flatten().map(Entry::parse).collect()
}

fn listed(object: &Value) -> Option<&Vec<Value>> {
    object.get("metadata")?.get("managedFields")?.as_array()
}

/// `touched`: the manager has changed something, or else its time stays.
fn set_entry(entries: &mut Vec<Entry>, manager: Manager<'_>, operation: &str, fields: Set, touched: bool) {
    let raw = fields.to_value();
    match entries.iter_mut().find(|entry| entry.is(manager, operation)) {
        Some(entry) => {
            if touched || entry.raw != raw {
                entry.time = manager.time.to_owned();
            }
            entry.raw = raw;
        }
        None => entries.push(Entry {
            manager: manager.name.to_owned(),
            operation: operation.to_owned(),
            api_version: manager.api_version.to_owned(),
            subresource: manager.subresource.to_owned(),
            time: manager.time.to_owned(),
            raw,
        }),
    }
}

/// In upstream's order; managers that own nothing go, and the list with the last of them.
fn write_entries(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !is_hollow(&entry.raw) && !entry.operation.is_empty());
    entries.sort_by(|a, b| a.order().cmp(&b.order()));
    let Some(object) = object.as_object_mut() else { return };
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = metadata.as_object_mut() else { return };
    metadata.remove("managedFields");
    if !entries.is_empty() {
        metadata.insert("managedFields".to_owned(), entries.into_iter().map(Entry::into_value).collect());
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
            raw: value.get("fieldsV1").cloned().unwrap_or_default(),
        }
    }

    fn into_value(self) -> Value {
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
        entry.insert("fieldsV1".to_owned(), self.raw);
        Value::Object(entry)
    }

    fn fields(&self) -> Set {
        Set::parse(&self.raw)
    }

    fn set_fields(&mut self, fields: &Set) {
        self.raw = fields.to_value();
    }

    /// Without the fields of a set.
    fn lose(&mut self, set: &Set) {
        if set.meets(&self.raw) {
            self.set_fields(&self.fields().minus(set));
        }
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
            text.push_str(&format!(" using {}", self.api_version));
        }
        if self.operation == "Update" && !self.time.is_empty() {
            text.push_str(&format!(" at {}", self.time));
        }
        text
    }
}

#[cfg(test)]
mod tests;
