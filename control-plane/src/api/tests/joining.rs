//! What a bootstrap token can do, and what nobody can without one.

use base64::{Engine, prelude::BASE64_STANDARD};

use super::*;

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const TOKEN: &str = "abcdef.0123456789abcdef";

impl Cluster {
    /// A request from the wire: whoever it is must say so.
    async fn outside(&self, token: Option<&str>, method: Method, path: &str, body: Value) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        Answer::read(self.app.router().oneshot(request.body(body).unwrap()).await.unwrap()).await
    }

    async fn token(&self, changes: Value) {
        let mut data = json!({
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true", "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        });
        data.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bootstrap-token-abcdef"},
            "type": "bootstrap.kubernetes.io/token", "stringData": data,
        });
        assert_eq!(self.post(SECRETS, secret).await.status, 201);
    }
}

#[tokio::test]
async fn anybody_reads_cluster_info_and_nothing_beside_it() {
    let cluster = Cluster::start().await;
    let info = cluster.outside(None, Method::GET, INFO, Value::Null).await;
    assert_eq!(info.status, 200, "{}", info.body);
    assert!(info.body["data"]["kubeconfig"].as_str().unwrap().contains("server: https://192.0.2.10:6443"));
    for (method, path) in [
        (Method::GET, "/api/v1/namespaces/kube-public/configmaps"),
        (Method::DELETE, INFO),
        (Method::GET, "/api/v1/namespaces/kube-public/secrets/cluster-info"),
        (Method::GET, "/api/v1/namespaces/kube-system/configmaps/kubeadm-config"),
        (Method::GET, "/api/v1/nodes"),
    ] {
        assert_eq!(cluster.outside(None, method.clone(), path, Value::Null).await.status, 401, "{method} {path}");
    }
}

#[tokio::test]
async fn a_bootstrap_token_can_do_nothing_but_join() {
    let cluster = Cluster::start().await;
    cluster.token(json!({})).await;
    let ask = async |method: Method, path: &str| {
        let body = if method == Method::POST { json!({}) } else { Value::Null };
        cluster.outside(Some(TOKEN), method, path, body).await.status
    };
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    for path in [
        "/api/v1/namespaces/kube-system/configmaps/kubeadm-config",
        "/api/v1/namespaces/kube-system/configmaps/kubelet-config",
        requests,
    ] {
        assert_eq!(ask(Method::GET, path).await, 200, "{path}");
    }
    assert_eq!(ask(Method::GET, "/api/v1/nodes/nobody").await, 404, "whether its name is taken");
    assert_eq!(ask(Method::GET, "/api/v1/namespaces/kube-system/configmaps/kube-proxy").await, 404);
    for (method, path) in [
        (Method::GET, SECRETS),
        (Method::GET, "/api/v1/namespaces/kube-system/secrets/bootstrap-token-abcdef"),
        (Method::POST, SECRETS),
        (Method::GET, "/api/v1/namespaces/kube-system/configmaps"),
        (Method::GET, "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"),
        (Method::DELETE, INFO),
        (Method::GET, "/api/v1/nodes"),
        (Method::POST, "/api/v1/nodes"),
        (Method::GET, "/api/v1/pods"),
        (Method::POST, "/api/v1/namespaces/default/pods"),
        (Method::POST, "/api/v1/namespaces/kube-system/serviceaccounts/default/token"),
        (Method::GET, "/apis/coordination.k8s.io/v1/leases"),
        (Method::GET, "/apis/rbac.authorization.k8s.io/v1/clusterroles"),
        (Method::POST, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
        (Method::DELETE, requests),
    ] {
        assert_eq!(ask(method.clone(), path).await, 403, "{method} {path}");
    }
    let who = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let who =
        cluster.outside(Some(TOKEN), Method::POST, "/apis/authentication.k8s.io/v1/selfsubjectreviews", who).await;
    assert_eq!(who.body["status"]["userInfo"]["username"], "system:bootstrap:abcdef");
}

#[tokio::test]
async fn a_token_that_is_wrong_over_or_for_something_else_is_a_401() {
    for changes in [
        json!({"token-secret": "0123456789abcdee"}),
        json!({"expiration": "2020-01-01T00:00:00Z"}),
        json!({"usage-bootstrap-authentication": "false"}),
        json!({"auth-extra-groups": "system:masters"}),
    ] {
        let cluster = Cluster::start().await;
        cluster.token(changes.clone()).await;
        assert_eq!(cluster.outside(Some(TOKEN), Method::GET, INFO, Value::Null).await.status, 401, "{changes}");
    }
}

#[tokio::test]
async fn cluster_info_is_signed_while_the_token_lasts_and_a_kubelets_request_is_approved() {
    let cluster = Cluster::start_with_controllers().await;
    cluster.token(json!({})).await;
    let info = cluster.once(INFO, |info| info["data"]["jws-kubeconfig-abcdef"].is_string()).await;
    let header = BASE64_STANDARD.encode(r#"{"alg":"HS256","kid":"abcdef"}"#).trim_end_matches('=').to_owned();
    assert!(info["data"]["jws-kubeconfig-abcdef"].as_str().unwrap().starts_with(&(header + "..")));

    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let asked = super::certificates::request("node", "system:node:n", "system:nodes", "kube-apiserver-client-kubelet");
    assert_eq!(cluster.outside(Some(TOKEN), Method::POST, requests, asked).await.status, 201);
    cluster.once(&format!("{requests}/node"), |o| o["status"]["certificate"].is_string()).await;

    let expired = json!({"stringData": {"expiration": "2020-01-01T00:00:00Z"}});
    cluster.patch(&format!("{SECRETS}/bootstrap-token-abcdef"), expired).await;
    cluster.once(INFO, |info| info["data"].get("jws-kubeconfig-abcdef").is_none()).await;
    cluster.once(&format!("{SECRETS}/bootstrap-token-abcdef"), |o| o["code"] == 404).await;
}
