//! ServiceAccount: every pod runs as one, and its token, the cluster's CA and its namespace are mounted.

use serde_json::{Value, json};

use crate::api::{
    App,
    create::suffix,
    object::text,
    status::{Failure, Outcome},
};

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An hour, and seven seconds by which the node tells its own tokens.
const SECONDS: u32 = 3607;

pub async fn create(app: &App, scope: &str, pod: &mut Value) -> Outcome<()> {
    if pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some() {
        return Ok(());
    }
    if text(pod, &["spec", "serviceAccountName"]).is_empty() {
        pod["spec"]["serviceAccountName"] = "default".into();
    }
    let name = text(pod, &["spec", "serviceAccountName"]).to_owned();
    pod["spec"]["serviceAccount"] = name.as_str().into();
    let account = account(app, scope, &name, pod).await?;
    if pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty) && account["imagePullSecrets"].is_array() {
        pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let wanted = pod["spec"]["automountServiceAccountToken"].as_bool();
    if wanted.or(account["automountServiceAccountToken"].as_bool()).unwrap_or(true) {
        mount(pod);
    }
    Ok(())
}

async fn account(app: &App, scope: &str, name: &str, pod: &Value) -> Outcome<Value> {
    let accounts = app.registry.builtin("serviceaccounts");
    let item = match accounts.peek(scope, name) {
        Some(item) => Some(item),
        None => accounts.get(scope, name).await?,
    };
    let missing = || {
        let why = format!("error looking up service account {scope}/{name}: serviceaccount \"{name}\" not found");
        Failure::forbidden("", "pods", text(pod, &["metadata", "name"]), why)
    };
    Ok(item.ok_or_else(missing)?.value())
}

/// The token volume, mounted wherever nothing else is mounted at its place.
fn mount(pod: &mut Value) {
    let volume = format!("kube-api-access-{}", String::from_iter(suffix()));
    let mut used = false;
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        let containers = pod["spec"].get_mut(key).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mounts = &container["volumeMounts"];
            let taken = mounts.as_array().into_iter().flatten().any(|m| text(m, &["mountPath"]) == MOUNT);
            if !taken {
                push(&mut container["volumeMounts"], json!({"name": volume, "readOnly": true, "mountPath": MOUNT}));
                used = true;
            }
        }
    }
    if used {
        push(&mut pod["spec"]["volumes"], token_volume(&volume));
    }
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        other => *other = json!([item]),
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_where_nothing_else_is() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"},
            {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT}]},
        ]}});
        mount(&mut pod);
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], MOUNT);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
    }
}
