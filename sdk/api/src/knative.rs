//! Kinds of `serving.knative.dev/v1`, as controllers and the gateway read them.
//!
//! Fields follow Knative Serving's published API. A `Service` owns a `Configuration`, which makes a
//! [`Revision`] of each template, and a [`Route`], which splits traffic over revisions.

use std::collections::BTreeMap;

use k8s_openapi::{
    Metadata, NamespaceResourceScope, Resource, api::core::v1::PodSpec,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};

/// The API group of functions.
pub const GROUP: &str = "serving.knative.dev";
/// Label: the Service an object belongs to.
pub const SERVICE_LABEL: &str = "serving.knative.dev/service";
/// Label: the Configuration an object belongs to.
pub const CONFIGURATION_LABEL: &str = "serving.knative.dev/configuration";
/// Label: which generation of its Configuration a Revision was made from.
pub const GENERATION_LABEL: &str = "serving.knative.dev/configurationGeneration";
/// Label: the Revision an object belongs to.
pub const REVISION_LABEL: &str = "serving.knative.dev/revision";
/// Label: the uid of that Revision.
pub const REVISION_UID_LABEL: &str = "serving.knative.dev/revisionUID";
/// Label: the Route an object belongs to.
pub const ROUTE_LABEL: &str = "serving.knative.dev/route";
/// Label: whether a route leads to a Revision: `pending`, `active` or `reserve`.
pub const ROUTING_STATE_LABEL: &str = "serving.knative.dev/routingState";
/// Annotation: when that changed last.
pub const ROUTING_MODIFIED_ANNOTATION: &str = "serving.knative.dev/routingStateModified";
/// Annotation: the routes that lead to a Revision, with commas.
pub const ROUTES_ANNOTATION: &str = "serving.knative.dev/routes";
/// Annotation: `true` keeps a Revision from being collected.
pub const NO_GC_ANNOTATION: &str = "serving.knative.dev/no-gc";
/// Annotation of a Route: how far its rollouts are.
pub const ROLLOUT_ANNOTATION: &str = "serving.knative.dev/rollout";
/// Label: `cluster-local` keeps a function away from the outside.
pub const VISIBILITY_LABEL: &str = "networking.knative.dev/visibility";

/// Makes a struct a namespaced kind of the group.
macro_rules! kind {
    ($type:ident, $plural:literal) => {
        kind!($type, $plural, "v1");
    };
    ($type:ident, $plural:literal, $version:literal) => {
        impl Resource for $type {
            const API_VERSION: &'static str = concat!("serving.knative.dev/", $version);
            const GROUP: &'static str = GROUP;
            const KIND: &'static str = stringify!($type);
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = NamespaceResourceScope;
        }

        impl Metadata for $type {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

kind!(Service, "services");
kind!(Configuration, "configurations");
kind!(Revision, "revisions");
kind!(Route, "routes");
kind!(DomainMapping, "domainmappings", "v1beta1");

/// A function or web service: a template and how traffic reaches its revisions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// Standard metadata.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: ServiceSpec,
    /// What there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ServiceStatus>,
}

/// A template with traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// What revisions are made from.
    pub template: RevisionTemplate,
    /// How traffic is split; everything to the latest ready revision when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

/// What a Service has come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// The `metadata.generation` this speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `ConfigurationsReady`, `RoutesReady`, `Ready`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The newest revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_created_revision_name: Option<String>,
    /// The newest revision that can serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_ready_revision_name: Option<String>,
    /// Where it is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where it is reached from inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// How traffic is split now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

/// Makes a revision of every template it is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Configuration {
    /// Standard metadata.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: ConfigurationSpec,
    /// What there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ConfigurationStatus>,
}

/// The template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigurationSpec {
    /// What the next revision is made from.
    pub template: RevisionTemplate,
}

/// What a Configuration has come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigurationStatus {
    /// The `metadata.generation` this speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The newest revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_created_revision_name: Option<String>,
    /// The newest revision that can serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_ready_revision_name: Option<String>,
}

/// Metadata and spec of the revisions to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionTemplate {
    /// Labels, annotations and an optional name of the revision.
    #[serde(skip_serializing_if = "is_default")]
    pub metadata: ObjectMeta,
    /// What it runs.
    pub spec: RevisionSpec,
}

/// One immutable version of a function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Revision {
    /// Standard metadata.
    pub metadata: ObjectMeta,
    /// What it runs.
    pub spec: RevisionSpec,
    /// What there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<RevisionStatus>,
}

/// A pod's spec with limits on its requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionSpec {
    /// Containers, volumes, service account and so on.
    #[serde(flatten)]
    pub pod: PodSpec,
    /// Most requests an instance answers at a time; 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_concurrency: Option<i64>,
    /// Seconds a request may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// Seconds until the first byte of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_start_timeout_seconds: Option<i64>,
    /// Seconds an answer may pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<i64>,
}

/// What a Revision has come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionStatus {
    /// The `metadata.generation` this speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `ResourcesAvailable`, `ContainerHealthy`, `Active`, `Ready`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The digests its images had when it was made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub container_statuses: Vec<ContainerStatus>,
    /// Pods there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_replicas: Option<i32>,
    /// Pods there should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
}

/// The image one container runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// The container.
    pub name: String,
    /// `repository@sha256:…`.
    pub image_digest: String,
}

/// Gives revisions a host name and splits its traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Route {
    /// Standard metadata.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: RouteSpec,
    /// What there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<RouteStatus>,
}

/// The wanted split.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteSpec {
    /// Where traffic goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

/// What a Route has come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteStatus {
    /// The `metadata.generation` this speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `AllTrafficAssigned`, `CertificateProvisioned`, `IngressReady`, `Ready`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Where it is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where it is reached from inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// The split in force, every target by revision.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

/// One share of a route's traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficTarget {
    /// A name of its own: the host `tag-route.namespace.domain` leads here.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// This revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision_name: Option<String>,
    /// The latest ready revision of this configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration_name: Option<String>,
    /// Whether it follows the latest ready revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_revision: Option<bool>,
    /// Share of the traffic, 0 to 100; the shares of a route add up to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<i64>,
    /// Where the tag is reached; set by the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Leads a host name (the object's name) to a Service or Route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DomainMapping {
    /// Standard metadata.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: DomainMappingSpec,
    /// What there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<DomainMappingStatus>,
}

/// What a host name leads to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DomainMappingSpec {
    /// The object.
    #[serde(rename = "ref")]
    pub reference: Reference,
}

/// Names an object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reference {
    /// Its kind.
    pub kind: String,
    /// Its namespace; that of the object that names it when empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its group and version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
}

/// What a DomainMapping has come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DomainMappingStatus {
    /// The `metadata.generation` this speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `CertificateProvisioned`, `DomainClaimed`, `IngressReady`, `ReferenceResolved`, `Ready`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Where it is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The same, as an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
}

/// An address inside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Address {
    /// The URL.
    pub url: String,
}

/// A condition in Knative's form. `severity` is empty for those that decide over `Ready`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// `Info` when it does not count for `Ready`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub severity: String,
    /// When the status last changed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_transition_time: String,
    /// One word on why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The same for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Whether the condition of that type is true; `None` when it is unknown or missing.
pub fn condition(conditions: &[Condition], type_: &str) -> Option<bool> {
    match conditions.iter().find(|c| c.type_ == type_)?.status.as_str() {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

/// An annotation of an object's metadata.
pub fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    text(metadata.annotations.as_ref(), key)
}

/// A label of an object's metadata.
pub fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    text(metadata.labels.as_ref(), key)
}

fn text<'a>(map: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    map?.get(key).map(String::as_str)
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_keeps_its_pod_fields_beside_its_own() {
        let value = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello"},
            "spec": {"template": {"spec": {
                "containers": [{"image": "hello:1", "name": "user"}], "timeoutSeconds": 5, "serviceAccountName": "sa"
            }}},
        });
        let service: Service = serde_json::from_value(value).unwrap();
        let spec = &service.spec.template.spec;
        assert_eq!(spec.timeout_seconds, Some(5));
        assert_eq!(spec.pod.service_account_name.as_deref(), Some("sa"));
        assert_eq!(spec.pod.containers[0].image.as_deref(), Some("hello:1"));
        let back = serde_json::to_value(&service.spec.template.spec).unwrap();
        assert_eq!(back["timeoutSeconds"], 5);
        assert_eq!(back["containers"][0]["name"], "user");
    }
}
