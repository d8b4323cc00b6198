//! What whoever has taken a node over can write, and cannot.

use super::*;

const AGENT: &str = "system:node:n1";
const PODS: &str = "/api/v1/namespaces/kube-system/pods";
const TOKEN: &str = "/api/v1/namespaces/kube-system/serviceaccounts/default/token";

/// Two nodes, a pod on each.
async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    for node in ["n1", "n2"] {
        let object = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": node, "labels": {"a": "b"}}});
        assert_eq!(cluster.post("/api/v1/nodes", object).await.status, 201);
    }
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}});
    assert_eq!(cluster.post("/api/v1/namespaces/kube-system/serviceaccounts", account).await.status, 201);
    for (name, node) in [("p1", "n1"), ("p2", "n2")] {
        let mut pod = pod(name);
        pod["spec"]["nodeName"] = node.into();
        assert_eq!(cluster.post(PODS, pod).await.status, 201);
    }
    cluster
}

impl Cluster {
    async fn agent(&self, method: Method, path: &str, body: Value) -> Answer {
        let media = if method == Method::PATCH { MERGE } else { "application/json" };
        self.send(AGENT, method, path, media, body).await
    }

    /// The answer's words, when it is a refusal.
    async fn refuses(&self, method: Method, path: &str, body: Value) -> String {
        let answer = self.agent(method, path, body).await;
        assert_eq!(answer.status, 403, "{}", answer.body);
        answer.body["message"].as_str().unwrap().to_owned()
    }

    async fn mirror(&self) -> Value {
        let uid = self.get("/api/v1/nodes/n1").await.body["metadata"]["uid"].clone();
        let mut mirror = pod("static-n1");
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        mirror["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": uid, "controller": true}]);
        mirror["spec"]["nodeName"] = "n1".into();
        mirror
    }
}

/// Else a node would read any secret: it makes a pod that uses it.
#[tokio::test]
async fn an_agent_makes_mirror_pods_that_reach_for_nothing() {
    let cluster = cluster().await;
    let mirror = cluster.mirror().await;
    let volume = |source: Value| {
        json!([{"name": "v"}]).as_array().map(|list| {
            let mut volume = list[0].clone();
            volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
            json!([volume])
        })
    };
    for (pointer, value, expected) in [
        ("/metadata/annotations", json!({}), "can only create mirror pods"),
        ("/spec/nodeName", json!("n2"), "can only create pods with spec.nodeName set to itself"),
        ("/metadata/ownerReferences", json!([]), "a single owner reference set to itself"),
        ("/metadata/ownerReferences/0/name", json!("n2"), "an owner reference set to itself"),
        ("/metadata/ownerReferences/0/controller", json!(false), "a controller owner reference set to itself"),
        ("/metadata/ownerReferences/0/uid", json!("other"), "UID mismatch"),
        ("/spec/serviceAccountName", json!("default"), "reference a service account"),
        ("/spec/volumes", volume(json!({"secret": {"secretName": "s"}})).unwrap(), "reference secrets"),
        ("/spec/volumes", volume(json!({"configMap": {"name": "c"}})).unwrap(), "reference configmaps"),
        ("/spec/imagePullSecrets", json!([{"name": "s"}]), "reference secrets"),
        ("/spec/containers/0/envFrom", json!([{"secretRef": {"name": "s"}}]), "reference secrets"),
        (
            "/spec/volumes",
            volume(json!({"persistentVolumeClaim": {"claimName": "c"}})).unwrap(),
            "reference persistentvolumeclaims",
        ),
        (
            "/spec/volumes",
            volume(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}})).unwrap(),
            "reference a service account",
        ),
    ] {
        let mut wrong = mirror.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        wrong.pointer_mut(parent).unwrap()[key] = value;
        let words = cluster.refuses(Method::POST, PODS, wrong).await;
        assert!(words.contains(expected), "{pointer}: {words}");
    }
    let made = cluster.agent(Method::POST, PODS, mirror).await;
    assert_eq!(made.status, 201, "{}", made.body);
}

#[tokio::test]
async fn an_agent_touches_the_status_and_the_end_of_its_own_pods_only() {
    let cluster = cluster().await;
    let status = json!({"status": {"phase": "Running"}});
    let path = |name: &str, rest: &str| format!("{PODS}/{name}{rest}");
    assert_eq!(cluster.agent(Method::PATCH, &path("p1", "/status"), status.clone()).await.status, 200);
    cluster.refuses(Method::PATCH, &path("p2", "/status"), status).await;
    let relabelled = json!({"metadata": {"labels": {"app": "payments"}}});
    let words = cluster.refuses(Method::PATCH, &path("p1", "/status"), relabelled.clone()).await;
    assert!(words.contains("cannot update labels through pod status"), "{words}");
    cluster.refuses(Method::PATCH, &path("p1", ""), relabelled).await;
    cluster.refuses(Method::DELETE, &path("p2", ""), Value::Null).await;
    let eviction = |name: &str| json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": name}});
    cluster.refuses(Method::POST, &path("p2", "/eviction"), eviction("p2")).await;
    assert_eq!(cluster.agent(Method::POST, &path("p1", "/eviction"), eviction("p1")).await.status, 201);
}

#[tokio::test]
async fn an_agent_cannot_draw_pods_to_itself() {
    let cluster = cluster().await;
    let label = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    for key in [
        "node-role.kubernetes.io/control-plane",
        "node-restriction.kubernetes.io/pci",
        "team.node-restriction.kubernetes.io/pci",
        "scheduler.k8s.io/x",
    ] {
        let words = cluster.refuses(Method::PATCH, "/api/v1/nodes/n1", label(key)).await;
        assert!(words.ends_with(&format!("is not allowed to modify labels: {key}")), "{words}");
        cluster.refuses(Method::PATCH, "/api/v1/nodes/n1/status", label(key)).await;
    }
    for key in ["topology.kubernetes.io/zone", "node.kubernetes.io/instance-type", "example.com/disk", "plain"] {
        assert_eq!(cluster.agent(Method::PATCH, "/api/v1/nodes/n1", label(key)).await.status, 200, "{key}");
    }
    let words = cluster.refuses(Method::PATCH, "/api/v1/nodes/n1", json!({"spec": {"taints": null}})).await;
    assert!(words.contains("is not allowed to modify taints"), "{words}");
    cluster.refuses(Method::PATCH, "/api/v1/nodes/n2", label("plain")).await;
    let own = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n3", "labels": {"node-role.kubernetes.io/x": ""}}});
    let new = cluster.send("system:node:n3", Method::POST, "/api/v1/nodes", "application/json", own).await;
    assert_eq!(new.status, 403);
    let words = new.body["message"].as_str().unwrap();
    assert!(words.ends_with("is not allowed to set the following labels: node-role.kubernetes.io/x"), "{words}");
}

/// Else a token would outlive the pod that it was for.
#[tokio::test]
async fn an_agent_gets_tokens_for_its_pods_and_bound_to_them() {
    let cluster = cluster().await;
    let uid = async |path: &str| cluster.get(path).await.body["metadata"]["uid"].clone();
    let (p1, p2) =
        (uid("/api/v1/namespaces/kube-system/pods/p1").await, uid("/api/v1/namespaces/kube-system/pods/p2").await);
    let n1 = uid("/api/v1/nodes/n1").await;
    let request = |bound: Value| {
        json!({
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"boundObjectRef": bound},
        })
    };
    let reference =
        |kind: &str, name: &str, uid: &Value| json!({"kind": kind, "apiVersion": "v1", "name": name, "uid": uid});
    for (bound, expected) in [
        (Value::Null, "not bound to a pod"),
        (reference("Node", "n1", &n1), "not bound to a pod"),
        (json!({"kind": "Pod", "apiVersion": "v1", "name": "p1"}), "without a uid"),
        (reference("Pod", "p2", &p2), "scheduled on a different node"),
    ] {
        let words = cluster.refuses(Method::POST, TOKEN, request(bound)).await;
        assert!(words.contains(expected), "{words}");
    }
    let issued = cluster.agent(Method::POST, TOKEN, request(reference("Pod", "p1", &p1))).await;
    assert_eq!(issued.status, 201, "{}", issued.body);
}
