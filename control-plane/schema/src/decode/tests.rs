use serde_json::json;

use super::*;
use crate::definition;

fn decode(name: &str, body: &str) -> Result<Decoded, String> {
    decode_json(definition(name).expect("a type"), body.as_bytes()).map_err(|error| error.to_string())
}

fn pod(spec: &str) -> Result<Decoded, String> {
    decode("io.k8s.api.core.v1.Pod", &format!(r#"{{"apiVersion":"v1","kind":"Pod","spec":{spec}}}"#))
}

#[test]
fn unknown_and_duplicate_fields_are_named_in_the_order_of_the_body() {
    let decoded = pod(
        r#"{"contaners":[],"containers":[{"name":"c","image":"i","imagePulPolicy":"x","image":"j"}],"nodeName":"a"}"#,
    );
    let decoded = decoded.expect("it decodes");
    assert_eq!(
        decoded.problems,
        [
            r#"unknown field "spec.contaners""#,
            r#"unknown field "spec.containers[0].imagePulPolicy""#,
            r#"duplicate field "spec.containers[0].image""#,
        ]
    );
    assert_eq!(decoded.value["spec"]["containers"][0]["image"], "j");
    let strict = strict_error(definition("core.v1.Pod").expect("a type"), &decoded.problems[..1]).to_string();
    let wanted =
        r#"Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.contaners""#;
    assert_eq!(strict, wanted);
}

#[test]
fn empties_are_shown_and_left_out_as_go_does() {
    let rows = [
        (r#"{"containers":[]}"#, json!({"containers": []})),
        ("{}", json!({"containers": null})),
        (
            r#"{"containers":[],"hostNetwork":false,"nodeName":"","volumes":[],"nodeSelector":{}}"#,
            json!({"containers": []}),
        ),
        (
            r#"{"containers":[],"securityContext":{},"automountServiceAccountToken":false,"priority":0}"#,
            json!({"containers": [], "securityContext": {}, "automountServiceAccountToken": false, "priority": 0}),
        ),
        (
            r#"{"containers":[{"name":"a","ports":[{"containerPort":1,"hostPort":0}]}]}"#,
            json!({"containers": [{"name": "a", "resources": {}, "ports": [{"containerPort": 1}]}]}),
        ),
        (r#"{"containers":[],"nodeName":null}"#, json!({"containers": []})),
    ];
    for (given, wanted) in rows {
        assert_eq!(pod(given).expect("it decodes").value["spec"], wanted, "{given}");
    }
    let deployment = decode("apps.v1.Deployment", r#"{"spec":{"replicas":0}}"#).expect("it decodes").value;
    let template = json!({"metadata": {}, "spec": {"containers": null}});
    let spec = json!({"replicas": 0, "selector": null, "strategy": {}, "template": template});
    assert_eq!(deployment, json!({"metadata": {}, "spec": spec, "status": {}}));
}

#[test]
fn scalars_take_their_canonical_form() {
    let spec = r#"{"containers":[{"name":"c","resources":{"limits":{"cpu":"1000m","memory":1024,"x":0.5}},"livenessProbe":{"httpGet":{"port":"web"}}}]}"#;
    let value = pod(spec).expect("it decodes").value;
    let container = &value["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"], json!({"cpu": "1", "memory": "1024", "x": "500m"}));
    assert_eq!(container["livenessProbe"]["httpGet"]["port"], "web");
    let lease = decode(
        "coordination.v1.Lease",
        r#"{"spec":{"renewTime":"2024-05-01T10:00:00.5+02:00"},"metadata":{"deletionTimestamp":"2024-05-01T10:00:00.9+02:00"}}"#,
    );
    let lease = lease.expect("it decodes").value;
    assert_eq!(lease["spec"]["renewTime"], "2024-05-01T08:00:00.500000Z");
    assert_eq!(lease["metadata"]["deletionTimestamp"], "2024-05-01T08:00:00Z");
}

#[test]
fn misfits_get_upstreams_words() {
    let prefix = r#"Pod in version "v1" cannot be handled as a Pod: "#;
    let go = "json: cannot unmarshal ";
    for (spec, wanted) in [
        (
            r#"{"containers":"nginx"}"#,
            format!("{go}string into Go struct field PodSpec.spec.containers of type []v1.Container"),
        ),
        (
            r#"{"containers":[{"name":1}]}"#,
            format!("{go}number into Go struct field Container.spec.containers.name of type string"),
        ),
        (r#"{"priority":1.5}"#, format!("{go}number 1.5 into Go struct field PodSpec.spec.priority of type int32")),
        (
            r#"{"priority":3000000000}"#,
            format!("{go}number 3000000000 into Go struct field PodSpec.spec.priority of type int32"),
        ),
        (r#"{"hostNetwork":"yes"}"#, format!("{go}string into Go struct field PodSpec.spec.hostNetwork of type bool")),
        (
            r#"{"nodeSelector":{"a":true}}"#,
            format!("{go}bool into Go struct field PodSpec.spec.nodeSelector of type string"),
        ),
        (r#"{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}"#, crate::quantity::SYNTAX.to_owned()),
    ] {
        assert_eq!(pod(spec), Err(format!("{prefix}{wanted}")), "{spec}");
    }
}

#[test]
fn other_kinds_and_bad_syntax_get_upstreams_words() {
    let unrecognized = "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: ";
    for (body, wanted) in [
        (r#"{"apiVersion":"v1","kind":"Secret"}"#, r#"Secret in version "v1" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): unknown conversion"#.to_owned()),
        (r#"{"apiVersion": "v1", "kind":"#, format!(r#"{unrecognized}unexpected end of JSON input ({{"apiVersion": "v1", "kind":)"#)),
        ("hello", format!("{unrecognized}invalid character 'h' looking for beginning of value (68656c6c6f)")),
        (r#"{"a" 1}"#, format!(r#"{unrecognized}invalid character '1' after object key ({{"a" 1}})"#)),
        (r#"{"a":1 "b":2}"#, format!(r#"{unrecognized}invalid character '"' after object key:value pair ({{"a":1 "b":2}})"#)),
        (r#"{"a":[1 2]}"#, format!(r#"{unrecognized}invalid character '2' after array element ({{"a":[1 2]}})"#)),
        ("{}x", format!("{unrecognized}invalid character 'x' after top-level value ({{}}x)")),
        ("", format!("{unrecognized}unexpected end of JSON input (<empty>)")),
    ] {
        assert_eq!(decode("core.v1.ConfigMap", body), Err(wanted), "{body}");
    }
    let version = decode(
        "autoscaling.v2.HorizontalPodAutoscaler",
        r#"{"apiVersion":"autoscaling/v1","kind":"HorizontalPodAutoscaler"}"#,
    );
    assert_eq!(
        version.unwrap_err(),
        "the API version in the data (autoscaling/v1) does not match the expected API version (autoscaling/v2)"
    );
}

#[test]
fn yaml_and_values_take_the_same_walk() {
    let definition = definition("core.v1.ConfigMap").expect("a type");
    let yaml =
        decode_yaml(definition, b"apiVersion: v1\nkind: ConfigMap\ndata:\n  a: b\nfoo: 1\n").expect("it decodes");
    assert_eq!(yaml.value["data"], json!({"a": "b"}));
    assert_eq!(yaml.problems, [r#"unknown field "foo""#]);
    assert_eq!(conform(definition, yaml.value.clone()).expect("it conforms").value, yaml.value);
}

#[test]
fn every_type_parses_and_its_zero_value_is_stable() {
    for definition in crate::definition::all() {
        let once = conform(definition, json!({})).expect("an empty object decodes").value;
        let twice = conform(definition, once.clone()).expect("it conforms");
        assert_eq!((&twice.value, twice.problems.len()), (&once, 0), "{}", definition.name());
    }
}
