//! OpenAPI: version 3 (an index and one document per group and version) and version 2 (one document), from the same rows
//! as discovery.
//!
//! Schemas and their texts come from `k8s-openapi`; merge metadata, defaults of structs and group-version-kinds are added
//! here. Everything is made when first asked for: the API keeps the bytes and their hash. kubectl's explain, apply and
//! validation read it.

mod gnostic;
mod kinds;
mod paths;

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::definition::{Definition, Field, ListType, Shape, definition, definition_of};
use crate::discovery::Row;

pub use gnostic::{ASKED_AS as V2_PROTOBUF_ASKED, MEDIA_TYPE as V2_PROTOBUF};

/// A document and what names its content: for ETag and `?hash=`.
#[derive(Clone, Debug)]
pub struct Document {
    pub bytes: Vec<u8>,
    /// Upper-case hexadecimal.
    pub hash: String,
}

/// The two dialects differ in where schemas live and in what may stand beside a reference.
#[derive(Clone, Copy, PartialEq)]
enum Edition {
    V2,
    V3,
}

impl Document {
    fn new(value: &Value) -> Self {
        Self::of_bytes(value.to_string().into_bytes())
    }

    fn of_bytes(bytes: Vec<u8>) -> Self {
        let hash = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02X}")).collect();
        Self { bytes, hash }
    }
}

/// `/openapi/v3`: where each group-version's document is. `hash` gives a document's hash.
pub fn index(rows: &[Row<'_>], mut hash: impl FnMut(&str, &str) -> String) -> Value {
    let mut paths = Map::new();
    for row in rows {
        let path = document_path(row.group, row.version);
        if !paths.contains_key(&path) {
            let url = format!("/openapi/v3/{path}?hash={}", hash(row.group, row.version));
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// `api/v1`, `apis/apps/v1`: below `/openapi/v3/`.
pub fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// One group-version's document; `None` if nothing is served there.
pub fn v3(rows: &[Row<'_>], group: &str, version: &str) -> Option<Document> {
    let served: Vec<&Row<'_>> = rows.iter().filter(|row| row.group == group && row.version == version).collect();
    if served.is_empty() {
        return None;
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.2"},
        "paths": paths::of(&served, Edition::V3),
        "components": {"schemas": schemas(&served, Edition::V3)},
    });
    Some(Document::new(&document))
}

/// `/openapi/v2`
pub fn v2(rows: &[Row<'_>]) -> Document {
    Document::new(&swagger(rows))
}

/// The same as gnostic's `openapi.v2.Document`, for who accepts [`V2_PROTOBUF`].
pub fn v2_protobuf(rows: &[Row<'_>]) -> Document {
    Document::of_bytes(gnostic::document(&swagger(rows)))
}

fn swagger(rows: &[Row<'_>]) -> Value {
    let served: Vec<&Row<'_>> = rows.iter().collect();
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.36.2"},
        "paths": paths::of(&served, Edition::V2),
        "definitions": schemas(&served, Edition::V2),
    })
}

impl Edition {
    fn prefix(self) -> &'static str {
        match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        }
    }

    fn reference(self, name: &str) -> Value {
        json!({"$ref": format!("{}{name}", self.prefix())})
    }
}

/// The types that rows name, and all that those refer to.
fn schemas(rows: &[&Row<'_>], edition: Edition) -> Map<String, Value> {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = edition.prefix().trim_start_matches('#').trim_end_matches('/').to_owned().into();
    settings.meta_schema = None;
    settings.transforms.clear();
    let mut generator = settings.into_generator();
    kinds::register_common(&mut generator);
    let roots = roots(rows);
    for definition in roots.values() {
        kinds::register(definition.short(), &mut generator);
    }
    let mut schemas: Map<String, Value> = generator.take_definitions(false);
    for (name, schema) in &mut schemas {
        complete(name, schema, edition);
    }
    for (gvk, definition) in &roots {
        mark_kind(&mut schemas, &definition.name(), gvk);
    }
    for row in rows.iter().filter(|row| row.verbs.contains(&"list")) {
        add_list(&mut schemas, row, edition);
    }
    schemas
}

type Gvk = (String, String, String);

fn roots(rows: &[&Row<'_>]) -> BTreeMap<Gvk, &'static Definition> {
    let own = rows.iter().map(|row| (row.group, row.version, row.kind));
    let subs = rows.iter().flat_map(|row| row.subresources.iter().map(|sub| sub.kind));
    own.chain(subs)
        .filter_map(|(group, version, kind)| {
            let definition = definition_of(group, version, kind)?;
            Some(((group.to_owned(), version.to_owned(), kind.to_owned()), definition))
        })
        .collect()
}

fn mark_kind(schemas: &mut Map<String, Value>, name: &str, (group, version, kind): &Gvk) {
    if let Some(Value::Object(schema)) = schemas.get_mut(name) {
        let gvk = json!([{"group": group, "version": version, "kind": kind}]);
        schema.insert("x-kubernetes-group-version-kind".to_owned(), gvk);
    }
}

/// `PodList`: all lists look alike.
fn add_list(schemas: &mut Map<String, Value>, row: &Row<'_>, edition: Edition) {
    let Some(definition) = definition_of(row.group, row.version, row.kind) else { return };
    let name = format!("{}List", definition.name());
    let text = |description: &str| json!({"type": "string", "description": description});
    let meta = edition.reference("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta");
    let items = json!({"type": "array", "items": edition.reference(&definition.name()), "description": format!("{} objects.", row.kind)});
    let list = json!({
        "description": format!("{}List is a list of {}.", row.kind, row.plural),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": text("APIVersion defines the versioned schema of this representation of an object."),
            "kind": text("Kind is a string value representing the REST resource this object represents."),
            "items": items,
            "metadata": meta,
        },
    });
    schemas.insert(name.clone(), list);
    let gvk = (row.group.to_owned(), row.version.to_owned(), format!("{}List", row.kind));
    mark_kind(schemas, &name, &gvk);
}

/// Adds to a type's schema what `k8s-openapi` leaves out.
fn complete(name: &str, schema: &mut Value, edition: Edition) {
    let own = definition(name);
    let Value::Object(schema) = schema else { return };
    spell_special(schema, edition);
    if own.is_some_and(|own| own.atomic) {
        schema.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
    }
    for (key, property) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        let field = own.and_then(|own| own.field(key));
        if let (Some(field), Value::Object(property)) = (field, &mut *property) {
            add_merge(field, property);
        }
        wrap_references(property, field, edition);
    }
}

/// Types whose JSON is a choice.
fn spell_special(schema: &mut Map<String, Value>, edition: Edition) {
    if schema.remove("x-kubernetes-int-or-string").is_none() {
        return;
    }
    let quantity = schema.get("description").and_then(Value::as_str).is_some_and(|text| text.starts_with("Quantity"));
    match (edition, quantity) {
        (Edition::V2, true) => schema.insert("type".to_owned(), json!("string")),
        (Edition::V2, false) => {
            schema.insert("format".to_owned(), json!("int-or-string"));
            schema.insert("type".to_owned(), json!("string"))
        }
        (Edition::V3, true) => schema.insert("oneOf".to_owned(), json!([{"type": "string"}, {"type": "number"}])),
        (Edition::V3, false) => {
            schema.insert("format".to_owned(), json!("int-or-string"));
            schema.insert("oneOf".to_owned(), json!([{"type": "integer"}, {"type": "string"}]))
        }
    };
}

fn add_merge(field: &Field, property: &mut Map<String, Value>) {
    let mut add = |key: &str, value: Value| property.insert(format!("x-kubernetes-{key}"), value);
    match &field.merge.list {
        ListType::Map(keys) => {
            add("list-type", json!("map"));
            add("list-map-keys", json!(keys));
        }
        ListType::Set => {
            add("list-type", json!("set"));
        }
        ListType::Atomic if field.merge.atomic && matches!(field.shape, Shape::List(_)) => {
            add("list-type", json!("atomic"));
        }
        ListType::Atomic if field.merge.atomic => {
            add("map-type", json!("atomic"));
        }
        ListType::Atomic => {}
    }
    if let Some(strategy) = field.merge.strategy() {
        add("patch-strategy", json!(strategy));
    }
    if let Some(key) = field.merge.merge_key {
        add("patch-merge-key", json!(key));
    }
}

/// In version 3 nothing may stand beside `$ref`, so a described reference is an `allOf` of one.
fn wrap_references(property: &mut Value, field: Option<&Field>, edition: Edition) {
    let Value::Object(object) = property else { return };
    if edition == Edition::V3 && object.len() > 1 {
        if let Some(reference) = object.remove("$ref") {
            object.insert("allOf".to_owned(), json!([{"$ref": reference}]));
        }
        let plain_struct = field.is_some_and(|field| !field.pointer && matches!(field.shape, Shape::Object(_)));
        if plain_struct {
            object.insert("default".to_owned(), json!({}));
        }
    }
}

#[cfg(test)]
pub(crate) use kinds::register as register_kind;

#[cfg(test)]
mod tests;
