//! What is particular about how single resources are served, as rows.

use crate::table::Resource;

/// Resources whose delete answers with the object instead of a `Status`.
const RETURN_DELETED: [&str; 8] = [
    "core/pods",
    "core/services",
    "core/serviceaccounts",
    "core/podtemplates",
    "core/persistentvolumes",
    "core/persistentvolumeclaims",
    "core/resourcequotas",
    "core/namespaces",
];

/// Versions that are deprecated, with the text clients are warned with.
const DEPRECATED: [(&str, &str, &str, &str); 2] = [
    ("", "v1", "endpoints", "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    ("", "v1", "componentstatuses", "v1 ComponentStatus is deprecated in v1.19+"),
];

/// Versions that are no longer served, with the one to use.
const REMOVED: [(&str, &str, &str); 26] = [
    ("extensions", "v1beta1", "apps/v1, networking.k8s.io/v1 or policy/v1"),
    ("apps", "v1beta1", "apps/v1"),
    ("apps", "v1beta2", "apps/v1"),
    ("batch", "v1beta1", "batch/v1"),
    ("batch", "v2alpha1", "batch/v1"),
    ("policy", "v1beta1", "policy/v1"),
    ("networking.k8s.io", "v1alpha1", "networking.k8s.io/v1"),
    ("networking.k8s.io", "v1beta1", "networking.k8s.io/v1"),
    ("rbac.authorization.k8s.io", "v1alpha1", "rbac.authorization.k8s.io/v1"),
    ("rbac.authorization.k8s.io", "v1beta1", "rbac.authorization.k8s.io/v1"),
    ("autoscaling", "v2beta1", "autoscaling/v2"),
    ("autoscaling", "v2beta2", "autoscaling/v2"),
    ("apiextensions.k8s.io", "v1beta1", "apiextensions.k8s.io/v1"),
    ("apiregistration.k8s.io", "v1beta1", "apiregistration.k8s.io/v1"),
    ("admissionregistration.k8s.io", "v1beta1", "admissionregistration.k8s.io/v1"),
    ("authentication.k8s.io", "v1beta1", "authentication.k8s.io/v1"),
    ("authorization.k8s.io", "v1beta1", "authorization.k8s.io/v1"),
    ("certificates.k8s.io", "v1beta1", "certificates.k8s.io/v1"),
    ("coordination.k8s.io", "v1beta1", "coordination.k8s.io/v1"),
    ("discovery.k8s.io", "v1beta1", "discovery.k8s.io/v1"),
    ("events.k8s.io", "v1beta1", "events.k8s.io/v1"),
    ("flowcontrol.apiserver.k8s.io", "v1beta3", "flowcontrol.apiserver.k8s.io/v1"),
    ("node.k8s.io", "v1beta1", "node.k8s.io/v1"),
    ("scheduling.k8s.io", "v1beta1", "scheduling.k8s.io/v1"),
    ("storage.k8s.io", "v1alpha1", "storage.k8s.io/v1"),
    ("storage.k8s.io", "v1beta1", "storage.k8s.io/v1"),
];

/// The annotation that stands for a field of an older version of a kind, which is seen on whole objects only.
pub(crate) fn mirrored_annotation(kind: &str) -> Option<&'static str> {
    (kind == "DaemonSet").then_some("deprecated.daemonset.template.generation")
}

/// Whether a delete answers with the object.
pub(crate) fn returns_deleted(resource: &Resource) -> bool {
    RETURN_DELETED.contains(&&*resource.storage)
}

/// Whether it is the resource of namespaces, whose objects take everything in them along.
pub(crate) fn is_namespace(resource: &Resource) -> bool {
    resource.storage == "core/namespaces"
}

/// Whether it is the resource of custom resource definitions, whose objects take custom resources along.
pub(crate) fn is_definition(resource: &Resource) -> bool {
    resource.storage == "apiextensions.k8s.io/customresourcedefinitions"
}

/// Whether its objects say who is who and who may do what.
pub(crate) fn decides_access(resource: &Resource) -> bool {
    resource.gvk.group == "rbac.authorization.k8s.io"
        || matches!(&*resource.storage, "core/serviceaccounts" | "core/secrets")
}

/// The warning a deprecated resource is answered with.
pub(crate) fn deprecation(group: &str, version: &str, plural: &str) -> Option<&'static str> {
    DEPRECATED.iter().find(|(g, v, p, _)| *g == group && *v == version && *p == plural).map(|row| row.3)
}

/// What to use instead of a version that is no longer served.
pub(crate) fn removed(group: &str, version: &str) -> Option<&'static str> {
    REMOVED.iter().find(|(g, v, _)| *g == group && *v == version).map(|row| row.2)
}
