use super::*;
use crate::{conform, definition};

fn defaulted(name: &str, value: Value) -> Value {
    let definition = definition(name).expect("a type");
    let mut value = conform(definition, value).expect("it fits").value;
    set_defaults(definition, &mut value);
    let mut again = value.clone();
    set_defaults(definition, &mut again);
    assert_eq!(again, value, "defaulting twice changes nothing");
    value
}

#[test]
fn pods_are_defaulted_in_full() {
    let container = json!({"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
        "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1"}}});
    let pod = defaulted(
        "core.v1.Pod",
        json!({"spec": {"hostNetwork": true, "serviceAccount": "me", "containers": [container],
        "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]}}),
    );
    let probe = json!({"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
        "successThreshold": 1, "failureThreshold": 3});
    let wanted = json!({
        "hostNetwork": true, "serviceAccount": "me", "serviceAccountName": "me", "dnsPolicy": "ClusterFirst",
        "restartPolicy": "Always", "schedulerName": "default-scheduler", "securityContext": {},
        "terminationGracePeriodSeconds": 30, "enableServiceLinks": true,
        "containers": [{"name": "c", "image": "nginx", "imagePullPolicy": "Always",
            "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}], "livenessProbe": probe,
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
    });
    assert_eq!(pod["spec"], wanted);
}

#[test]
fn pull_policy_follows_the_tag() {
    for (image, latest) in [
        ("nginx", true),
        ("nginx:latest", true),
        ("nginx:1", false),
        ("host:5000/nginx", true),
        ("host:5000/a/nginx:2", false),
        ("nginx@sha256:00", false),
        ("nginx:latest@sha256:00", true),
    ] {
        assert_eq!(is_latest(image), latest, "{image}");
    }
}

#[test]
fn fields_get_their_defaults() {
    let rows = [
        (
            "apps.v1.Deployment",
            json!({}),
            "/spec/strategy",
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}}),
        ),
        (
            "apps.v1.Deployment",
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
            "/spec/strategy",
            json!({"type": "Recreate"}),
        ),
        ("apps.v1.Deployment", json!({"spec": {"replicas": 0}}), "/spec/replicas", json!(0)),
        (
            "apps.v1.DaemonSet",
            json!({}),
            "/spec/updateStrategy",
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}),
        ),
        ("apps.v1.StatefulSet", json!({}), "/spec/podManagementPolicy", json!("OrderedReady")),
        ("batch.v1.Job", json!({}), "/spec/completions", json!(1)),
        ("batch.v1.Job", json!({"spec": {"parallelism": 3}}), "/spec/completions", Value::Null),
        ("batch.v1.CronJob", json!({}), "/spec/concurrencyPolicy", json!("Allow")),
        (
            "core.v1.Namespace",
            json!({"metadata": {"name": "a"}}),
            "/metadata/labels",
            json!({"kubernetes.io/metadata.name": "a"}),
        ),
        (
            "core.v1.Service",
            json!({"spec": {"ports": [{"port": 80}]}}),
            "/spec/ports/0",
            json!({"port": 80, "targetPort": 80, "protocol": "TCP"}),
        ),
        ("core.v1.Service", json!({"spec": {"type": "NodePort"}}), "/spec/externalTrafficPolicy", json!("Cluster")),
        ("core.v1.Service", json!({"spec": {"type": "ExternalName"}}), "/spec/internalTrafficPolicy", Value::Null),
        (
            "core.v1.Service",
            json!({"spec": {"sessionAffinity": "ClientIP"}}),
            "/spec/sessionAffinityConfig/clientIP/timeoutSeconds",
            json!(10800),
        ),
        ("core.v1.Secret", json!({"stringData": {"a": "b"}}), "/data/a", json!("Yg==")),
        ("core.v1.Node", json!({"status": {"capacity": {"cpu": "2"}}}), "/status/allocatable/cpu", json!("2")),
        (
            "rbac.v1.RoleBinding",
            json!({"roleRef": {"kind": "Role", "name": "r"}}),
            "/roleRef/apiGroup",
            json!("rbac.authorization.k8s.io"),
        ),
        (
            "networking.v1.NetworkPolicy",
            json!({"spec": {"egress": [{}]}}),
            "/spec/policyTypes",
            json!(["Ingress", "Egress"]),
        ),
        (
            "discovery.v1.EndpointSlice",
            json!({"ports": [{"port": 1}]}),
            "/ports/0",
            json!({"port": 1, "name": "", "protocol": "TCP"}),
        ),
        ("storage.v1.StorageClass", json!({}), "/volumeBindingMode", json!("Immediate")),
    ];
    for (name, given, pointer, wanted) in rows {
        let value = defaulted(name, given.clone());
        assert_eq!(value.pointer(pointer).cloned().unwrap_or_default(), wanted, "{name} {given}");
    }
}

#[test]
fn every_constant_names_a_field_that_can_hold_it() {
    for (name, constants) in CONSTANTS.iter() {
        let definition = definition(name).unwrap_or_else(|| panic!("{name} is a type"));
        for (field, value) in constants {
            let given = json!({*field: value});
            let decoded = conform(definition, given).unwrap_or_else(|error| panic!("{name}.{field}: {error}"));
            assert!(decoded.problems.is_empty(), "{name}: {:?}", decoded.problems);
        }
    }
}
