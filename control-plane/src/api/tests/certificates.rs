//! Certificate requests through the router: who may approve and sign, and what the controllers make of it.

use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{CertificateParams, DnType, KeyPair};

use super::*;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

pub fn request(name: &str, subject: &str, group: &str, signer: &str) -> Value {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.distinguished_name.push(DnType::CommonName, subject);
    let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {
            "request": BASE64_STANDARD.encode(pem), "signerName": format!("kubernetes.io/{signer}"),
            "usages": ["digital signature", "client auth"],
        },
    })
}

fn grant(name: &str, verbs: &str, resource: &str, names: Value) -> Value {
    let mut rule = json!({"apiGroups": ["certificates.k8s.io"], "resources": [resource], "verbs": verbs.split(',').collect::<Vec<_>>()});
    if names.is_array() {
        rule["resourceNames"] = names;
    }
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule],
    })
}

impl Cluster {
    async fn allow(&self, user: &str, role: Value) {
        let name = role["metadata"]["name"].as_str().unwrap().to_owned();
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        assert_eq!(self.post(&format!("{rbac}/clusterroles"), role).await.status, 201);
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        });
        assert_eq!(self.post(&format!("{rbac}/clusterrolebindings"), binding).await.status, 201);
    }

    async fn as_user(&self, user: &str, method: Method, path: &str, body: Value) -> Answer {
        self.send(user, method, path, "application/json", body).await
    }

    /// An object once it is as wanted.
    pub async fn once(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = std::time::Duration::from_secs(20);
        let look = async {
            loop {
                let body = self.get(path).await.body;
                if wanted(&body) {
                    return body;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(deadline, look).await.expect("it becomes as wanted")
    }
}

fn approved(mut object: Value) -> Value {
    object["status"]["conditions"] = json!([{"type": "Approved", "status": "True", "reason": "KubectlApprove"}]);
    object
}

fn state(object: &Value) -> Vec<String> {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mut state: Vec<String> = conditions.iter().map(|c| c["type"].as_str().unwrap().to_owned()).collect();
    state.extend(object["status"]["certificate"].is_string().then(|| "issued".to_owned()));
    state
}

#[tokio::test]
async fn approving_takes_more_than_the_right_to_write_an_approval() {
    let cluster = Cluster::start().await;
    cluster.allow("jane", grant("writes", "create,get,update", "*", Value::Null)).await;
    let made = cluster.as_user("jane", Method::POST, REQUESTS, request("r", "x", "y", "kube-apiserver-client")).await;
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.body["spec"]["username"], "jane");
    let path = format!("{REQUESTS}/r/approval");
    let refused = cluster.as_user("jane", Method::PUT, &path, approved(made.body.clone())).await;
    assert_eq!(refused.status, 403);
    let want = "user not permitted to approve requests with signerName \"kubernetes.io/kube-apiserver-client\"";
    assert!(refused.message().ends_with(want), "{}", refused.message());

    cluster.allow("jane", grant("approves", "approve", "signers", json!(["kubernetes.io/*"]))).await;
    let done = cluster.as_user("jane", Method::PUT, &path, approved(made.body)).await;
    assert_eq!((done.status, state(&done.body)), (200, vec!["Approved".to_owned()]), "{}", done.body);
    let mut signed = done.body;
    signed["status"]["certificate"] = "YQ==".into();
    let refused = cluster.as_user("jane", Method::PUT, &format!("{REQUESTS}/r/status"), signed).await;
    assert!(refused.message().contains("user not permitted to sign requests"), "{}", refused.message());
}

#[tokio::test]
async fn no_certificate_stands_for_the_group_that_may_everything() {
    let cluster = Cluster::start().await;
    let asked = request("r", "x", "system:masters", "kube-apiserver-client");
    let refused = cluster.post(REQUESTS, asked).await;
    assert_eq!(refused.status, 403);
    let want = "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed";
    assert!(refused.message().ends_with(want), "{}", refused.message());
}

#[tokio::test]
async fn approved_requests_are_signed_and_a_node_renews_its_own() {
    let cluster = Cluster::start_with_controllers().await;
    for (user, name, subject) in [("jane", "person", "jane"), ("system:node:n", "own", "system:node:n")] {
        let (group, signer) = match user {
            "jane" => ("people", "kube-apiserver-client"),
            _ => ("system:nodes", "kube-apiserver-client-kubelet"),
        };
        cluster.allow(user, grant(name, "create,get", "certificatesigningrequests", Value::Null)).await;
        let made = cluster.as_user(user, Method::POST, REQUESTS, request(name, subject, group, signer)).await;
        assert_eq!(made.status, 201, "{}", made.body);
    }
    cluster
        .allow("system:node:n", grant("renews", "create", "certificatesigningrequests/selfnodeclient", Value::Null))
        .await;
    // Decided anew: what came before the right stays for a person.
    let again = request("again", "system:node:n", "system:nodes", "kube-apiserver-client-kubelet");
    cluster.as_user("system:node:n", Method::POST, REQUESTS, again).await;
    let signed = cluster.once(&format!("{REQUESTS}/again"), |o| state(o) == ["Approved", "issued"]).await;
    assert_eq!(signed["status"]["conditions"][0]["reason"], "AutoApproved");
    assert!(state(&cluster.get(&format!("{REQUESTS}/person")).await.body).is_empty(), "nobody has approved it");

    let person = cluster.get(&format!("{REQUESTS}/person")).await.body;
    assert_eq!(cluster.put(&format!("{REQUESTS}/person/approval"), approved(person)).await.status, 200);
    cluster.once(&format!("{REQUESTS}/person"), |o| state(o) == ["Approved", "issued"]).await;

    let wrong = request("wrong", "system:node:n", "people", "kube-apiserver-client-kubelet");
    let wrong = cluster.post(REQUESTS, wrong).await.body;
    assert_eq!(cluster.put(&format!("{REQUESTS}/wrong/approval"), approved(wrong)).await.status, 200);
    let failed = cluster.once(&format!("{REQUESTS}/wrong"), |o| state(o) == ["Approved", "Failed"]).await;
    assert_eq!(failed["status"]["conditions"][1]["message"], "subject organization is not system:nodes");
}
