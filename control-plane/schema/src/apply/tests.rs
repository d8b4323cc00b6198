use super::*;
use crate::{decode_applied, definition};

fn manager(name: &str) -> Manager<'_> {
    Manager { name, api_version: "v1", subresource: "", time: "2024-05-01T10:00:00Z" }
}

fn apply_as(who: &str, live: Option<&Value>, applied: Value, force: bool) -> Result<Value, Conflicts> {
    apply(definition("core.v1.ConfigMap").expect("a type"), live, &applied, manager(who), force)
}

fn config(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": data})
}

fn owners(object: &Value) -> Vec<(String, Value)> {
    entries(object).into_iter().map(|entry| (entry.manager.clone(), entry.raw)).collect()
}

#[test]
fn fields_are_created_contested_taken_and_given_up() {
    let first = apply_as("alice", None, config(json!({"x": "1", "y": "2"})), false).expect("nobody else is there");
    assert_eq!(owners(&first), [("alice".to_owned(), json!({"f:data": {"f:x": {}, "f:y": {}}}))]);
    let refused = apply_as("bob", Some(&first), config(json!({"x": "9"})), false).expect_err("alice owns it");
    assert_eq!(refused.to_string(), r#"Apply failed with 1 conflict: conflict with "alice": .data.x"#);
    let forced = apply_as("bob", Some(&first), config(json!({"x": "9"})), true).expect("it is forced");
    assert_eq!(forced["data"], json!({"x": "9", "y": "2"}));
    let wanted =
        [("alice".to_owned(), json!({"f:data": {"f:y": {}}})), ("bob".to_owned(), json!({"f:data": {"f:x": {}}}))];
    assert_eq!(owners(&forced), wanted);
    let emptied = apply_as("alice", Some(&forced), config(json!({})), false).expect("it is hers");
    assert_eq!(emptied["data"], json!({"x": "9"}));
    assert_eq!(owners(&emptied)[0].1, json!({"f:data": {}}));
}

#[test]
fn the_same_value_is_shared_and_survives_one_of_its_owners() {
    let first = apply_as("alice", None, config(json!({"x": "1"})), false).expect("nobody else is there");
    let shared = apply_as("bob", Some(&first), config(json!({"x": "1"})), false).expect("nothing changes");
    let left = apply_as("alice", Some(&shared), config(json!({"y": "2"})), false).expect("it is hers");
    assert_eq!(left["data"], json!({"x": "1", "y": "2"}));
}

#[test]
fn list_items_are_owned_by_their_keys() {
    let definition = definition("apps.v1.Deployment").expect("a type");
    let body = br#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"selector":{"matchLabels":{"app":"x"}},
        "template":{"metadata":{"labels":{"app":"x"}},"spec":{"containers":[{"name":"c","image":"i:1","ports":[{"containerPort":80}]}]}}}}"#;
    let applied = decode_applied(definition, body).expect("it decodes").value;
    let who = Manager { api_version: "apps/v1", ..manager("alice") };
    let created = apply(definition, None, &applied, who, false).expect("nobody else is there");
    let port = json!({".": {}, "f:containerPort": {}});
    let container =
        json!({".": {}, "f:image": {}, "f:name": {}, "f:ports": {r#"k:{"containerPort":80,"protocol":"TCP"}"#: port}});
    let template = json!({"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": {"f:containers": {r#"k:{"name":"c"}"#: container}}});
    assert_eq!(owners(&created)[0].1, json!({"f:spec": {"f:selector": {}, "f:template": template}}));

    let mut live = conform(definition, created).expect("it conforms").value;
    crate::set_defaults(definition, &mut live);
    let again = apply(definition, Some(&live), &applied, who, false).expect("nothing changes");
    assert_eq!(again, live);
    let other = br#"{"apiVersion":"apps/v1","kind":"Deployment","spec":{"template":{"spec":{"containers":[{"name":"d","image":"j"}]}}}}"#;
    let other = decode_applied(definition, other).expect("it decodes").value;
    let moved = apply(definition, Some(&live), &other, who, false).expect("it is hers");
    let names: Vec<&str> = moved["spec"]["template"]["spec"]["containers"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(names, ["d"]);
}

#[test]
fn updates_own_what_they_change() {
    let definition = definition("core.v1.Pod").expect("a type");
    let body =
        json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let mut created = conform(definition, body).expect("it conforms").value;
    track_update(definition, None, &mut created, manager("golden"));
    let container = json!({".": {}, "f:image": {}, "f:name": {}, "f:resources": {}});
    let wanted = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:containers": {r#"k:{"name":"c"}"#: container}}});
    assert_eq!(owners(&created), [("golden".to_owned(), wanted)]);

    let mut changed = created.clone();
    changed["metadata"]["labels"] = json!({"a": "z"});
    track_update(definition, Some(&created), &mut changed, manager("other"));
    assert_eq!(owners(&changed)[1], ("other".to_owned(), json!({"f:metadata": {"f:labels": {"f:a": {}}}})));
    assert_eq!(owners(&changed)[0].1["f:metadata"], json!({"f:labels": {}}));

    let mut ready = changed.clone();
    ready["status"] = json!({"phase": "Running"});
    track_update(definition, Some(&changed), &mut ready, Manager { subresource: "status", ..manager("kubelet") });
    assert!(owners(&ready).contains(&("kubelet".to_owned(), json!({"f:status": {"f:phase": {}}}))));
}

fn updated(old: Option<&Value>, data: Value, who: Manager<'_>) -> Value {
    let mut new = config(data);
    track_update(definition("core.v1.ConfigMap").expect("a type"), old, &mut new, who);
    new
}

#[test]
fn a_manager_that_applies_gives_up_items_and_keeps_what_stands_around_them() {
    let first = apply_as("alice", None, config(json!({"x": "1", "y": "2"})), false).expect("nobody else is there");
    let mut migrated = first.clone();
    // As client-side tools write it: the map itself is owned, too.
    migrated["metadata"]["managedFields"][0]["fieldsV1"]["f:data"]["."] = json!({});
    let left = apply_as("alice", Some(&migrated), config(json!({"y": "2"})), false).expect("it is hers");
    assert_eq!(left["data"], json!({"y": "2"}));
    let none = apply_as("alice", Some(&left), json!({"apiVersion": "v1", "kind": "ConfigMap"}), false).expect("hers");
    assert_eq!(none.get("data"), None, "what holds nothing any more goes");
}

#[test]
fn a_time_changes_with_the_fields_only() {
    let later = Manager { time: "2024-05-01T11:00:00Z", ..manager("bob") };
    let time = |object: &Value| object["metadata"]["managedFields"][0]["time"].clone();
    let first = updated(None, json!({"x": "1"}), manager("bob"));
    let mut same = updated(Some(&first), json!({"x": "1"}), later);
    assert_eq!(time(&same), "2024-05-01T10:00:00Z");
    assert_eq!(same, first);
    let changed = updated(Some(&first), json!({"x": "2"}), later);
    assert_eq!(time(&changed), "2024-05-01T11:00:00Z");
    same["metadata"]["managedFields"][0]["time"] = json!("2024-05-01T12:00:00Z");
    assert!(same_but_times(&same, &first) && !same_but_times(&same, &changed));
}

#[test]
fn a_writer_may_end_the_tracking_and_the_next_apply_begins_it_anew() {
    let first = updated(None, json!({"x": "1"}), manager("bob"));
    for nothing in [json!([]), json!([{}])] {
        let mut reset = config(json!({"x": "2"}));
        reset["metadata"]["managedFields"] = nothing;
        track_update(definition("core.v1.ConfigMap").expect("a type"), Some(&first), &mut reset, manager("bob"));
        assert_eq!(reset["metadata"].get("managedFields"), None);
        let untracked = updated(Some(&reset), json!({"x": "3"}), manager("bob"));
        assert_eq!(untracked["metadata"].get("managedFields"), None);
        let refused = apply_as("alice", Some(&untracked), config(json!({"x": "4"})), false).expect_err("it was there");
        assert!(refused.to_string().contains(r#"conflict with "before-first-apply" using v1"#), "{refused}");
    }
}

#[test]
fn kubectl_takes_over_what_it_applied_client_side() {
    let mut live = config(json!({"x": "1", "y": "2"}));
    let last = config(json!({"x": "1", "y": "0"})).to_string();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: last});
    track_update(
        definition("core.v1.ConfigMap").expect("a type"),
        None,
        &mut live,
        manager("kubectl-client-side-apply"),
    );
    let taken = apply_as("kubectl", Some(&live), config(json!({"x": "5"})), false).expect("x is as it was applied");
    assert_eq!(taken["data"], json!({"x": "5", "y": "2"}));
    let annotation = taken["metadata"]["annotations"][LAST_APPLIED].as_str().expect("it stays");
    assert_eq!(serde_json::from_str::<Value>(annotation).expect("JSON")["data"], json!({"x": "5"}));
    apply_as("kubectl", Some(&live), config(json!({"y": "5"})), false).expect_err("y was changed since");
    apply_as("other", Some(&live), config(json!({"x": "5"})), false).expect_err("it is not kubectl's");
}

#[test]
fn too_many_updaters_become_one() {
    let mut object = updated(None, json!({"k0": "0"}), manager("m0"));
    for n in 1..15 {
        let (name, time) = (format!("m{n}"), format!("2024-05-01T10:{n:02}:00Z"));
        let mut data = object["data"].clone();
        data[format!("k{n}")] = json!("0");
        object = updated(Some(&object), data, Manager { time: &time, ..manager(&name) });
    }
    let owners = owners(&object);
    assert_eq!(owners.len(), 10);
    assert_eq!(owners[0].0, "ancient-changes");
    assert_eq!(owners[0].1["f:data"].as_object().expect("fields").len(), 7, "the map itself and six of its keys");
}
