use serde_json::json;

use super::*;
use crate::resources::by_plural;

fn messages(errors: Vec<FieldError>) -> Vec<String> {
    errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {
        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
        "containers": [{"name": "c", "image": "i"}],
    }});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn container(fields: Value) -> Value {
    let mut container = json!({"name": "c", "image": "i"});
    for (key, value) in fields.as_object().unwrap() {
        container[key] = value.clone();
    }
    pod(json!({"containers": [container]}))
}

fn complaints(pod: &Value) -> Vec<String> {
    messages(validate_spec(&At::root(pod).at("spec")))
}

#[test]
fn each_wrong_field_is_named_with_upstreams_words() {
    let probe = |probe: Value| container(json!({"livenessProbe": probe}));
    let cases = [
        (pod(json!({})), None),
        (pod(json!({"containers": []})), Some("spec.containers: Required value")),
        (
            pod(json!({"restartPolicy": "Sometimes"})),
            Some(
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
        ),
        (container(json!({"image": ""})), Some("spec.containers[0].image: Required value")),
        (
            container(json!({"ports": [{"containerPort": 70000, "protocol": "TCP"}]})),
            Some(
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
        ),
        (
            container(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
            Some(
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
        ),
        (
            container(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})),
            Some("spec.containers[0].volumeMounts[0].name: Not found: \"v\""),
        ),
        (pod(json!({"volumes": [{"name": "v"}]})), Some("spec.volumes[0]: Required value: must specify a volume type")),
        (
            pod(json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]})),
            Some("spec.volumes[1].name: Duplicate value: \"v\""),
        ),
        (probe(json!({})), Some("spec.containers[0].livenessProbe: Required value: must specify a handler type")),
        (
            probe(json!({"tcpSocket": {"port": 80}, "successThreshold": 2})),
            Some("spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"),
        ),
        (
            container(json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.foo"}}}]})),
            Some(
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.foo\": \
                 error converting fieldPath: field label not supported: spec.foo",
            ),
        ),
        (
            pod(json!({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]})),
            Some("spec.tolerations[0].operator: Invalid value: \"b\": value must be empty when `operator` is 'Exists'"),
        ),
        (
            pod(json!({"terminationGracePeriodSeconds": -1})),
            Some("spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0"),
        ),
    ];
    for (pod, want) in cases {
        assert_eq!(complaints(&pod), want.map(str::to_owned).into_iter().collect::<Vec<_>>(), "{pod}");
    }
}

#[test]
fn a_running_pods_spec_keeps_all_but_the_image() {
    let old = pod(json!({}));
    let image = container(json!({"image": "other"}));
    assert!(update::validate(&image, &old).is_empty());
    let name = container(json!({"name": "other"}));
    let errors = messages(update::validate(&name, &old));
    assert!(
        errors[0]
            .starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,")
    );
    let tolerating = pod(json!({"tolerations": [{"key": "a", "operator": "Exists"}]}));
    assert!(update::validate(&tolerating, &old).is_empty());
    assert_eq!(
        messages(update::validate(&old, &tolerating)),
        ["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"]
    );
}

#[test]
fn the_quality_of_service_follows_from_cpu_and_memory() {
    let of = |resources: Value| quality(&container(json!({"resources": resources})));
    assert_eq!(of(json!({})), "BestEffort");
    assert_eq!(of(json!({"requests": {"cpu": "1"}})), "Burstable");
    let all = json!({"cpu": "1", "memory": "1Gi"});
    assert_eq!(of(json!({"limits": all, "requests": all})), "Guaranteed");
}

#[test]
fn grace_is_the_pods_own_unless_asked_or_pointless() {
    let mut pod = pod(json!({"terminationGracePeriodSeconds": 30}));
    assert_eq!(Pod.grace_period(&pod, Some(5)), 0, "not bound to a node");
    pod["spec"]["nodeName"] = "n".into();
    assert_eq!(Pod.grace_period(&pod, None), 30);
    assert_eq!(Pod.grace_period(&pod, Some(5)), 5);
    assert_eq!(Pod.grace_period(&pod, Some(0)), 0);
    assert_eq!(Pod.grace_period(&pod, Some(-3)), 1);
    pod["status"] = json!({"phase": "Succeeded"});
    assert_eq!(Pod.grace_period(&pod, None), 0);
}

#[test]
fn a_pod_is_bound_once() {
    let mut pod = pod(json!({}));
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    bind(&mut pod, &binding, Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(pod["spec"]["nodeName"], "n1");
    assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
    let refused = bind(&mut pod, &binding, Timestamp::UNIX_EPOCH).unwrap_err();
    assert_eq!(refused, BindError::Conflict("pod a is already assigned to node \"n1\"".to_owned()));
}

#[test]
fn the_table_says_what_containers_are_doing() {
    let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
    let running = json!({"name": "c", "ready": true, "restartCount": 0, "state": {"running": {}}});
    let crashing = json!({
        "name": "c", "ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:55:00Z"}},
    });
    let completed =
        json!({"name": "c", "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
    let cases = [
        (json!({"phase": "Pending"}), json!({}), ["0/1", "Pending", "0"]),
        (json!({"phase": "Running", "containerStatuses": [running]}), json!({}), ["1/1", "Running", "0"]),
        (
            json!({"phase": "Running", "containerStatuses": [crashing]}),
            json!({}),
            ["0/1", "CrashLoopBackOff", "3 (5m ago)"],
        ),
        (json!({"phase": "Succeeded", "containerStatuses": [completed]}), json!({}), ["0/1", "Completed", "0"]),
        (
            json!({"phase": "Running", "containerStatuses": [running]}),
            json!({"deletionTimestamp": "2026-01-01T00:59:00Z"}),
            ["1/1", "Terminating", "0"],
        ),
        (json!({"phase": "Failed", "reason": "Evicted"}), json!({}), ["0/1", "Evicted", "0"]),
    ];
    for (status, metadata, want) in cases {
        let mut pod = pod(json!({}));
        pod["status"] = status;
        pod["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        for (key, value) in metadata.as_object().unwrap() {
            pod["metadata"][key] = value.clone();
        }
        let cells = Pod.cells(&pod, now);
        assert_eq!(cells.len(), by_plural("", "v1", "pods").unwrap().columns.len());
        assert_eq!(cells[1..4], want.map(Value::from), "{pod}");
        assert_eq!(cells[4], "60m");
    }
}

#[test]
fn a_pod_that_waits_for_its_init_containers_says_how_far_it_is() {
    let mut pod = pod(json!({"initContainers": [{"name": "one"}, {"name": "two"}]}));
    pod["status"] = json!({"phase": "Pending", "initContainerStatuses": [
        {"name": "one", "state": {"terminated": {"exitCode": 0}}},
        {"name": "two", "state": {"running": {}}},
    ]});
    assert_eq!(Pod.cells(&pod, Timestamp::UNIX_EPOCH)[2], "Init:1/2");
    pod["status"]["initContainerStatuses"][1]["state"] = json!({"terminated": {"exitCode": 2, "reason": "Error"}});
    assert_eq!(Pod.cells(&pod, Timestamp::UNIX_EPOCH)[2], "Init:Error");
}
