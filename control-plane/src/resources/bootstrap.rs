//! The roles and bindings that every cluster has. The server writes them at its start and brings back what is
//! missing; an administrator who wants one left alone sets its autoupdate annotation to false.
//!
//! Rules are written in one line each: groups, resources, verbs. `""` is the core group.

use serde_json::{Value, json};

/// API groups, resources, verbs: comma-separated.
type Rule = (&'static str, &'static str, &'static str);

const GROUP: &str = "rbac.authorization.k8s.io";
const READ: &str = "get,list,watch";
const WRITE: &str = "create,delete,deletecollection,patch,update";
const ALL: &str = "create,delete,deletecollection,get,list,patch,update,watch";
const EVENTS: Rule = (",events.k8s.io", "events", "create,patch,update");

/// What `view` shows of a namespace: everything but secrets and roles.
const VIEW: &[Rule] = &[
    (
        "",
        "bindings,configmaps,endpoints,events,limitranges,namespaces,namespaces/status,persistentvolumeclaims,\
         persistentvolumeclaims/status,pods,pods/log,pods/status,replicationcontrollers,replicationcontrollers/scale,\
         replicationcontrollers/status,resourcequotas,resourcequotas/status,serviceaccounts,services,services/status",
        READ,
    ),
    (
        "apps",
        "controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,\
         replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status",
        READ,
    ),
    ("autoscaling", "horizontalpodautoscalers,horizontalpodautoscalers/status", READ),
    ("batch", "cronjobs,cronjobs/status,jobs,jobs/status", READ),
    ("policy", "poddisruptionbudgets,poddisruptionbudgets/status", READ),
    ("networking.k8s.io", "ingresses,ingresses/status,networkpolicies", READ),
    ("discovery.k8s.io", "endpointslices", READ),
];

/// What `edit` adds.
const EDIT: &[Rule] = &[
    ("", "pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy", READ),
    ("", "serviceaccounts", "impersonate"),
    ("", "pods,pods/attach,pods/exec,pods/portforward,pods/proxy", WRITE),
    ("", "pods/eviction,serviceaccounts/token", "create"),
    (
        "",
        "configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,\
         serviceaccounts,services,services/proxy",
        WRITE,
    ),
    (
        "apps",
        "daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,\
         statefulsets/scale",
        WRITE,
    ),
    ("autoscaling", "horizontalpodautoscalers", WRITE),
    ("batch", "cronjobs,jobs", WRITE),
    ("policy", "poddisruptionbudgets", WRITE),
    ("networking.k8s.io", "ingresses,networkpolicies", WRITE),
    ("coordination.k8s.io", "leases", ALL),
];

/// What `admin` adds.
const ADMIN: &[Rule] =
    &[("authorization.k8s.io", "localsubjectaccessreviews", "create"), (GROUP, "rolebindings,roles", ALL)];

/// What a node may do that the node authorizer does not decide by itself.
const NODE: &[Rule] = &[
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "localsubjectaccessreviews,subjectaccessreviews", "create"),
    ("", "services", READ),
    ("", "nodes", "create,get,list,watch"),
    ("", "nodes,nodes/status", "patch,update"),
    EVENTS,
    ("", "pods", READ),
    ("", "pods", "create,delete"),
    ("", "pods/status", "patch,update"),
    ("", "pods/eviction", "create"),
    ("", "configmaps,secrets", READ),
    ("", "persistentvolumeclaims,persistentvolumes", "get"),
    ("", "endpoints", "get"),
    ("discovery.k8s.io", "endpointslices", READ),
    ("networking.k8s.io", "networkpolicies", READ),
    ("certificates.k8s.io", "certificatesigningrequests", "create,get,list,watch"),
    ("coordination.k8s.io", "leases", "create,delete,get,patch,update"),
    ("", "serviceaccounts/token", "create"),
    ("", "serviceaccounts", "get"),
];

const SCHEDULER: &[Rule] = &[
    EVENTS,
    ("coordination.k8s.io", "leases", "create,get,list,patch,update,watch"),
    ("", "nodes", READ),
    ("", "pods", "delete,get,list,watch"),
    ("", "bindings,pods/binding", "create"),
    ("", "pods/status", "patch,update"),
    ("", "namespaces,persistentvolumeclaims,persistentvolumes,replicationcontrollers,services", READ),
    ("apps", "replicasets,statefulsets", READ),
    ("policy", "poddisruptionbudgets", READ),
    ("storage.k8s.io", "csidrivers,csinodes,csistoragecapacities,storageclasses,volumeattachments", READ),
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
];

const CONTROLLER_MANAGER: &[Rule] = &[
    EVENTS,
    ("coordination.k8s.io", "leases", "create,get,list,patch,update,watch"),
    ("", "secrets,serviceaccounts", "create"),
    ("", "configmaps,namespaces,secrets,serviceaccounts", "get"),
    ("", "secrets", "delete,update"),
    ("", "serviceaccounts", "update"),
    ("", "serviceaccounts/token", "create"),
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
    ("*", "*", "list,watch"),
];

/// `system:controller:<name>`, bound to the service account `<name>` in kube-system.
const CONTROLLERS: &[(&str, &[Rule])] = &[
    (
        "deployment-controller",
        &[
            ("apps", "deployments", "get,list,update,watch"),
            ("apps", "deployments/status", "patch,update"),
            ("apps", "deployments/finalizers", "update"),
            ("apps", "replicasets", "create,delete,get,list,patch,update,watch"),
            ("", "pods", "get,list,update,watch"),
            EVENTS,
        ],
    ),
    (
        "replicaset-controller",
        &[
            ("apps", "replicasets", "get,list,update,watch"),
            ("apps", "replicasets/status", "patch,update"),
            ("apps", "replicasets/finalizers", "update"),
            ("", "pods", "create,delete,get,list,patch,watch"),
            EVENTS,
        ],
    ),
    (
        "endpointslice-controller",
        &[
            ("", "nodes,pods,services", READ),
            ("", "services/finalizers", "update"),
            ("discovery.k8s.io", "endpointslices", "create,delete,get,list,patch,update,watch"),
            EVENTS,
        ],
    ),
    (
        "endpoint-controller",
        &[
            ("", "pods,services", READ),
            ("", "endpoints", "create,delete,get,list,patch,update,watch"),
            ("", "endpoints/restricted", "create"),
            EVENTS,
        ],
    ),
    (
        "namespace-controller",
        &[
            ("", "namespaces", "delete,get,list,watch"),
            ("", "namespaces/finalize,namespaces/status", "update"),
            ("*", "*", "delete,deletecollection,get,list"),
        ],
    ),
    (
        "service-account-controller",
        &[("", "namespaces", READ), ("", "serviceaccounts", "create,get,list,watch"), EVENTS],
    ),
    (
        "node-controller",
        &[
            ("", "nodes", "delete,get,list,patch,update,watch"),
            ("", "nodes/status", "patch,update"),
            ("", "pods/status", "patch,update"),
            ("", "pods", "delete,get,list,watch"),
            ("coordination.k8s.io", "leases", READ),
            EVENTS,
        ],
    ),
    (
        "pod-garbage-collector",
        &[("", "pods", "delete,list,watch"), ("", "nodes", "get,list,watch"), ("", "pods/status", "patch")],
    ),
    ("generic-garbage-collector", &[("*", "*", "delete,get,list,patch,update,watch"), EVENTS]),
    (
        "certificate-controller",
        &[
            ("certificates.k8s.io", "certificatesigningrequests", "delete,get,list,watch"),
            ("certificates.k8s.io", "certificatesigningrequests/approval,certificatesigningrequests/status", "update"),
            ("authorization.k8s.io", "subjectaccessreviews", "create"),
            EVENTS,
        ],
    ),
    ("root-ca-cert-publisher", &[("", "configmaps", "create,get,list,update,watch"), ("", "namespaces", READ), EVENTS]),
    ("ttl-controller", &[("", "nodes", "list,patch,update,watch"), EVENTS]),
];

/// Everything, in an order in which each can be written: roles before what binds them.
pub fn bootstrap_rbac() -> Vec<Value> {
    let mut objects = user_roles();
    objects.extend(system_roles());
    objects.extend(certificate_roles());
    objects.extend(bindings());
    objects.extend(CONTROLLERS.iter().flat_map(|(name, rules)| {
        let role = format!("system:controller:{name}");
        [cluster_role(&role, controller_rules(name, rules)), cluster_binding(&role, &role, account(name))]
    }));
    objects.extend(namespaced());
    objects.extend(joining());
    objects
}

const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// What a controller may do, signers by name included.
fn controller_rules(name: &str, rules: &[Rule]) -> Vec<Value> {
    let mut rules = expand(rules);
    if name == "certificate-controller" {
        rules.push(signers("approve", &[KUBELET_CLIENT]));
        rules.push(signers("sign", &[API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY]));
    }
    rules
}

fn signers(verb: &'static str, names: &[&str]) -> Value {
    let mut rule = resource_rule(("certificates.k8s.io", "signers", verb));
    rule["resourceNames"] = json!(names);
    rule
}

/// Who may ask for certificates that are approved without a person, and who may approve the others.
fn certificate_roles() -> Vec<Value> {
    let requests = "system:certificates.k8s.io:certificatesigningrequests";
    let mut roles: Vec<Value> = [
        ("nodeclient", "certificatesigningrequests/nodeclient"),
        ("selfnodeclient", "certificatesigningrequests/selfnodeclient"),
    ]
    .into_iter()
    .map(|(name, resource)| {
        let rule = ("certificates.k8s.io", resource, "create");
        cluster_role(&format!("{requests}:{name}"), expand(&[rule]))
    })
    .collect();
    for (name, signer) in [
        ("kube-apiserver-client-approver", API_CLIENT),
        ("kube-apiserver-client-kubelet-approver", KUBELET_CLIENT),
        ("kubelet-serving-approver", KUBELET_SERVING),
        ("legacy-unknown-approver", LEGACY),
    ] {
        roles.push(cluster_role(&format!("system:certificates.k8s.io:{name}"), vec![signers("approve", &[signer])]));
    }
    let ask = ("certificates.k8s.io", "certificatesigningrequests", "create,get,list,watch");
    roles.push(cluster_role("system:node-bootstrapper", expand(&[ask])));
    roles
}

/// cluster-admin, and admin ⊃ edit ⊃ view as aggregates whose parts others may add to.
fn user_roles() -> Vec<Value> {
    let everything = vec![resource_rule(("*", "*", "*")), url_rule(&["*"], "*")];
    let part = |name: &str, rules: &[Rule], to: &str| {
        let mut role = cluster_role(&format!("system:aggregate-to-{name}"), expand(rules));
        role["metadata"]["labels"][format!("{GROUP}/aggregate-to-{to}")] = "true".into();
        role
    };
    vec![
        cluster_role("cluster-admin", everything),
        part("admin", ADMIN, "admin"),
        part("edit", EDIT, "edit"),
        part("view", VIEW, "view"),
        aggregate("admin", None, expand(&[ADMIN, EDIT, VIEW].concat())),
        aggregate("edit", Some("admin"), expand(&[EDIT, VIEW].concat())),
        aggregate("view", Some("edit"), expand(VIEW)),
    ]
}

/// Its rules are filled in at once, so that it serves before anybody has aggregated anything.
fn aggregate(name: &str, part_of: Option<&str>, rules: Vec<Value>) -> Value {
    let mut role = cluster_role(name, rules);
    let selector = json!({"matchLabels": {format!("{GROUP}/aggregate-to-{name}"): "true"}});
    role["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
    if let Some(whole) = part_of {
        role["metadata"]["labels"][format!("{GROUP}/aggregate-to-{whole}")] = "true".into();
    }
    role
}

fn system_roles() -> Vec<Value> {
    let discovery = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ];
    let public = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
    let monitoring =
        ["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*"];
    let issuer = [
        "/.well-known/openid-configuration",
        "/.well-known/openid-configuration/",
        "/openid/v1/jwks",
        "/openid/v1/jwks/",
    ];
    let rules = |rules: &[Rule]| expand(rules);
    vec![
        cluster_role("system:discovery", vec![url_rule(&discovery, "get")]),
        cluster_role("system:public-info-viewer", vec![url_rule(&public, "get")]),
        cluster_role("system:monitoring", vec![url_rule(&monitoring, "get")]),
        cluster_role("system:service-account-issuer-discovery", vec![url_rule(&issuer, "get")]),
        cluster_role(
            "system:basic-user",
            rules(&[
                ("authorization.k8s.io", "selfsubjectaccessreviews,selfsubjectrulesreviews", "create"),
                ("authentication.k8s.io", "selfsubjectreviews", "create"),
            ]),
        ),
        cluster_role("system:node", rules(NODE)),
        cluster_role(
            "system:node-proxier",
            rules(&[
                ("", "endpoints,services", "list,watch"),
                ("", "nodes", READ),
                EVENTS,
                ("discovery.k8s.io", "endpointslices", "list,watch"),
                ("networking.k8s.io", "servicecidrs", "list,watch"),
            ]),
        ),
        cluster_role("system:kube-scheduler", rules(SCHEDULER)),
        cluster_role("system:kube-controller-manager", rules(CONTROLLER_MANAGER)),
        cluster_role(
            "system:kube-dns",
            rules(&[("", "endpoints,services", "list,watch"), ("discovery.k8s.io", "endpointslices", "list,watch")]),
        ),
        cluster_role(
            "system:auth-delegator",
            rules(&[
                ("authentication.k8s.io", "tokenreviews", "create"),
                ("authorization.k8s.io", "subjectaccessreviews", "create"),
            ]),
        ),
        cluster_role(
            "system:kubelet-api-admin",
            rules(&[
                ("", "nodes", "get,list,watch"),
                ("", "nodes", "proxy"),
                (
                    "",
                    "nodes/checkpoint,nodes/configz,nodes/healthz,nodes/log,nodes/metrics,nodes/pods,nodes/proxy,\
                     nodes/spec,nodes/stats",
                    "*",
                ),
            ]),
        ),
    ]
}

fn bindings() -> Vec<Value> {
    let everybody = || json!([group("system:authenticated"), group("system:unauthenticated")]);
    let mut bindings: Vec<Value> = [
        ("cluster-admin", "cluster-admin", group("system:masters")),
        ("system:monitoring", "system:monitoring", group("system:monitoring")),
        ("system:discovery", "system:discovery", group("system:authenticated")),
        ("system:basic-user", "system:basic-user", group("system:authenticated")),
        ("system:node-proxier", "system:node-proxier", user("system:kube-proxy")),
        ("system:kube-scheduler", "system:kube-scheduler", user("system:kube-scheduler")),
        ("system:kube-controller-manager", "system:kube-controller-manager", user("system:kube-controller-manager")),
        ("system:kube-dns", "system:kube-dns", account("kube-dns")),
        (
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            group("system:serviceaccounts"),
        ),
        ("kube-apiserver-kubelet-admin", "system:kubelet-api-admin", user("kube-apiserver-kubelet-client")),
    ]
    .into_iter()
    .map(|(name, role, subject)| cluster_binding(name, role, subject))
    .collect();
    // Nobody holds the node's role through a binding: the node authorizer decides per node.
    let mut nodes = cluster_binding("system:node", "system:node", Value::Null);
    nodes.as_object_mut().map(|binding| binding.remove("subjects"));
    let mut public = cluster_binding("system:public-info-viewer", "system:public-info-viewer", Value::Null);
    public["subjects"] = everybody();
    bindings.extend([nodes, public]);
    bindings
}

/// Roles within kube-system and kube-public.
fn namespaced() -> Vec<Value> {
    let reader = "extension-apiserver-authentication-reader";
    let configuration = only(("configmaps", "extension-apiserver-authentication"), READ);
    let component = |name: &str| user(&format!("system:{name}"));
    let mut objects = local(
        "kube-system",
        reader,
        &format!("system::{reader}"),
        vec![configuration],
        vec![component("kube-controller-manager"), component("kube-scheduler")],
    );
    let cleaner = "system:controller:token-cleaner";
    let rules = expand(&[("", "secrets", "delete,get,list,watch"), EVENTS]);
    objects.extend(local("kube-system", cleaner, cleaner, rules, vec![account("token-cleaner")]));
    let signer = "system:controller:bootstrap-signer";
    let rules = expand(&[("", "secrets", READ)]);
    objects.extend(local("kube-system", signer, signer, rules, vec![account("bootstrap-signer")]));
    let mut rules = expand(&[("", "configmaps", READ), EVENTS]);
    rules.push(only(("configmaps", "cluster-info"), "update"));
    objects.extend(local("kube-public", signer, signer, rules, vec![account("bootstrap-signer")]));
    objects
}

/// Those whose bootstrap token is for joining nodes; kubeadm's name.
const JOINING: &str = "system:bootstrappers:kubeadm:default-node-token";

/// What joining takes, under kubeadm's names.
fn joining() -> Vec<Value> {
    let requests = "system:certificates.k8s.io:certificatesigningrequests";
    let mut objects = vec![cluster_role("kubeadm:get-nodes", expand(&[("", "nodes", "get")]))];
    objects.extend([
        cluster_binding("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", group(JOINING)),
        cluster_binding("kubeadm:node-autoapprove-bootstrap", &format!("{requests}:nodeclient"), group(JOINING)),
        cluster_binding(
            "kubeadm:node-autoapprove-certificate-rotation",
            &format!("{requests}:selfnodeclient"),
            group("system:nodes"),
        ),
        cluster_binding("kubeadm:get-nodes", "kubeadm:get-nodes", group(JOINING)),
    ]);
    let public = "kubeadm:bootstrap-signer-clusterinfo";
    let info = vec![only(("configmaps", "cluster-info"), "get")];
    objects.extend(local("kube-public", public, public, info, vec![user("system:anonymous")]));
    for (role, map) in
        [("kubeadm:kubelet-config", "kubelet-config"), ("kubeadm:nodes-kubeadm-config", "kubeadm-config")]
    {
        let rules = vec![only(("configmaps", map), "get")];
        objects.extend(local("kube-system", role, role, rules, vec![group("system:nodes"), group(JOINING)]));
    }
    // There is no such map: whoever joins is told so instead of being refused.
    let rules = vec![only(("configmaps", "kube-proxy"), "get")];
    objects.extend(local("kube-system", "kube-proxy", "kube-proxy", rules, vec![group(JOINING)]));
    objects
}

fn group(name: &str) -> Value {
    json!({"apiGroup": GROUP, "kind": "Group", "name": name})
}

fn user(name: &str) -> Value {
    json!({"apiGroup": GROUP, "kind": "User", "name": name})
}

fn account(name: &str) -> Value {
    json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"})
}

/// A rule about one object.
fn only((resource, name): (&'static str, &str), verbs: &'static str) -> Value {
    let mut rule = resource_rule(("", resource, verbs));
    rule["resourceNames"] = json!([name]);
    rule
}

/// A role and its binding in one namespace.
fn local(namespace: &str, role: &str, binding: &str, rules: Vec<Value>, subjects: Vec<Value>) -> Vec<Value> {
    let version = format!("{GROUP}/v1");
    vec![
        json!({
            "kind": "Role", "apiVersion": version, "metadata": metadata(role, Some(namespace)), "rules": rules,
        }),
        json!({
            "kind": "RoleBinding", "apiVersion": version, "metadata": metadata(binding, Some(namespace)),
            "subjects": subjects, "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": role},
        }),
    ]
}

fn cluster_role(name: &str, rules: Vec<Value>) -> Value {
    json!({"kind": "ClusterRole", "apiVersion": format!("{GROUP}/v1"), "metadata": metadata(name, None), "rules": rules})
}

fn cluster_binding(name: &str, role: &str, subject: Value) -> Value {
    json!({
        "kind": "ClusterRoleBinding", "apiVersion": format!("{GROUP}/v1"), "metadata": metadata(name, None),
        "subjects": [subject], "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
    })
}

fn metadata(name: &str, namespace: Option<&str>) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {format!("{GROUP}/autoupdate"): "true"},
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

fn expand(rules: &[Rule]) -> Vec<Value> {
    rules.iter().map(|rule| resource_rule(*rule)).collect()
}

fn resource_rule((groups, resources, verbs): Rule) -> Value {
    let list = |text: &'static str| text.split(',').collect::<Vec<_>>();
    json!({"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)})
}

fn url_rule(urls: &[&str], verbs: &str) -> Value {
    json!({"verbs": verbs.split(',').collect::<Vec<_>>(), "nonResourceURLs": urls})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_binding_names_a_role_that_is_there() {
        let objects = bootstrap_rbac();
        let key = |kind: &Value, name: &Value| format!("{kind}/{name}");
        let roles: BTreeSet<String> = objects.iter().map(|o| key(&o["kind"], &o["metadata"]["name"])).collect();
        for binding in objects.iter().filter(|o| o["roleRef"].is_object()) {
            let role = &binding["roleRef"];
            assert!(roles.contains(&key(&role["kind"], &role["name"])), "{role}");
        }
    }

    #[test]
    fn names_are_unique_and_nothing_has_an_empty_rule() {
        let objects = bootstrap_rbac();
        let names: BTreeSet<String> = objects
            .iter()
            .map(|o| format!("{}/{}/{}", o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]))
            .collect();
        assert_eq!(names.len(), objects.len());
        for rule in objects.iter().filter_map(|o| o["rules"].as_array()).flatten() {
            for part in ["verbs", "resources"].iter().filter_map(|part| rule[part].as_array()) {
                assert!(part.iter().all(|word| !word.as_str().unwrap().is_empty()), "{rule}");
            }
        }
    }
}
