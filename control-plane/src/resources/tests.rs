use jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::auth::NOBODY;

fn context(plural: &str) -> Context<'static> {
    let resource = TABLE.iter().find(|r| r.plural == plural && r.group != "events.k8s.io").unwrap();
    Context { resource, user: &NOBODY, now: Timestamp::UNIX_EPOCH, subresource: None }
}

fn complaints(plural: &str, object: Value) -> Vec<String> {
    let context = context(plural);
    let mut object = object;
    context.resource.strategy.prepare_create(&context, &mut object);
    let errors = context.resource.strategy.validate_create(&context, &object);
    errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
}

#[test]
fn every_row_has_a_cell_for_each_column_even_of_an_empty_object() {
    for row in TABLE.iter().filter(|row| !row.is_virtual()) {
        let cells = row.strategy.cells(&json!({"metadata": {"name": "a"}}), Timestamp::UNIX_EPOCH);
        assert_eq!(cells.len(), row.columns.len(), "{}", row.qualified());
    }
}

#[test]
fn every_row_is_found_and_has_a_schema() {
    for row in TABLE {
        assert!(std::ptr::eq(by_plural(row.group, row.version, row.plural).unwrap(), row));
        assert!(std::ptr::eq(by_kind(row.group, row.version, row.kind).unwrap(), row));
        assert!(leme_schema::definition(row.schema).is_some(), "{}", row.schema);
    }
    for row in INTERNAL {
        assert!(by_qualified(&row.qualified()).is_some() && row.verbs.is_empty());
    }
}

#[test]
fn every_selectable_field_has_a_value() {
    for row in TABLE {
        for field in row.fields {
            assert!(row.strategy.field(&json!({}), field).is_some(), "{} {field}", row.qualified());
        }
        assert_eq!(row.strategy.field(&json!({}), "spec.nonsense"), None);
    }
}

#[test]
fn an_event_is_one_object_in_two_versions() {
    let stored = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"name": "p"}, "message": "m",
        "count": 2, "reason": "r",
    });
    let strategy = by_plural("events.k8s.io", "v1", "events").unwrap().strategy;
    let served = strategy.served(&stored).unwrap();
    assert_eq!(
        served,
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "regarding": {"name": "p"},
            "note": "m", "deprecatedCount": 2, "reason": "r",
        })
    );
    assert_eq!(strategy.stored(served), stored);
}

#[test]
fn what_a_load_balancer_reports_is_judged_too() {
    let context = Context { subresource: Some("status"), ..context("services") };
    let complaints = |kind: &str, ingress: Value| -> Vec<String> {
        let object = json!({"spec": {"type": kind}, "status": {"loadBalancer": {"ingress": [ingress]}}});
        let errors = context.resource.strategy.validate_update(&context, &object, &object);
        errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    };
    let path = "status.loadBalancer.ingress";
    assert!(complaints("LoadBalancer", json!({"ip": "192.0.2.1", "ipMode": "Proxy"})).is_empty());
    assert!(complaints("LoadBalancer", json!({"hostname": "lb.example.org"})).is_empty());
    assert_eq!(
        complaints("ClusterIP", json!({"ip": "192.0.2.1", "ipMode": "VIP"})),
        [format!("{path}: Forbidden: may only be used when `spec.type` is \"LoadBalancer\"")]
    );
    assert_eq!(
        complaints("LoadBalancer", json!({"ip": "192.0.2.1", "ipMode": "Tunnel"})),
        [format!("{path}[0].ipMode: Unsupported value: \"Tunnel\": supported values: \"Proxy\", \"VIP\"")]
    );
    assert_eq!(
        complaints("LoadBalancer", json!({"hostname": "lb", "ipMode": "VIP"})),
        [format!("{path}[0].ipMode: Forbidden: may not be specified when `ip` is not set")]
    );
    assert_eq!(complaints("LoadBalancer", json!({"hostname": "192.0.2.1"})).len(), 1);
}

#[test]
fn services_are_judged_in_upstreams_words() {
    let port = |port: i64, name: &str| json!({"port": port, "protocol": "TCP", "name": name});
    let service = |spec: Value| {
        let mut all = json!({"type": "ClusterIP", "sessionAffinity": "None"});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        json!({"metadata": {"name": "s", "namespace": "d"}, "spec": all})
    };
    for (spec, want) in [
        (json!({"ports": [port(80, "")]}), ""),
        (json!({}), "spec.ports: Required value"),
        (json!({"clusterIP": "None"}), ""),
        (
            json!({"ports": [port(0, "")]}),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (json!({"ports": [port(1, "a"), port(2, "a")]}), "spec.ports[1].name: Duplicate value: \"a\""),
        (
            json!({"type": "Cluster", "ports": [port(80, "")]}),
            "spec.type: Unsupported value: \"Cluster\": supported values: \"ClusterIP\", \"ExternalName\", \
             \"LoadBalancer\", \"NodePort\"",
        ),
        (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
        (
            json!({"ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"ports": [port(80, "")], "externalTrafficPolicy": "Local"}),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ),
        (
            json!({"ports": [port(80, "")], "ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack \
             services",
        ),
    ] {
        assert_eq!(complaints("services", service(spec.clone())).join("\n"), want, "{spec}");
    }
}

#[test]
fn other_kinds_are_judged_in_upstreams_words() {
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"});
    for (plural, object, want) in [
        (
            "configmaps",
            json!({"data": {"a b": "c"}}),
            "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or \
             '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ),
        ("secrets", json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), "data[tls.key]: Required value"),
        (
            "leases",
            json!({"spec": {"leaseDurationSeconds": 0}}),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
        ),
        (
            "roles",
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"]}]}),
            "rules[0].verbs: Required value: verbs must contain at least one value",
        ),
        (
            "rolebindings",
            json!({"roleRef": role, "subjects": [{"kind": "Robot", "name": "r"}]}),
            "subjects[0].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
        ),
        (
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}]}),
            "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        ("servicecidrs", json!({"spec": {"cidrs": []}}), "spec.cidrs: Required value: at least one CIDR required"),
        ("ipaddresses", json!({"metadata": {"name": "10.0.0.1"}}), "spec.parentRef: Required value"),
    ] {
        assert_eq!(complaints(plural, object.clone()).join("\n"), want, "{object}");
    }
}

#[test]
fn a_deployment_counts_what_its_writers_want_and_not_what_is() {
    let context = context("deployments");
    let strategy = context.resource.strategy;
    let mut old = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1}, "status": {"replicas": 9}});
    strategy.prepare_create(&context, &mut old);
    assert_eq!((&old["status"], &old["metadata"]["generation"]), (&json!({}), &json!(1)));
    let mut new = json!({"metadata": old["metadata"], "status": {"replicas": 1}});
    let status = Context { subresource: Some("status"), ..context };
    strategy.prepare_update(&status, &mut new, &old);
    assert_eq!((&new["status"]["replicas"], &new["metadata"]["generation"]), (&json!(1), &json!(1)));
    assert_eq!(new["spec"], old["spec"], "a status writer leaves the spec as it is, also by not mentioning it");
    let mut scaled = new.clone();
    apply_scale(&mut scaled, &json!({"spec": {"replicas": 5}})).unwrap();
    scaled["status"] = json!({"replicas": 7});
    let write = Context { subresource: None, ..status };
    strategy.prepare_update(&write, &mut scaled, &new);
    assert_eq!((&scaled["status"]["replicas"], &scaled["metadata"]["generation"]), (&json!(1), &json!(2)));
    assert_eq!(scale_of(&scaled)["spec"]["replicas"], 5);
}

#[test]
fn tables_show_what_kubectl_prints() {
    let node = json!({
        "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
    });
    let cells = |plural: &str, object: &Value| context(plural).resource.strategy.cells(object, Timestamp::UNIX_EPOCH);
    assert_eq!(cells("nodes", &node)[1..3], ["Ready,SchedulingDisabled", "control-plane"]);
    assert_eq!(cells("nodes", &node)[5..7], ["10.0.0.1", "<none>"]);
    let slice = json!({
        "metadata": {"name": "s"}, "addressType": "IPv4", "ports": [{"port": 80}],
        "endpoints": [{"addresses": ["1.1.1.1"]}, {"addresses": ["1.1.1.2"]}, {"addresses": ["1.1.1.3"]}, {"addresses": ["1.1.1.4"]}],
    });
    assert_eq!(cells("endpointslices", &slice)[2..4], ["80", "1.1.1.1,1.1.1.2,1.1.1.3 + 1 more..."]);
    let balancer = json!({"metadata": {"name": "s"}, "spec": {
        "type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30081}],
    }});
    assert_eq!(cells("services", &balancer)[1..5], ["LoadBalancer", "10.96.0.9", "<pending>", "80:30081/TCP"]);
}
