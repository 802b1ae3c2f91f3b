//! Which behaviour a group and kind has.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::admission::{Policy, PolicyBinding, Webhooks};
use crate::core::{config, endpoints, event, namespace, node, quota, service, service_account};
use crate::storage::{claim, class, csi, volume};
use crate::workloads::{cron_job, daemon_set, deployment, job, replica_set, revision, stateful_set};
use crate::{
    Kind, api_service, autoscaling, certificates, classes, coordination, crd, devices, flow_control,
    networking, pod, policy, rbac, reviews,
};

/// A kind with nothing special.
struct Neutral;

impl Kind for Neutral {}

type Row = (&'static str, &'static str, &'static dyn Kind);

const ADMISSION: &str = "admissionregistration.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const FLOW_CONTROL: &str = "flowcontrol.apiserver.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";

const ROWS: &[Row] = &[
    ("", "ComponentStatus", &service_account::ComponentStatus),
    ("", "ConfigMap", &config::ConfigMap),
    ("", "Endpoints", &endpoints::Endpoints),
    ("", "Event", &event::Event),
    ("", "LimitRange", &quota::LimitRange),
    ("", "Namespace", &namespace::Namespace),
    ("", "Node", &node::Node),
    ("", "PersistentVolume", &volume::PersistentVolume),
    ("", "PersistentVolumeClaim", &claim::PersistentVolumeClaim),
    ("", "Pod", &pod::Pod),
    ("", "PodTemplate", &pod::PodTemplate),
    ("", "ReplicationController", &replica_set::ReplicationController),
    ("", "ResourceQuota", &quota::ResourceQuota),
    ("", "Secret", &config::Secret),
    ("", "Service", &service::Service),
    ("", "ServiceAccount", &service_account::ServiceAccount),
    (
        ADMISSION,
        "MutatingWebhookConfiguration",
        &Webhooks { columns: "admissionregistration.k8s.io/MutatingWebhookConfiguration" },
    ),
    (
        ADMISSION,
        "ValidatingWebhookConfiguration",
        &Webhooks { columns: "admissionregistration.k8s.io/ValidatingWebhookConfiguration" },
    ),
    (ADMISSION, "MutatingAdmissionPolicy", &Policy { mutating: true }),
    (ADMISSION, "MutatingAdmissionPolicyBinding", &PolicyBinding { mutating: true }),
    (ADMISSION, "ValidatingAdmissionPolicy", &Policy { mutating: false }),
    (ADMISSION, "ValidatingAdmissionPolicyBinding", &PolicyBinding { mutating: false }),
    ("apiextensions.k8s.io", "CustomResourceDefinition", &crd::CustomResourceDefinition),
    ("apiregistration.k8s.io", "APIService", &api_service::ApiService),
    ("apps", "ControllerRevision", &revision::ControllerRevision),
    ("apps", "DaemonSet", &daemon_set::DaemonSet),
    ("apps", "Deployment", &deployment::Deployment),
    ("apps", "ReplicaSet", &replica_set::ReplicaSet),
    ("apps", "StatefulSet", &stateful_set::StatefulSet),
    ("authentication.k8s.io", "SelfSubjectReview", &reviews::Review),
    ("authentication.k8s.io", "TokenRequest", &reviews::Review),
    ("authentication.k8s.io", "TokenReview", &reviews::Review),
    (AUTHORIZATION, "LocalSubjectAccessReview", &reviews::Review),
    (AUTHORIZATION, "SelfSubjectAccessReview", &reviews::Review),
    (AUTHORIZATION, "SelfSubjectRulesReview", &reviews::Review),
    (AUTHORIZATION, "SubjectAccessReview", &reviews::Review),
    ("autoscaling", "HorizontalPodAutoscaler", &autoscaling::HorizontalPodAutoscaler),
    ("autoscaling", "Scale", &autoscaling::ScaleKind),
    ("batch", "CronJob", &cron_job::CronJob),
    ("batch", "Job", &job::Job),
    ("certificates.k8s.io", "CertificateSigningRequest", &certificates::CertificateSigningRequest),
    ("certificates.k8s.io", "ClusterTrustBundle", &certificates::ClusterTrustBundle),
    ("certificates.k8s.io", "PodCertificateRequest", &certificates::PodCertificateRequest),
    ("coordination.k8s.io", "Lease", &coordination::Lease),
    ("coordination.k8s.io", "LeaseCandidate", &coordination::LeaseCandidate),
    ("discovery.k8s.io", "EndpointSlice", &endpoints::EndpointSlice),
    ("events.k8s.io", "Event", &event::NewEvent),
    (FLOW_CONTROL, "FlowSchema", &flow_control::FlowSchema),
    (FLOW_CONTROL, "PriorityLevelConfiguration", &flow_control::PriorityLevel),
    ("networking.k8s.io", "IPAddress", &networking::IpAddress),
    ("networking.k8s.io", "Ingress", &networking::Ingress),
    ("networking.k8s.io", "IngressClass", &networking::IngressClass),
    ("networking.k8s.io", "NetworkPolicy", &networking::NetworkPolicy),
    ("networking.k8s.io", "ServiceCIDR", &networking::ServiceCidr),
    ("node.k8s.io", "RuntimeClass", &classes::RuntimeClass),
    ("policy", "Eviction", &policy::Eviction),
    ("policy", "PodDisruptionBudget", &policy::PodDisruptionBudget),
    (RBAC, "ClusterRole", &rbac::Role),
    (RBAC, "ClusterRoleBinding", &rbac::ClusterBinding),
    (RBAC, "Role", &rbac::Role),
    (RBAC, "RoleBinding", &rbac::Binding),
    ("resource.k8s.io", "DeviceClass", &devices::DeviceClass),
    ("resource.k8s.io", "DeviceTaintRule", &devices::DeviceTaintRule),
    ("resource.k8s.io", "ResourceClaim", &devices::ResourceClaim),
    ("resource.k8s.io", "ResourceClaimTemplate", &devices::ResourceClaimTemplate),
    ("resource.k8s.io", "ResourceSlice", &devices::ResourceSlice),
    ("scheduling.k8s.io", "PriorityClass", &classes::PriorityClass),
    ("storage.k8s.io", "CSIDriver", &csi::CsiDriver),
    ("storage.k8s.io", "CSINode", &csi::CsiNode),
    ("storage.k8s.io", "CSIStorageCapacity", &csi::CsiStorageCapacity),
    ("storage.k8s.io", "StorageClass", &class::StorageClass),
    ("storage.k8s.io", "VolumeAttachment", &class::VolumeAttachment),
    ("storage.k8s.io", "VolumeAttributesClass", &class::VolumeAttributesClass),
    ("storagemigration.k8s.io", "StorageVersionMigration", &classes::StorageVersionMigration),
];

static TABLE: LazyLock<HashMap<(&'static str, &'static str), &'static dyn Kind>> =
    LazyLock::new(|| ROWS.iter().map(|(group, kind, behaviour)| ((*group, *kind), *behaviour)).collect());

/// The behaviour of that kind; a neutral one when there is nothing special about it.
pub fn kind(group: &str, kind: &str) -> &'static dyn Kind {
    TABLE.get(&(group, kind)).copied().unwrap_or(&Neutral)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wasmk_api::{Object, Timestamp};

    use super::*;

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        for (group, name, behaviour) in ROWS {
            let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
            let bare = json!({"apiVersion": version, "kind": name, "metadata": {"name": "a"}});
            let mut obj = Object::from_value(bare).unwrap();
            behaviour.default(&mut obj);
            let cells = behaviour.row(&obj, Timestamp::now());
            assert_eq!(cells.len(), behaviour.columns().len(), "{group}/{name}");
            let names: Vec<_> = behaviour.fields(&obj).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, behaviour.field_names(), "{group}/{name}");
        }
    }

    #[test]
    fn kinds_are_found_by_group_and_name() {
        assert!(kind("", "Pod").default_grace(&Object::default()).is_some());
        assert_eq!(kind("example.com", "Pod").columns().len(), 2);
    }
}
