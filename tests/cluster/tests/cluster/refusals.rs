//! Bad input gets the answer that Kubernetes gives, or shows on the object.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use leme_tests_cluster::Cluster;
use leme_tests_cluster::cluster::{expect_all, manifest};
use leme_tests_cluster::wait::eventually;

fn refuse(cluster: &Cluster, verb: &[&str], file: &str, parts: &[&str]) -> Result<()> {
    expect_all(&cluster.kubectl_refuses(&[verb, &["-f", file]].concat())?, parts)
}

pub(crate) fn unknown_fields_are_named(cluster: &Cluster) -> Result<()> {
    let reason = "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \
                  \"spec.containers[0].imagePulPolicy\"";
    let file = manifest("unknown-field.yaml");
    refuse(cluster, &["apply"], &file, &["Error from server (BadRequest)", reason])?;
    refuse(cluster, &["create"], &file, &["Error from server (BadRequest)", reason])?;
    expect_all(&cluster.kubectl_refuses(&["get", "pod", "unknown-field"])?, &["(NotFound)"])
}

pub(crate) fn a_bad_name_is_explained(cluster: &Cluster) -> Result<()> {
    let reason = "The Pod \"Bad_Name\" is invalid: metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 \
                  subdomain must consist of lower case alphanumeric characters, '-' or '.'";
    refuse(cluster, &["create"], &manifest("bad-name.yaml"), &[reason])
}

pub(crate) fn malformed_input_is_told_apart(cluster: &Cluster) -> Result<()> {
    refuse(cluster, &["create"], &manifest("malformed.yaml"), &["error converting YAML to JSON", "line 5"])?;
    let raw = ["create", "--raw", "/api/v1/namespaces/default/configmaps"];
    let reason = "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse \
                  error: unexpected end of JSON input";
    refuse(cluster, &raw, &manifest("malformed.json"), &["Error from server (BadRequest)", reason])
}

pub(crate) fn a_wrong_kind_and_an_unknown_path_are_refused(cluster: &Cluster) -> Result<()> {
    let raw = ["create", "--raw", "/api/v1/namespaces/default/configmaps"];
    let reason = "Secret in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): \
                  unknown conversion";
    refuse(cluster, &raw, &manifest("wrong-kind.json"), &["Error from server (BadRequest)", reason])?;
    let refusal = cluster.kubectl_refuses(&["get", "--raw", "/api/v1/namespaces/default/gadgets"])?;
    expect_all(&refusal, &["Error from server (NotFound): the server could not find the requested resource"])?;
    let refusal = cluster.kubectl_refuses(&["get", "gadgets"])?;
    expect_all(&refusal, &["error: the server doesn't have a resource type \"gadgets\""])
}

pub(crate) fn a_taken_node_port_is_refused(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "service", "nodeport", "first", "--tcp=80"])?;
    let (_, port) = cluster.service("first")?;
    let file = cluster.path("taken.yaml");
    fs::write(
        &file,
        fs::read_to_string(manifest("taken-node-port.yaml"))?.replace("NODEPORT\n", &format!("{port}\n")),
    )?;
    let reason = format!(
        "The Service \"second\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"
    );
    refuse(cluster, &["create"], &file.to_string_lossy(), &[&reason])?;
    // Free again once its owner is gone.
    cluster.kubectl(&["delete", "service", "first"])?;
    cluster.kubectl(&["create", "-f", &file.to_string_lossy()])?;
    cluster.kubectl(&["delete", "service", "second"]).map(drop)
}

pub(crate) fn an_unknown_image_shows_on_the_pod(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "-f", &manifest("unknown-image.yaml")])?;
    let outcome = eventually(Duration::from_secs(90), "the pod says that its image is not there", || {
        let value = cluster.get(&["pod", "unknown-image"])?;
        let waiting = &value["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        ensure!(waiting == "ErrImagePull" || waiting == "ImagePullBackOff", "waiting for {waiting}");
        let events = cluster.events("unknown-image")?;
        let failed =
            |(reason, message): &(String, String)| reason == "Failed" && message.contains("nginx:there-is-no-such-tag");
        ensure!(events.iter().any(failed), "{events:?}");
        let row = cluster.kubectl(&["get", "pod", "unknown-image", "--no-headers"])?;
        expect_all(&row, &["0/1"])
    });
    cluster.kubectl(&["delete", "pod", "unknown-image"])?;
    outcome
}

pub(crate) fn a_pod_that_does_not_fit_says_why(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "-f", &manifest("too-large.yaml")])?;
    let outcome = eventually(Duration::from_secs(20), "the pod says that it does not fit", || {
        let reason = "0/3 nodes are available: 3 Insufficient cpu.";
        let value = cluster.get(&["pod", "too-large"])?;
        let conditions = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let says = |it: &serde_json::Value| {
            it["type"] == "PodScheduled"
                && it["reason"] == "Unschedulable"
                && it["message"].as_str().is_some_and(|message| message.starts_with(reason))
        };
        ensure!(conditions.iter().any(says), "{conditions:?}");
        let events = cluster.events("too-large")?;
        ensure!(events.iter().any(|(kind, text)| kind == "FailedScheduling" && text.starts_with(reason)), "{events:?}");
        expect_all(&cluster.kubectl(&["get", "pod", "too-large", "--no-headers"])?, &["Pending"])
    });
    cluster.kubectl(&["delete", "pod", "too-large"])?;
    outcome
}
