//! The rows. Order is the order of discovery.

use super::{
    Column, Resource, Strategy, Subresource, apps, certificates, configmap, discovery, event, lease, namespace,
    networking, node, pod, rbac, secret, service, serviceaccount,
};

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const SINGLE_DELETE: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const READ_WRITE: &[&str] = &["get", "patch", "update"];
const CREATE: &[&str] = &["create"];
const STREAM: &[&str] = &["create", "get"];

/// A row of the most common shape: namespaced, all verbs, stored under its plural.
const fn row(
    (group, version, schema): (&'static str, &'static str, &'static str),
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    strategy: &'static dyn Strategy,
    columns: &'static [Column],
) -> Resource {
    Resource {
        group,
        version,
        kind,
        plural,
        singular,
        short: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        columns,
        schema,
        storage: plural,
        fields: &[],
        lifetime: 0,
        strategy,
    }
}

/// A kind that is answered and never stored.
const fn review(
    (group, version, schema): (&'static str, &'static str, &'static str),
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    namespaced: bool,
) -> Resource {
    let base = row((group, version, schema), kind, plural, singular, &NoStrategy, &[]);
    Resource { namespaced, verbs: CREATE, storage: "", ..base }
}

const fn column(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 0, description }
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { priority: 1, ..column(name, description) }
}

const fn number(name: &'static str, description: &'static str) -> Column {
    Column { kind: "integer", ..column(name, description) }
}

const NAME: Column =
    Column { format: "name", ..column("Name", "The object's name, unique among its kind within a namespace.") };
const AGE: Column = column("Age", "How long ago the object was created.");
const CONTAINERS: Column = wide("Containers", "The names of the template's containers.");
const IMAGES: Column = wide("Images", "The images of the template's containers.");
const SELECTOR: Column = wide("Selector", "The labels of the pods it speaks of.");

const fn part(
    name: &'static str,
    kind: (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, kind, verbs }
}

const SCALE: Subresource = part("scale", ("autoscaling", "v1", "Scale"), READ_WRITE);

const EVENT_COLUMNS: &[Column] = &[
    column("Last Seen", "How long ago it was last seen."),
    column("Type", "Normal or Warning."),
    column("Reason", "One word for what happened."),
    column("Object", "The object it happened to."),
    wide("Subobject", "The part of the object."),
    wide("Source", "Who reports it."),
    column("Message", "What happened."),
    wide("First Seen", "How long ago it was first seen."),
    wide("Count", "How often it was seen."),
    Column { priority: 1, ..NAME },
];

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    column("Role", "The role that is granted."),
    AGE,
    wide("Users", "The users it is granted to."),
    wide("Groups", "The groups it is granted to."),
    wide("ServiceAccounts", "The service accounts it is granted to."),
];

const ROLE_COLUMNS: &[Column] =
    &[NAME, Column { kind: "date", ..column("Created At", "When the object was created.") }];

/// Events go by themselves after an hour, as upstream's `--event-ttl` has it.
const EVENT_LIFETIME: u32 = 3600;

pub static TABLE: &[Resource] = &[
    Resource {
        verbs: CREATE,
        storage: "",
        ..row(("", "v1", "io.k8s.api.core.v1.Binding"), "Binding", "bindings", "binding", &NoStrategy, &[])
    },
    Resource {
        short: &["cm"],
        ..row(
            ("", "v1", "io.k8s.api.core.v1.ConfigMap"),
            "ConfigMap",
            "configmaps",
            "configmap",
            &configmap::ConfigMap,
            &[NAME, column("Data", "How many keys it has."), AGE],
        )
    },
    Resource {
        short: &["ep"],
        storage: "services/endpoints",
        ..row(
            ("", "v1", "io.k8s.api.core.v1.Endpoints"),
            "Endpoints",
            "endpoints",
            "endpoints",
            &discovery::Endpoints,
            &[NAME, column("Endpoints", "The addresses and ports that are ready."), AGE],
        )
    },
    Resource {
        short: &["ev"],
        fields: event::FIELDS,
        lifetime: EVENT_LIFETIME,
        ..row(("", "v1", "io.k8s.api.core.v1.Event"), "Event", "events", "event", &event::CoreEvent, EVENT_COLUMNS)
    },
    Resource {
        short: &["ns"],
        namespaced: false,
        verbs: SINGLE_DELETE,
        subresources: &[
            part("finalize", ("", "v1", "Namespace"), &["update"]),
            part("status", ("", "v1", "Namespace"), READ_WRITE),
        ],
        fields: &["status.phase"],
        ..row(
            ("", "v1", "io.k8s.api.core.v1.Namespace"),
            "Namespace",
            "namespaces",
            "namespace",
            &namespace::Namespace,
            &[NAME, column("Status", "Active or Terminating."), AGE],
        )
    },
    Resource {
        short: &["no"],
        namespaced: false,
        storage: "minions",
        subresources: &[
            part("proxy", ("", "v1", "NodeProxyOptions"), &["create", "delete", "get", "patch", "update"]),
            part("status", ("", "v1", "Node"), READ_WRITE),
        ],
        fields: &["spec.unschedulable"],
        ..row(
            ("", "v1", "io.k8s.api.core.v1.Node"),
            "Node",
            "nodes",
            "node",
            &node::Node,
            &[
                NAME,
                column("Status", "Whether it takes pods."),
                column("Roles", "The roles its labels give it."),
                AGE,
                column("Version", "The kubelet's version."),
                wide("Internal-IP", "Its address within the cluster."),
                wide("External-IP", "Its address outside of the cluster."),
                wide("OS-Image", "The operating system it reports."),
                wide("Kernel-Version", "The kernel it reports."),
                wide("Container-Runtime", "The container runtime it reports."),
            ],
        )
    },
    Resource {
        short: &["po"],
        categories: &["all"],
        subresources: &[
            part("attach", ("", "v1", "PodAttachOptions"), STREAM),
            part("binding", ("", "v1", "Binding"), CREATE),
            part("eviction", ("policy", "v1", "Eviction"), CREATE),
            part("exec", ("", "v1", "PodExecOptions"), STREAM),
            part("log", ("", "v1", "Pod"), &["get"]),
            part("portforward", ("", "v1", "PodPortForwardOptions"), STREAM),
            part("proxy", ("", "v1", "PodProxyOptions"), &["create", "delete", "get", "patch", "update"]),
            part("status", ("", "v1", "Pod"), READ_WRITE),
        ],
        fields: pod::FIELDS,
        ..row(
            ("", "v1", "io.k8s.api.core.v1.Pod"),
            "Pod",
            "pods",
            "pod",
            &pod::Pod,
            &[
                NAME,
                column("Ready", "How many of its containers are ready."),
                column("Status", "What its containers are doing, in a word."),
                column("Restarts", "How often its containers were restarted, and when last."),
                AGE,
                wide("IP", "Its address."),
                wide("Node", "The node it is bound to."),
                wide("Nominated Node", "The node where others make room for it."),
                wide("Readiness Gates", "How many of its readiness gates are met."),
            ],
        )
    },
    Resource {
        fields: &["type"],
        ..row(
            ("", "v1", "io.k8s.api.core.v1.Secret"),
            "Secret",
            "secrets",
            "secret",
            &secret::Secret,
            &[NAME, column("Type", "What the secret is for."), column("Data", "How many keys it has."), AGE],
        )
    },
    Resource {
        short: &["sa"],
        subresources: &[part("token", ("authentication.k8s.io", "v1", "TokenRequest"), CREATE)],
        ..row(
            ("", "v1", "io.k8s.api.core.v1.ServiceAccount"),
            "ServiceAccount",
            "serviceaccounts",
            "serviceaccount",
            &serviceaccount::ServiceAccount,
            &[NAME, AGE],
        )
    },
    Resource {
        short: &["svc"],
        categories: &["all"],
        storage: "services/specs",
        subresources: &[
            part("proxy", ("", "v1", "ServiceProxyOptions"), &["create", "delete", "get", "patch", "update"]),
            part("status", ("", "v1", "Service"), READ_WRITE),
        ],
        fields: &["spec.clusterIP", "spec.type"],
        ..row(
            ("", "v1", "io.k8s.api.core.v1.Service"),
            "Service",
            "services",
            "service",
            &service::Service,
            &[
                NAME,
                column("Type", "How it is exposed."),
                column("Cluster-IP", "Its address within the cluster."),
                column("External-IP", "The addresses it answers on from outside."),
                column("Port(s)", "Its ports, with node ports after a colon."),
                AGE,
                SELECTOR,
            ],
        )
    },
    Resource {
        short: &["deploy"],
        categories: &["all"],
        subresources: &[SCALE, part("status", ("apps", "v1", "Deployment"), READ_WRITE)],
        ..row(
            ("apps", "v1", "io.k8s.api.apps.v1.Deployment"),
            "Deployment",
            "deployments",
            "deployment",
            &apps::Deployment,
            &[
                NAME,
                column("Ready", "How many of the wanted pods are ready."),
                column("Up-to-date", "How many pods have the newest template."),
                column("Available", "How many pods have been ready for long enough."),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ],
        )
    },
    Resource {
        short: &["rs"],
        categories: &["all"],
        subresources: &[SCALE, part("status", ("apps", "v1", "ReplicaSet"), READ_WRITE)],
        fields: &["status.replicas"],
        ..row(
            ("apps", "v1", "io.k8s.api.apps.v1.ReplicaSet"),
            "ReplicaSet",
            "replicasets",
            "replicaset",
            &apps::ReplicaSet,
            &[
                NAME,
                number("Desired", "How many pods are wanted."),
                number("Current", "How many pods there are."),
                number("Ready", "How many pods are ready."),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ],
        )
    },
    Resource {
        short: &["ev"],
        fields: event::FIELDS,
        lifetime: EVENT_LIFETIME,
        ..row(
            ("events.k8s.io", "v1", "io.k8s.api.events.v1.Event"),
            "Event",
            "events",
            "event",
            &event::EventsEvent,
            EVENT_COLUMNS,
        )
    },
    review(
        ("authentication.k8s.io", "v1", "io.k8s.api.authentication.v1.SelfSubjectReview"),
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
        false,
    ),
    review(
        ("authentication.k8s.io", "v1", "io.k8s.api.authentication.v1.TokenReview"),
        "TokenReview",
        "tokenreviews",
        "tokenreview",
        false,
    ),
    review(
        ("authorization.k8s.io", "v1", "io.k8s.api.authorization.v1.LocalSubjectAccessReview"),
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        true,
    ),
    review(
        ("authorization.k8s.io", "v1", "io.k8s.api.authorization.v1.SelfSubjectAccessReview"),
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        false,
    ),
    review(
        ("authorization.k8s.io", "v1", "io.k8s.api.authorization.v1.SelfSubjectRulesReview"),
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        false,
    ),
    review(
        ("authorization.k8s.io", "v1", "io.k8s.api.authorization.v1.SubjectAccessReview"),
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
        false,
    ),
    Resource {
        short: &["csr"],
        namespaced: false,
        subresources: &[
            part("approval", ("certificates.k8s.io", "v1", "CertificateSigningRequest"), READ_WRITE),
            part("status", ("certificates.k8s.io", "v1", "CertificateSigningRequest"), READ_WRITE),
        ],
        fields: &["spec.signerName"],
        ..row(
            ("certificates.k8s.io", "v1", "io.k8s.api.certificates.v1.CertificateSigningRequest"),
            "CertificateSigningRequest",
            "certificatesigningrequests",
            "certificatesigningrequest",
            &certificates::CertificateSigningRequest,
            &[
                NAME,
                AGE,
                column("SignerName", "Who is asked to sign."),
                column("Requestor", "Who asks."),
                column("RequestedDuration", "How long the certificate shall be valid."),
                column("Condition", "What came of it."),
            ],
        )
    },
    Resource {
        short: &["ip"],
        namespaced: false,
        fields: &["spec.parentRef.resource"],
        ..row(
            ("networking.k8s.io", "v1", "io.k8s.api.networking.v1.IPAddress"),
            "IPAddress",
            "ipaddresses",
            "ipaddress",
            &networking::IpAddress,
            &[NAME, column("ParentRef", "What uses the address.")],
        )
    },
    Resource {
        namespaced: false,
        subresources: &[part("status", ("networking.k8s.io", "v1", "ServiceCIDR"), READ_WRITE)],
        ..row(
            ("networking.k8s.io", "v1", "io.k8s.api.networking.v1.ServiceCIDR"),
            "ServiceCIDR",
            "servicecidrs",
            "servicecidr",
            &networking::ServiceCidr,
            &[NAME, column("CIDRs", "The ranges that cluster IPs are drawn from."), AGE],
        )
    },
    Resource {
        namespaced: false,
        ..row(
            ("rbac.authorization.k8s.io", "v1", "io.k8s.api.rbac.v1.ClusterRoleBinding"),
            "ClusterRoleBinding",
            "clusterrolebindings",
            "clusterrolebinding",
            &rbac::ClusterRoleBinding,
            BINDING_COLUMNS,
        )
    },
    Resource {
        namespaced: false,
        ..row(
            ("rbac.authorization.k8s.io", "v1", "io.k8s.api.rbac.v1.ClusterRole"),
            "ClusterRole",
            "clusterroles",
            "clusterrole",
            &rbac::ClusterRole,
            ROLE_COLUMNS,
        )
    },
    row(
        ("rbac.authorization.k8s.io", "v1", "io.k8s.api.rbac.v1.RoleBinding"),
        "RoleBinding",
        "rolebindings",
        "rolebinding",
        &rbac::RoleBinding,
        BINDING_COLUMNS,
    ),
    row(
        ("rbac.authorization.k8s.io", "v1", "io.k8s.api.rbac.v1.Role"),
        "Role",
        "roles",
        "role",
        &rbac::Role,
        ROLE_COLUMNS,
    ),
    row(
        ("coordination.k8s.io", "v1", "io.k8s.api.coordination.v1.Lease"),
        "Lease",
        "leases",
        "lease",
        &lease::Lease,
        &[NAME, column("Holder", "Who holds it."), AGE],
    ),
    row(
        ("discovery.k8s.io", "v1", "io.k8s.api.discovery.v1.EndpointSlice"),
        "EndpointSlice",
        "endpointslices",
        "endpointslice",
        &discovery::EndpointSlice,
        &[
            NAME,
            column("AddressType", "What its addresses are."),
            column("Ports", "The ports its endpoints listen on."),
            column("Endpoints", "The addresses of its endpoints."),
            AGE,
        ],
    ),
];

/// Kinds that are stored as companions of others and never served, listed or discovered.
pub static INTERNAL: &[Resource] = &[Resource {
    namespaced: false,
    verbs: &[],
    storage: "ranges/servicenodeports.leme",
    ..row(("internal", "v1", ""), "NodePort", "nodeports", "nodeport", &NoStrategy, &[NAME])
}];

/// For kinds that are answered in passing or stored only beside another.
struct NoStrategy;

impl Strategy for NoStrategy {
    fn cells(&self, object: &serde_json::Value, _now: jiff::Timestamp) -> Vec<serde_json::Value> {
        vec![object["metadata"]["name"].clone()]
    }
}
