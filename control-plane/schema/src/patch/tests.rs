use serde_json::json;

use super::*;
use crate::definition;

fn pod_patch(target: Value, patch: Value) -> Result<Value, PatchError> {
    let mut target = target;
    strategic_merge(definition("io.k8s.api.core.v1.Pod").expect("a type"), &mut target, &patch)?;
    Ok(target)
}

fn containers(items: Value) -> Value {
    json!({"spec": {"containers": items}})
}

#[test]
fn strategic_merge_follows_the_schema() {
    let two = || {
        containers(
            json!([{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "b:1"}]),
        )
    };
    let rows = [
        (
            "an item merges by its key",
            containers(json!([{"name": "b", "image": "b:2"}])),
            containers(
                json!([{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "b:2"}]),
            ),
        ),
        (
            "lists merge inside items",
            containers(json!([{"name": "a", "env": [{"name": "Y", "value": "2"}]}])),
            containers(
                json!([{"name": "a", "image": "a:1", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]}, {"name": "b", "image": "b:1"}]),
            ),
        ),
        (
            "an item goes by directive",
            containers(json!([{"name": "a", "$patch": "delete"}])),
            containers(json!([{"name": "b", "image": "b:1"}])),
        ),
        (
            "a list is replaced by directive",
            containers(json!([{"$patch": "replace"}, {"name": "c"}])),
            containers(json!([{"name": "c"}])),
        ),
        ("null removes", json!({"spec": {"containers": null}}), json!({"spec": {}})),
        (
            "atomic lists are replaced",
            containers(
                json!([{"name": "a", "command": ["x"], "image": null, "env": null}, {"name": "b", "$patch": "delete"}]),
            ),
            containers(json!([{"name": "a", "command": ["x"]}])),
        ),
        (
            "order follows the patch",
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "image": "a:2", "env": null}]}}),
            containers(json!([{"name": "b", "image": "b:1"}, {"name": "a", "image": "a:2"}])),
        ),
    ];
    for (what, patch, wanted) in rows {
        assert_eq!(pod_patch(two(), patch).expect(what), wanted, "{what}");
    }
}

#[test]
fn primitive_lists_merge_and_lose_items() {
    let start = json!({"metadata": {"finalizers": ["a", "b"]}});
    let added = pod_patch(start.clone(), json!({"metadata": {"finalizers": ["c", "a"]}}));
    assert_eq!(added, Ok(json!({"metadata": {"finalizers": ["c", "a", "b"]}})));
    let deleted = pod_patch(start, json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}));
    assert_eq!(deleted, Ok(json!({"metadata": {"finalizers": ["b"]}})));
}

#[test]
fn retain_keys_drops_the_other_member_of_a_union() {
    let mut target = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    strategic_merge(definition("apps.v1.Deployment").expect("a type"), &mut target, &patch).expect("it applies");
    assert_eq!(target, json!({"spec": {"strategy": {"type": "Recreate"}}}));
}

#[test]
fn bad_patches_are_refused() {
    let missing = pod_patch(json!({}), containers(json!([{"image": "x"}]))).unwrap_err().to_string();
    assert_eq!(missing, "map: {\"image\":\"x\"} does not contain declared merge key: name");
    let unknown = pod_patch(json!({}), json!({"$patch": "explode"})).unwrap_err().to_string();
    assert_eq!(unknown, "unknown patch type found: \"explode\"");
}

#[test]
fn json_patches_apply_or_say_why_not() {
    let mut object = json!({"data": {"a": "1"}});
    json_patch(&mut object, br#"[{"op": "add", "path": "/data/b", "value": "2"}]"#).expect("it applies");
    assert_eq!(object, json!({"data": {"a": "1", "b": "2"}}));
    let failed = json_patch(&mut object, br#"[{"op": "test", "path": "/data/z", "value": "2"}]"#).unwrap_err();
    assert_eq!(
        failed,
        PatchError::Inapplicable("the server rejected our request due to an error in our request".to_owned())
    );
    assert!(matches!(json_patch(&mut object, b"{}"), Err(PatchError::Malformed(_))));
}

#[test]
fn merge_patches_remove_with_null() {
    let mut object = json!({"data": {"a": "1", "b": "2"}});
    merge_patch(&mut object, &json!({"data": {"a": null, "c": "3"}})).expect("it applies");
    assert_eq!(object, json!({"data": {"b": "2", "c": "3"}}));
}
