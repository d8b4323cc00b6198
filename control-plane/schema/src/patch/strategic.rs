//! Strategic merge: a merge patch that knows which lists are merged by key or by value, and its directives.
//!
//! `$patch: delete|replace|merge` on objects and list items, `$retainKeys`, `$deleteFromPrimitiveList/<field>` and
//! `$setElementOrder/<field>`. Without a definition (inside maps and free-form values) it is a merge patch.

use serde_json::{Map, Value};

use super::PatchError;
use crate::definition::{Definition, Field, Shape};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

/// # Errors
/// The patch is no object, a directive is unknown, or an item lacks its merge key.
pub fn strategic_merge(definition: &Definition, target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed(
            "error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}".to_owned(),
        ));
    };
    if !target.is_object() {
        *target = Value::Object(Object::new());
    }
    let object = target.as_object_mut().expect("it was made an object above");
    merge_object(Kind::Object(definition), object, patch)
}

/// What the schema says of the values under a key.
#[derive(Clone, Copy)]
enum Kind<'a> {
    Object(&'a Definition),
    /// The values of a map.
    Map(&'a Shape),
    Free,
}

impl<'a> Kind<'a> {
    fn of(shape: &'a Shape) -> Self {
        match shape {
            Shape::Object(id) => Self::Object(id.definition()),
            Shape::Map(value) => Self::Map(value),
            _ => Self::Free,
        }
    }

    fn field(self, key: &str) -> Option<&'a Field> {
        match self {
            Self::Object(definition) => definition.field(key),
            _ => None,
        }
    }

    fn child(self, key: &str) -> Kind<'a> {
        match self {
            Self::Object(definition) => definition.field(key).map_or(Kind::Free, |field| Kind::of(&field.shape)),
            Self::Map(shape) => Kind::of(shape),
            Self::Free => Kind::Free,
        }
    }
}

fn merge_object(kind: Kind<'_>, target: &mut Object, patch: &Object) -> Result<(), PatchError> {
    match patch.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("replace") => {
            *target = cleaned(patch);
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some(other) => return Err(bad_directive(other)),
    }
    retain_keys(target, patch)?;
    for (key, value) in patch.iter().filter(|(key, _)| !is_directive(key)) {
        merge_entry(kind, target, patch, key, value)?;
    }
    for (key, value) in patch.iter().filter(|(key, _)| is_directive(key)) {
        let lone = |field: &str| !patch.contains_key(field);
        if let Some(field) = key.strip_prefix(DELETE_FROM).filter(|field| lone(field)) {
            delete_from(target, field, value)?;
        }
        if let Some(field) = key.strip_prefix(ORDER).filter(|field| lone(field)) {
            order(target, field, kind.field(field), value, &[]);
        }
    }
    Ok(())
}

fn merge_entry(
    kind: Kind<'_>,
    target: &mut Object,
    patch: &Object,
    key: &str,
    value: &Value,
) -> Result<(), PatchError> {
    match (value, target.get_mut(key)) {
        (Value::Null, _) => {
            target.remove(key);
        }
        (Value::Object(change), Some(Value::Object(current))) => {
            merge_object(kind.child(key), current, change)?;
            if change.get(DIRECTIVE).is_some_and(|directive| directive == "delete") {
                target.remove(key);
            }
        }
        (Value::Object(change), _) => {
            if change.get(DIRECTIVE).is_none_or(|directive| directive != "delete") {
                let mut fresh = Object::new();
                merge_object(kind.child(key), &mut fresh, change)?;
                target.insert(key.to_owned(), Value::Object(fresh));
            }
        }
        (Value::Array(items), _) => return merge_list(kind.field(key), target, patch, key, items),
        (value, _) => {
            target.insert(key.to_owned(), value.clone());
        }
    }
    Ok(())
}

/// Removes from a struct (a union, mostly) the keys that the patch does not name as kept.
fn retain_keys(target: &mut Object, patch: &Object) -> Result<(), PatchError> {
    let Some(kept) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let kept = kept.as_array().ok_or_else(|| malformed("unable to parse retainKeys"))?;
    for key in patch.keys().filter(|key| !is_directive(key)) {
        if !kept.iter().any(|one| one == key.as_str()) {
            return Err(malformed("the patch's retainKeys list doesn't contain all fields of the patch"));
        }
    }
    target.retain(|key, _| kept.iter().any(|one| one == key.as_str()));
    Ok(())
}

fn merge_list(
    field: Option<&Field>,
    target: &mut Object,
    patch: &Object,
    key: &str,
    items: &[Value],
) -> Result<(), PatchError> {
    let merging = field.filter(|field| field.merge.merge);
    let Some(field) = merging else {
        target.insert(key.to_owned(), Value::Array(items.iter().map(clean).collect()));
        return Ok(());
    };
    if let Some(gone) = patch.get(&format!("{DELETE_FROM}{key}")) {
        delete_from(target, key, gone)?;
    }
    let slot = target.entry(key).or_insert_with(|| Value::Array(Vec::new()));
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    let list = slot.as_array_mut().expect("it was made a list above");
    let server: Vec<Value> = list.clone();
    match field.merge.merge_key {
        Some(merge_key) => merge_items(field, merge_key, list, items)?,
        None => {
            for item in items {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        }
    }
    let as_sent = || Value::Array(items.to_vec());
    let wanted = patch.get(&format!("{ORDER}{key}")).cloned().unwrap_or_else(as_sent);
    order(target, key, Some(field), &wanted, &server);
    Ok(())
}

fn merge_items(field: &Field, merge_key: &str, list: &mut Vec<Value>, items: &[Value]) -> Result<(), PatchError> {
    let kind = match &field.shape {
        Shape::List(item) => Kind::of(item),
        _ => Kind::Free,
    };
    if items.iter().any(is_replace) {
        *list = items.iter().filter(|item| !is_replace(item)).map(clean).collect();
        return Ok(());
    }
    for item in items {
        let change = item.as_object().ok_or_else(|| malformed("map: invalid list type: items must be objects"))?;
        let id = change.get(merge_key).ok_or_else(|| missing_key(change, merge_key))?;
        let place = list.iter().position(|one| one.get(merge_key) == Some(id));
        match (change.get(DIRECTIVE).and_then(Value::as_str), place) {
            (Some("delete"), _) => list.retain(|one| one.get(merge_key) != Some(id)),
            (_, Some(at)) => {
                if let Some(current) = list[at].as_object_mut() {
                    merge_object(kind, current, change)?;
                }
            }
            (_, None) => {
                let mut fresh = Object::new();
                merge_object(kind, &mut fresh, change)?;
                list.push(Value::Object(fresh));
            }
        }
    }
    Ok(())
}

/// `[{"$patch": "replace"}, …]` replaces the whole list.
fn is_replace(item: &Value) -> bool {
    item.get(DIRECTIVE).is_some_and(|directive| directive == "replace")
}

fn delete_from(target: &mut Object, field: &str, gone: &Value) -> Result<(), PatchError> {
    let gone = gone.as_array().ok_or_else(|| malformed("invalid patch format of $deleteFromPrimitiveList"))?;
    if let Some(Value::Array(list)) = target.get_mut(field) {
        list.retain(|item| !gone.contains(item));
    }
    Ok(())
}

/// Puts the items the patch orders into its order; the others come before the first of those that stood behind them.
fn order(target: &mut Object, key: &str, field: Option<&Field>, wanted: &Value, server: &[Value]) {
    let (Some(Value::Array(list)), Some(wanted)) = (target.get_mut(key), wanted.as_array()) else { return };
    let merge_key = field.and_then(|field| field.merge.merge_key);
    let id = |item: &Value| merge_key.map_or_else(|| item.clone(), |name| item.get(name).cloned().unwrap_or_default());
    let rank = |item: &Value| wanted.iter().position(|one| id(one) == id(item));
    let server_rank = |item: &Value| server.iter().position(|one| id(one) == id(item)).unwrap_or(0);
    let (mut ordered, free): (Vec<Value>, Vec<Value>) =
        std::mem::take(list).into_iter().partition(|item| rank(item).is_some());
    ordered.sort_by_key(|item| rank(item));
    let mut free = free.into_iter().peekable();
    for item in ordered {
        while free.peek().is_some_and(|other| server_rank(other) < server_rank(&item)) {
            list.extend(free.next());
        }
        list.push(item);
    }
    list.extend(free);
}

/// A value of the patch as it is stored: without directives.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(cleaned(object)),
        Value::Array(items) => Value::Array(items.iter().map(clean).collect()),
        other => other.clone(),
    }
}

fn cleaned(patch: &Object) -> Object {
    let kept = patch.iter().filter(|(key, value)| !is_directive(key) && !value.is_null());
    kept.map(|(key, value)| (key.clone(), clean(value))).collect()
}

/// Other keys may start with a dollar sign: `$ref` in a schema.
fn is_directive(key: &str) -> bool {
    key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(DELETE_FROM) || key.starts_with(ORDER)
}

fn malformed(text: &str) -> PatchError {
    PatchError::Malformed(text.to_owned())
}

fn bad_directive(found: &str) -> PatchError {
    PatchError::Malformed(format!("unknown patch type found: \"{found}\""))
}

fn missing_key(item: &Object, merge_key: &str) -> PatchError {
    let item = Value::Object(item.clone());
    PatchError::Malformed(format!("map: {item} does not contain declared merge key: {merge_key}"))
}
