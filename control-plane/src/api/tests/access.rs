//! Who may do what.

use super::*;

#[tokio::test]
async fn nobody_without_a_grant_gets_anything_and_roles_take_effect_at_once() {
    let cluster = Cluster::start().await;
    let list = || cluster.send("jane", Method::GET, CONFIGMAPS, "", Value::Null);
    let refused = list().await;
    assert_eq!(refused.status, 403);
    let words = "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"";
    assert_eq!(refused.message(), words);
    let base = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let binding = json!({
        "kind": "RoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "jane"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"},
    });
    assert_eq!(cluster.post(&format!("{base}/rolebindings"), binding).await.status, 201);
    assert_eq!(list().await.status, 200);
    assert_eq!(cluster.send("jane", Method::GET, "/api/v1/configmaps", "", Value::Null).await.status, 403);
    cluster.delete(&format!("{base}/rolebindings/jane"), Value::Null).await;
    assert_eq!(list().await.status, 403);
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_hold() {
    let cluster = Cluster::start().await;
    let base = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = |name: &str, verbs: Value, groups: Value, resources: Value| {
        json!({
            "kind": "Role", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name},
            "rules": [{"verbs": verbs, "apiGroups": groups, "resources": resources}],
        })
    };
    let manage = role("manage", json!(["*"]), json!(["rbac.authorization.k8s.io"]), json!(["roles"]));
    // `*` holds `escalate`, too: name the verbs.
    let manage = {
        let mut r = manage;
        r["rules"][0]["verbs"] = json!(["create", "get"]);
        r
    };
    cluster.post(&format!("{base}/roles"), manage).await;
    let binding = json!({
        "kind": "RoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "m"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "Role", "name": "manage", "apiGroup": "rbac.authorization.k8s.io"},
    });
    assert_eq!(cluster.post(&format!("{base}/rolebindings"), binding).await.status, 201);
    let create = |body| {
        cluster.send(
            "jane",
            Method::POST,
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
            "application/json",
            body,
        )
    };
    let more = role("more", json!(["get"]), json!([""]), json!(["secrets"]));
    let refused = create(more).await;
    assert_eq!(refused.status, 403);
    assert!(
        refused.message().contains("is attempting to grant RBAC permissions not currently held"),
        "{}",
        refused.message()
    );
    let same = role("same", json!(["get"]), json!(["rbac.authorization.k8s.io"]), json!(["roles"]));
    assert_eq!(create(same).await.status, 201);
}

#[tokio::test]
async fn an_agent_touches_its_own_node_and_what_its_pods_use() {
    let cluster = Cluster::start().await;
    let agent = "system:node:n1";
    let node = |name: &str| json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}});
    let send = |method, path: &'static str, body| cluster.send(agent, method, path, "application/json", body);
    assert_eq!(send(Method::POST, "/api/v1/nodes", node("n1")).await.status, 201);
    assert_eq!(send(Method::POST, "/api/v1/nodes", node("n2")).await.status, 403);
    for name in ["used", "other"] {
        let secret = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": name}});
        cluster.post("/api/v1/namespaces/default/secrets", secret).await;
    }
    let mut bound = pod("p");
    bound["spec"]["nodeName"] = "n1".into();
    bound["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "used"}}]);
    assert_eq!(cluster.post("/api/v1/namespaces/default/pods", bound).await.status, 201);
    assert_eq!(send(Method::GET, "/api/v1/namespaces/default/secrets/used", Value::Null).await.status, 200);
    assert_eq!(send(Method::GET, "/api/v1/namespaces/default/secrets/other", Value::Null).await.status, 403);
    assert_eq!(send(Method::GET, "/api/v1/namespaces/default/secrets", Value::Null).await.status, 403);
    let watched = "/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Dused";
    assert_eq!(send(Method::GET, watched, Value::Null).await.status, 200);
    assert_eq!(send(Method::GET, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", Value::Null).await.status, 200);
}

#[tokio::test]
async fn a_token_lives_as_long_as_what_it_is_bound_to() {
    let cluster = Cluster::start().await;
    cluster.post("/api/v1/namespaces/default/pods", pod("p")).await;
    let request = json!({
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "spec": {"audiences": [], "expirationSeconds": 600, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}},
    });
    let issued = cluster.post("/api/v1/namespaces/default/serviceaccounts/default/token", request).await;
    assert_eq!(issued.status, 201, "{}", issued.body);
    let token = issued.body["status"]["token"].clone();
    let review = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {"token": token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let status = cluster.post(path, review.clone()).await.body["status"].clone();
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:default");
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    cluster.delete("/api/v1/namespaces/default/pods/p", Value::Null).await;
    let status = cluster.post(path, review).await.body["status"].clone();
    assert!(status["authenticated"] != true && status["error"].is_string(), "{status}");
}

#[tokio::test]
async fn impersonation_takes_a_grant() {
    let cluster = Cluster::start().await;
    let headers = [("impersonate-user", "jane")];
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let body =
        || Body::from(json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}).to_string());
    let answer = Answer::read(cluster.request("admin", Method::POST, path, &headers, body()).await).await;
    assert_eq!(answer.body["status"]["userInfo"]["username"], "jane", "{}", answer.body);
    let answer = Answer::read(cluster.request("bob", Method::POST, path, &headers, body()).await).await;
    assert_eq!(answer.status, 403);
}
