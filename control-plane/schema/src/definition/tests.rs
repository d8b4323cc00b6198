use schemars::SchemaGenerator;
use serde_json::Value;

use super::*;

fn shape_fits(shape: &Shape, schema: &Value) -> bool {
    let kind = schema["type"].as_str();
    match shape {
        Shape::String(_) => kind == Some("string"),
        Shape::Bytes => schema["format"] == "byte",
        Shape::Int32 | Shape::Int64 => kind == Some("integer"),
        Shape::Float => kind == Some("number"),
        Shape::Bool => kind == Some("boolean"),
        Shape::List(item) => kind == Some("array") && shape_fits(item, &schema["items"]),
        Shape::Map(value) => kind == Some("object") && shape_fits(value, &schema["additionalProperties"]),
        Shape::Object(id) => {
            schema["$ref"].as_str().is_some_and(|name| name.ends_with(&format!("/{}", id.definition().name())))
        }
        Shape::Time | Shape::MicroTime | Shape::Quantity | Shape::IntOrString | Shape::Any => true,
    }
}

/// Where `fields.txt` and the types that clients are compiled with differ, one of the two is out of date.
#[test]
fn fields_agree_with_k8s_openapi() {
    let mut generator = SchemaGenerator::default();
    for definition in all() {
        crate::openapi::register_kind(definition.short(), &mut generator);
    }
    let mut differences = Vec::new();
    for (name, schema) in generator.definitions() {
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else { continue };
        let Some(own) = definition(name) else {
            differences.push(format!("{name} is missing"));
            continue;
        };
        for (key, property) in properties {
            match own.field(key) {
                None => differences.push(format!("{name}.{key} is missing")),
                Some(field) if !shape_fits(&field.shape, property) => {
                    differences.push(format!("{name}.{key}: {field:?} is not {property}"))
                }
                Some(_) => {}
            }
        }
        let extra = own.fields().iter().filter(|field| !properties.contains_key(field.name));
        differences.extend(extra.map(|field| format!("{name}.{} is not in k8s-openapi", field.name)));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn types_know_their_names() {
    let role = definition("io.k8s.api.rbac.v1.ClusterRole").expect("a type");
    assert_eq!(
        (role.api_version().as_str(), role.kind(), role.go_type()),
        ("rbac.authorization.k8s.io/v1", "ClusterRole", "v1.ClusterRole")
    );
    let meta = definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").expect("a type");
    assert_eq!(meta.name(), "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
    assert_eq!(
        definition_of("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema").map(Definition::group).as_deref(),
        Some("flowcontrol.apiserver.k8s.io")
    );
    assert!(definition("core.v1.Nothing").is_none());
}

#[test]
fn merge_metadata_is_read() {
    let spec = definition("core.v1.PodSpec").expect("a type");
    let volumes = &spec.field("volumes").expect("a field").merge;
    assert_eq!(
        (volumes.list.clone(), volumes.merge_key, volumes.strategy()),
        (ListType::Map(vec!["name"]), Some("name"), Some("merge,retainKeys"))
    );
    let ports = &definition("core.v1.Container").expect("a type").field("ports").expect("a field").merge;
    assert_eq!(ports.list, ListType::Map(vec!["containerPort", "protocol"]));
    assert!(definition("meta.v1.LabelSelector").expect("a type").atomic);
}
