//! Which kinds can be cached, how to reach them and what of them is kept.

use std::fmt::Debug;

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
        autoscaling::v2::HorizontalPodAutoscaler,
        batch::v1::{CronJob, Job},
        certificates::v1::CertificateSigningRequest,
        coordination::v1::Lease,
        core::v1::{
            ConfigMap, Container, Endpoints, LimitRange, Namespace, Node, PersistentVolume,
            PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service,
            ServiceAccount,
        },
        discovery::v1::EndpointSlice,
        node::v1::RuntimeClass,
        policy::v1::PodDisruptionBudget,
        rbac::v1::ClusterRole,
        scheduling::v1::PriorityClass,
        storage::v1::{CSIDriver, CSINode, StorageClass, VolumeAttachment},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, Resource, runtime::watcher};
use serde::{Serialize, de::DeserializeOwned};

use super::controller_of;

/// A kind with a shared cache.
pub trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + PartialEq + Send + Sync + 'static
{
    /// Objects of one namespace (ignored for cluster-scoped kinds).
    fn api(client: Client, namespace: &str) -> Api<Self>;

    /// What the cache holds: every namespace unless said otherwise.
    fn scope(client: Client) -> Api<Self>;

    /// Which objects the cache holds: all unless said otherwise.
    fn config() -> watcher::Config {
        watcher::Config::default()
    }

    /// Drops what no controller reads, to keep the cache small. Objects that are written
    /// back whole must keep everything.
    fn trim(&mut self) {}

    /// Names under which the object is found besides its key.
    fn index(&self) -> Vec<String> {
        by_owner(self)
    }
}

/// `owner/<uid>` of the controlling owner, else `orphan/<namespace>`.
fn by_owner<K: Resource>(object: &K) -> Vec<String> {
    match controller_of(object) {
        Some(owner) => vec![format!("owner/{}", owner.uid)],
        None => vec![format!("orphan/{}", object.meta().namespace.as_deref().unwrap_or(""))],
    }
}

macro_rules! namespaced {
    ($($kind:ty $({ $($extra:item)* })?),* $(,)?) => {$(
        impl Watched for $kind {
            fn api(client: Client, namespace: &str) -> Api<Self> {
                Api::namespaced(client, namespace)
            }
            namespaced!(@scope $($($extra)*)?);
        }
    )*};
    (@scope) => {
        fn scope(client: Client) -> Api<Self> {
            Api::all(client)
        }
    };
    (@scope $($extra:item)*) => { $($extra)* };
}

macro_rules! cluster {
    ($($kind:ty),* $(,)?) => {$(
        impl Watched for $kind {
            fn api(client: Client, _namespace: &str) -> Api<Self> {
                Api::all(client)
            }
            fn scope(client: Client) -> Api<Self> {
                Api::all(client)
            }
            fn index(&self) -> Vec<String> {
                Vec::new()
            }
        }
    )*};
}

cluster!(
    Namespace,
    Node,
    PersistentVolume,
    CertificateSigningRequest,
    RuntimeClass,
    ClusterRole,
    PriorityClass,
    StorageClass,
    CSIDriver,
    CSINode,
    VolumeAttachment
);

namespaced!(
    ControllerRevision,
    CronJob,
    DaemonSet,
    Deployment,
    EndpointSlice,
    Endpoints,
    HorizontalPodAutoscaler,
    Job,
    LimitRange,
    PersistentVolumeClaim,
    PodDisruptionBudget,
    ReplicaSet,
    ReplicationController,
    ResourceQuota,
    ServiceAccount,
    StatefulSet,
    PodTemplate,
    Service {
        fn scope(client: Client) -> Api<Self> {
            Api::all(client)
        }
        fn trim(&mut self) {
            trim_meta(&mut self.metadata);
        }
        // Every function has one that selects nothing.
        fn index(&self) -> Vec<String> {
            let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
            selects(self).then(|| selecting(namespace)).into_iter().collect()
        }
    },
    Pod {
        fn scope(client: Client) -> Api<Self> {
            Api::all(client)
        }
        fn trim(&mut self) {
            trim_pod(self);
        }
        fn index(&self) -> Vec<String> {
            let mut names = by_owner(self);
            if let Some(node) = self.spec.as_ref().and_then(|s| s.node_name.as_deref()) {
                names.push(format!("node/{node}"));
            }
            names
        }
    },
    // Heartbeats of nodes; other leases are of no interest here.
    Lease {
        fn scope(client: Client) -> Api<Self> {
            Api::namespaced(client, "kube-node-lease")
        }
    },
    // Only the published root certificate.
    ConfigMap {
        fn scope(client: Client) -> Api<Self> {
            Api::all(client)
        }
        fn config() -> watcher::Config {
            watcher::Config::default().fields("metadata.name=kube-root-ca.crt")
        }
    },
    // Only tokens are read here. The API can leave out the usual kind alone; of the others (certificates,
    // logins, releases of Helm) nothing but the name is kept.
    Secret {
        fn scope(client: Client) -> Api<Self> {
            Api::all(client)
        }
        fn config() -> watcher::Config {
            watcher::Config::default().fields("type!=Opaque")
        }
        fn trim(&mut self) {
            if !matches!(self.type_.as_deref(), Some(TOKENS_OF_ACCOUNTS | TOKENS_TO_JOIN)) {
                self.data = None;
            }
        }
    },
);

/// Whether a service has pods by its selector.
pub(crate) fn selects(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() != Some("ExternalName") && spec.selector.as_ref().is_some_and(|s| !s.is_empty())
    })
}

/// Under what the services of a namespace are found that have pods by their selectors.
pub(crate) fn selecting(namespace: &str) -> String {
    format!("selecting/{namespace}")
}

/// Types of secrets that hold tokens.
pub(crate) const TOKENS_OF_ACCOUNTS: &str = "kubernetes.io/service-account-token";
pub(crate) const TOKENS_TO_JOIN: &str = "bootstrap.kubernetes.io/token";

/// Most of a pod's text says how to run its containers, which only its node needs.
fn trim_pod(pod: &mut Pod) {
    trim_meta(&mut pod.metadata);
    if let Some(spec) = &mut pod.spec {
        let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
        containers.for_each(trim_container);
        spec.dns_config = None;
        spec.host_aliases = None;
        spec.readiness_gates = None;
        spec.security_context = None;
        spec.image_pull_secrets = None;
    }
}

fn trim_container(container: &mut Container) {
    container.args = None;
    container.command = None;
    container.env = None;
    container.env_from = None;
    container.lifecycle = None;
    container.liveness_probe = None;
    container.readiness_probe = None;
    container.security_context = None;
    container.startup_probe = None;
    container.volume_mounts = None;
}

/// Drops bookkeeping of writers.
pub(super) fn trim_meta(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn only_tokens_are_kept() {
        for (kind, kept) in [
            ("kubernetes.io/service-account-token", true),
            ("bootstrap.kubernetes.io/token", true),
            ("kubernetes.io/tls", false),
            ("helm.sh/release.v1", false),
        ] {
            let data = [("key".to_owned(), ByteString(vec![1]))].into();
            let mut secret = Secret { type_: Some(kind.into()), data: Some(data), ..Secret::default() };
            secret.trim();
            assert_eq!(secret.data.is_some(), kept, "{kind}");
        }
    }
}
