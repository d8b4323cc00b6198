//! The objects that every cluster has, and the few that the server itself keeps true.
//!
//! [`run`] writes what is missing before the first request is answered; [`upkeep`] then follows the nodes (for
//! `kube-dns`) and repairs leaked allocations. Everything goes through the same writers as a user's request.

use std::{sync::Arc, time::Duration};

use leme_store::{Revision, cache::Snapshot};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    api::{
        App,
        create::Writer,
        object::{Item, text},
        query::{FieldValidation, WriteOptions},
        registry::Kind,
        status::{Failure, Outcome},
    },
    auth::{MASTERS, User},
    joining, masters,
    resources::{self, Companions},
};

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
const MIRRORED: &str = "endpointslice.kubernetes.io/managed-by";
const OWNER: &str = "leme-control-plane";
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
const CLIENT_CA: &str = "extension-apiserver-authentication";
/// How often leaked allocations are looked for; upstream's interval.
const REPAIR: Duration = Duration::from_secs(180);
/// How often the server's own Services and their endpoints are looked after; upstream's interval.
const UPKEEP: Duration = Duration::from_secs(10);
/// Changes of nodes are gathered this long.
const SETTLE: Duration = Duration::from_millis(50);

/// Creates what is missing and updates what the configuration says differently.
pub async fn run(app: &App, port: u16) -> Outcome<()> {
    for name in NAMESPACES {
        ensure(app, "namespaces", "", json!({"metadata": {"name": name}})).await?;
    }
    let cidr = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [app.config.service_cidr.to_string()]}});
    ensure(app, "servicecidrs", "", cidr).await?;
    for object in resources::bootstrap_rbac() {
        let kind =
            app.registry.kinds().iter().find(|k| {
                k.resource.kind == text(&object, &["kind"]) && k.resource.group == "rbac.authorization.k8s.io"
            });
        let kind = kind.ok_or_else(|| Failure::internal("the bootstrap roles are of no served kind"))?.clone();
        let scope = text(&object, &["metadata", "namespace"]).to_owned();
        ensure_in(app, &kind, &scope, object).await?;
    }
    ensure(app, "configmaps", "kube-system", client_ca(app)).await?;
    same_authority(app).await?;
    // Kept true while the signer adds its signatures: it writes a new one for whatever stands here.
    let info = joining::cluster_info(&app.config, &app.client_ca, port);
    ensure_data(app, joining::CLUSTER_INFO.0, info).await?;
    ensure_data(app, "kube-system", joining::kubeadm_config(&app.config, port)).await?;
    ensure(app, "configmaps", "kube-system", joining::kubelet_config(&app.config)).await?;
    keep_services(app, port).await
}

/// Whoever deletes one of them gets it back: the cluster does not work without.
async fn keep_services(app: &App, port: u16) -> Outcome<()> {
    ensure(app, "services", "default", kubernetes_service(&app.config, port)).await?;
    ensure(app, "services", "kube-system", dns_service(&app.config)).await?;
    masters::publish(app, port).await
}

/// Runs until `shutdown`.
pub async fn upkeep(app: Arc<App>, port: u16, shutdown: CancellationToken) {
    let nodes = async {
        let kind = app.registry.builtin("nodes").clone();
        let mut seen = Revision::default();
        loop {
            if let Err(failure) = publish_dns(&app).await {
                tracing::warn!(%failure, "kube-dns endpoints could not be written");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            seen = kind.changed_after(seen).await;
            tokio::time::sleep(SETTLE).await;
        }
    };
    let repairs = async {
        let mut suspects = Companions::default();
        loop {
            tokio::time::sleep(REPAIR).await;
            if let Err(failure) = repair(&app, &mut suspects).await {
                tracing::warn!(%failure, "the periodic repair failed; the next one tries again");
            }
        }
    };
    let services = async {
        loop {
            tokio::select! {
                () = tokio::time::sleep(UPKEEP) => {}
                () = masters::changed(&app) => {}
            }
            if let Err(failure) = keep_services(&app, port).await {
                tracing::warn!(%failure, "the server's own Services could not be kept; the next time tries again");
            }
        }
    };
    tokio::select! {
        () = nodes => {}
        () = repairs => {}
        () = services => {}
        () = shutdown.cancelled() => {}
    }
}

fn system() -> User {
    User::authenticated("system:apiserver", [MASTERS.to_owned()])
}

const QUIET: fn() -> WriteOptions = || WriteOptions {
    dry_run: false,
    validation: FieldValidation::Ignore,
    manager: "kube-apiserver".into(),
    force: None,
};

/// Creates an object unless it exists.
async fn ensure(app: &App, plural: &str, scope: &str, object: Value) -> Outcome<()> {
    let kind = app.registry.builtin(plural).clone();
    ensure_in(app, &kind, scope, object).await
}

async fn ensure_in(app: &App, kind: &Kind, scope: &str, object: Value) -> Outcome<()> {
    if kind.peek(scope, text(&object, &["metadata", "name"])).is_some() {
        return Ok(());
    }
    let options = QUIET();
    let writer = Writer { app, user: &system(), kind, options: &options };
    let mut object = complete(kind, object)?;
    writer.track("", None, &mut object)?;
    match writer.create(scope, object, &mut Vec::new()).await {
        Err(failure) if failure.reason == "AlreadyExists" => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Creates a config map or brings its keys up to date, leaving others' keys alone.
async fn ensure_data(app: &App, scope: &str, object: Value) -> Outcome<()> {
    let kind = app.registry.builtin("configmaps").clone();
    let name = text(&object, &["metadata", "name"]).to_owned();
    if kind.get(scope, &name).await?.is_none() {
        return ensure_in(app, &kind, scope, object).await;
    }
    let options = QUIET();
    let writer = Writer { app, user: &system(), kind: &kind, options: &options };
    let change = |old: &Value| {
        let mut new = old.clone();
        for (key, value) in object["data"].as_object().into_iter().flatten() {
            new["data"][key] = value.clone();
        }
        writer.track("", Some(old), &mut new)?;
        Ok(new)
    };
    writer.change(scope, &name, "", change, &mut Vec::new()).await.map(|_| ())
}

/// Creates an object or brings the named fields of the existing one up to date.
pub async fn apply(app: &App, plural: &str, scope: &str, object: Value, fields: &[&str]) -> Outcome<()> {
    let kind = app.registry.builtin(plural).clone();
    let name = text(&object, &["metadata", "name"]).to_owned();
    if kind.get(scope, &name).await?.is_none() {
        return ensure_in(app, &kind, scope, object).await;
    }
    let object = complete(&kind, object)?;
    let options = QUIET();
    let writer = Writer { app, user: &system(), kind: &kind, options: &options };
    let change = |old: &Value| {
        let mut new = old.clone();
        for field in fields {
            match object.get(*field) {
                Some(value) => new[*field] = value.clone(),
                None => {
                    new.as_object_mut().map(|o| o.remove(*field));
                }
            }
        }
        writer.track("", Some(old), &mut new)?;
        Ok(new)
    };
    writer.change(scope, &name, "", change, &mut Vec::new()).await.map(|_| ())
}

/// The object as if a client had sent it.
fn complete(kind: &Kind, mut object: Value) -> Outcome<Value> {
    object["kind"] = kind.resource.kind.into();
    object["apiVersion"] = kind.resource.api_version().into();
    let definition = crate::api::create::definition(kind.resource.schema)?;
    Ok(crate::api::create::finish(definition, leme_schema::conform(definition, object), &QUIET())?.0)
}

fn kubernetes_service(config: &Config, port: u16) -> Value {
    json!({
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": config.kubernetes_address().to_string(),
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    })
}

/// Without a selector: its endpoints are the nodes, each of which serves the cluster's names.
fn dns_service(config: &Config) -> Value {
    json!({
        "metadata": {"name": "kube-dns", "labels": {
            "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS",
        }},
        "spec": {
            "clusterIP": config.dns_address().to_string(),
            "trafficDistribution": "PreferSameNode",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    })
}

/// Servers of one cluster have one authority. One with another would sign what the others refuse.
async fn same_authority(app: &App) -> Outcome<()> {
    let stored = app.registry.builtin("configmaps").get("kube-system", CLIENT_CA).await?;
    let stored = stored.map(|item| text(&item.value(), &["data", "client-ca-file"]).to_owned()).unwrap_or_default();
    if app.config.etcd.is_none() || stored.contains(app.client_ca.trim()) {
        return Ok(());
    }
    Err(Failure::internal(format!(
        "this store belongs to a cluster with another authority (config map kube-system/{CLIENT_CA}): copy the directory \
         `pki` of one of its servers to {} and start again",
        app.config.data_dir.join("pki").display()
    )))
}

/// Where extension servers and agents learn which authority signs client certificates.
fn client_ca(app: &App) -> Value {
    json!({
        "metadata": {"name": CLIENT_CA},
        "data": {"client-ca-file": app.client_ca},
    })
}

/// The endpoints of `kube-dns`: every node, ready when the node is.
async fn publish_dns(app: &App) -> Outcome<()> {
    let nodes = app.registry.snapshot("nodes").await?;
    let endpoints: Vec<Value> = nodes.objects.values().filter_map(|item| dns_endpoint(&item.value())).collect();
    let slice = json!({
        "metadata": {"name": "kube-dns", "labels": {SERVICE_NAME: "kube-dns", MIRRORED: OWNER, "k8s-app": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        ],
    });
    apply(app, "endpointslices", "kube-system", slice, &["endpoints", "ports"]).await
}

fn dns_endpoint(node: &Value) -> Option<Value> {
    let name = text(node, &["metadata", "name"]);
    let addresses = node["status"]["addresses"].as_array()?;
    let address = addresses.iter().find(|a| a["type"] == "InternalIP").map(|a| text(a, &["address"]))?;
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let mut endpoint = json!({
        "addresses": [address], "nodeName": name,
        "conditions": {"ready": ready, "serving": ready, "terminating": false},
        "targetRef": {"kind": "Node", "name": name, "uid": text(node, &["metadata", "uid"])},
    });
    if ready {
        endpoint["hints"] = json!({"forNodes": [{"name": name}]});
    }
    Some(endpoint)
}

/// Gives back what no Service holds and takes what one holds without an entry. A leak must show twice: the Service that
/// took it may just have been on its way.
async fn repair(app: &App, suspects: &mut Companions) -> Outcome<()> {
    let taken = [app.registry.snapshot("ipaddresses").await?, app.registry.snapshot("nodeports").await?];
    let services = app.registry.snapshot("services").await?;
    let values = |snapshot: &Snapshot<Item>| snapshot.objects.values().map(|item| item.value()).collect::<Vec<_>>();
    let now = jiff::Timestamp::now();
    let found = resources::repair(&values(&services), &values(&taken[0]), &values(&taken[1]), now);
    for (plural, namespace, name) in found.delete.iter().filter(|entry| suspects.delete.contains(entry)) {
        let kind = app.registry.builtin(plural);
        let key = kind.key(namespace, name);
        // Another server may have given it back meanwhile, and a Service have taken it.
        if let Some(item) = taken.iter().find_map(|snapshot| snapshot.objects.get(&key)) {
            app.registry.discard(key, item.revision).await?;
        }
    }
    for (plural, namespace, name, object) in found.create.iter().cloned() {
        tracing::warn!(%plural, %name, "an allocation was missing and is written again");
        app.registry.insert(&plural, &namespace, &name, object).await?;
    }
    *suspects = found;
    Ok(())
}
