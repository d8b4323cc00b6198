//! Server-side tables: what `kubectl get` prints.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    object::Shared,
    status::{Failure, Outcome},
};
use crate::resources::Resource;

/// `meta.k8s.io Table`. `include`: `None`, `Metadata` (the default) or `Object`.
pub fn table(resource: &Resource, items: &[Shared], meta: &Value, include: &str, v1: bool) -> Outcome<String> {
    let rows = rows(resource, items, include, v1)?;
    Ok(assemble(meta, Some(resource), &rows, v1))
}

/// The object of a watch event: one row; the columns only in the first.
pub fn event(resource: &Resource, item: &Shared, include: &str, v1: bool, columns: bool) -> Outcome<String> {
    let rows = rows(resource, std::slice::from_ref(item), include, v1)?;
    let meta = json!({"resourceVersion": item.revision.to_string()});
    Ok(assemble(&meta, columns.then_some(resource), &rows, v1))
}

fn assemble(meta: &Value, columns: Option<&Resource>, rows: &str, v1: bool) -> String {
    let version = if v1 { "v1" } else { "v1beta1" };
    let columns = columns.map_or(Value::Null, column_definitions);
    format!(
        r#"{{"kind":"Table","apiVersion":"meta.k8s.io/{version}","metadata":{meta},"columnDefinitions":{columns},"rows":[{rows}]}}"#
    )
}

fn column_definitions(resource: &Resource) -> Value {
    let definition = |c: &crate::resources::Column| {
        json!({
            "name": c.name, "type": c.kind, "format": c.format, "priority": c.priority, "description": c.description,
        })
    };
    resource.columns.iter().map(definition).collect()
}

fn rows(resource: &Resource, items: &[Shared], include: &str, v1: bool) -> Outcome<String> {
    let now = Timestamp::now();
    let mut rows = String::new();
    for item in items {
        let object = match include {
            "None" => "null".to_owned(),
            "Object" => String::from_utf8_lossy(&item.bytes).into_owned(),
            "" | "Metadata" => item.partial(v1),
            other => return Err(Failure::bad_request(format!("unrecognized includeObject value: {other:?}"))),
        };
        let cells = Value::Array(resource.strategy.cells(&item.value(), now));
        if !rows.is_empty() {
            rows.push(',');
        }
        rows.push_str(&format!(r#"{{"cells":{cells},"object":{object}}}"#));
    }
    Ok(rows)
}
