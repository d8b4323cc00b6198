//! Which Rust type holds the schema of a kind.

use k8s_openapi::api::admissionregistration::v1 as admissionregistration_v1;
use k8s_openapi::api::apps::v1 as apps_v1;
use k8s_openapi::api::authentication::v1 as authentication_v1;
use k8s_openapi::api::authorization::v1 as authorization_v1;
use k8s_openapi::api::autoscaling::v1 as autoscaling_v1;
use k8s_openapi::api::autoscaling::v2 as autoscaling_v2;
use k8s_openapi::api::batch::v1 as batch_v1;
use k8s_openapi::api::certificates::v1 as certificates_v1;
use k8s_openapi::api::coordination::v1 as coordination_v1;
use k8s_openapi::api::core::v1 as core_v1;
use k8s_openapi::api::discovery::v1 as discovery_v1;
use k8s_openapi::api::events::v1 as events_v1;
use k8s_openapi::api::flowcontrol::v1 as flowcontrol_v1;
use k8s_openapi::api::networking::v1 as networking_v1;
use k8s_openapi::api::node::v1 as node_v1;
use k8s_openapi::api::policy::v1 as policy_v1;
use k8s_openapi::api::rbac::v1 as rbac_v1;
use k8s_openapi::api::resource::v1 as resource_v1;
use k8s_openapi::api::scheduling::v1 as scheduling_v1;
use k8s_openapi::api::storage::v1 as storage_v1;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions_v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration_v1;
use schemars::SchemaGenerator;

/// `"<package>.<version>" <module>: kinds` → one function that knows them all.
macro_rules! kinds {
    ($($prefix:literal $module:ident: $($kind:ident)+;)+) => {
        /// Adds a kind's type and all it refers to; a name that is no kind adds nothing.
        pub(crate) fn register(short: &str, generator: &mut SchemaGenerator) {
            match short {
                $($(concat!($prefix, ".", stringify!($kind)) => {
                    generator.subschema_for::<$module::$kind>();
                })+)+
                _ => {}
            }
        }
    };
}

kinds! {
    "admissionregistration.v1" admissionregistration_v1: MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration;
    "apiextensions.v1" apiextensions_v1: CustomResourceDefinition;
    "apiregistration.v1" apiregistration_v1: APIService;
    "apps.v1" apps_v1: ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet;
    "authentication.v1" authentication_v1: SelfSubjectReview TokenRequest TokenReview;
    "authorization.v1" authorization_v1: LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview;
    "autoscaling.v1" autoscaling_v1: HorizontalPodAutoscaler Scale;
    "autoscaling.v2" autoscaling_v2: HorizontalPodAutoscaler;
    "batch.v1" batch_v1: CronJob Job;
    "certificates.v1" certificates_v1: CertificateSigningRequest;
    "coordination.v1" coordination_v1: Lease;
    "core.v1" core_v1: Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount;
    "discovery.v1" discovery_v1: EndpointSlice;
    "events.v1" events_v1: Event;
    "flowcontrol.v1" flowcontrol_v1: FlowSchema PriorityLevelConfiguration;
    "networking.v1" networking_v1: IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR;
    "node.v1" node_v1: RuntimeClass;
    "policy.v1" policy_v1: Eviction PodDisruptionBudget;
    "rbac.v1" rbac_v1: ClusterRole ClusterRoleBinding Role RoleBinding;
    "resource.v1" resource_v1: DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice;
    "scheduling.v1" scheduling_v1: PriorityClass;
    "storage.v1" storage_v1: CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass;
}

/// What operations refer to whatever the group.
pub(super) fn register_common(generator: &mut SchemaGenerator) {
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::ListMeta>();
    generator.subschema_for::<meta::Status>();
    generator.subschema_for::<meta::APIResourceList>();
}
