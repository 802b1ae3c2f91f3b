//! Discovery documents: the plain ones per group and version, and the aggregated ones.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Group, GroupVersionResources, Registry, Resource, Subresource};

/// Whether an aggregated document is asked for, by its media type's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregated {
    /// `apidiscovery.k8s.io/v2`.
    V2,
    /// `apidiscovery.k8s.io/v2beta1`.
    V2Beta1,
}

impl Aggregated {
    /// From one range of an Accept header: `application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList`.
    pub fn of_accept(range: &str) -> Option<Self> {
        let mut parts = range.split(';').map(str::trim);
        if !matches!(parts.next()?, "application/json") {
            return None;
        }
        let parts: Vec<&str> = parts.collect();
        if !parts.contains(&"g=apidiscovery.k8s.io") || !parts.contains(&"as=APIGroupDiscoveryList") {
            return None;
        }
        match () {
            () if parts.contains(&"v=v2") => Some(Self::V2),
            () if parts.contains(&"v=v2beta1") => Some(Self::V2Beta1),
            () => None,
        }
    }

    /// The version's name.
    pub fn version(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2Beta1 => "v2beta1",
        }
    }

    /// The media type of the answer.
    pub fn content_type(self) -> String {
        format!("application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList", self.version())
    }
}

/// `/api`; `address` is where the server is reached.
pub fn api_versions(registry: &Registry, address: &str) -> Value {
    let versions: Vec<&str> =
        registry.group("").map(|g| g.versions.iter().map(|v| &*v.version).collect()).unwrap_or_default();
    json!({
        "kind": "APIVersions",
        "versions": versions,
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`.
pub fn api_group_list(registry: &Registry) -> Value {
    let groups: Vec<Value> = registry
        .groups()
        .iter()
        .filter(|g| !g.name.is_empty())
        .map(|g| Value::Object(group_body(g)))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`.
pub fn api_group(registry: &Registry, group: &str) -> Option<Value> {
    let group = registry.group(group).filter(|g| !g.name.is_empty())?;
    let mut map = Map::new();
    map.insert("kind".into(), "APIGroup".into());
    map.insert("apiVersion".into(), "v1".into());
    map.extend(group_body(group));
    Some(Value::Object(map))
}

fn group_body(group: &Group) -> Map<String, Value> {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|v| json!({"groupVersion": format!("{}/{}", group.name, v.version), "version": v.version}))
        .collect();
    let mut map = Map::new();
    map.insert("name".into(), group.name.clone().into());
    map.insert("preferredVersion".into(), versions.first().cloned().unwrap_or_default());
    map.insert("versions".into(), versions.into());
    map
}

/// `/api/v1` and `/apis/<group>/<version>`.
pub fn api_resource_list(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let served = registry.group_version(group, version)?;
    let mut resources = Vec::new();
    for resource in &served.resources {
        resources.push(plain_resource(resource));
        resources.extend(resource.subresources.iter().map(|sub| plain_subresource(resource, sub)));
    }
    let mut map = Map::new();
    map.insert("kind".into(), "APIResourceList".into());
    if !group.is_empty() {
        map.insert("apiVersion".into(), "v1".into());
    }
    let group_version = if group.is_empty() { version.into() } else { format!("{group}/{version}") };
    map.insert("groupVersion".into(), group_version.into());
    map.insert("resources".into(), resources.into());
    Some(Value::Object(map))
}

fn plain_resource(resource: &Resource) -> Value {
    let mut map = Map::new();
    map.insert("name".into(), resource.plural.clone().into());
    map.insert("singularName".into(), resource.singular.clone().into());
    map.insert("namespaced".into(), resource.namespaced.into());
    map.insert("kind".into(), resource.kind.clone().into());
    map.insert("verbs".into(), resource.verbs.clone().into());
    for (key, list) in [("shortNames", &resource.short_names), ("categories", &resource.categories)] {
        if !list.is_empty() {
            map.insert(key.into(), list.clone().into());
        }
    }
    if resource.is_stored() {
        map.insert("storageVersionHash".into(), storage_version_hash(resource).into());
    }
    Value::Object(map)
}

fn plain_subresource(resource: &Resource, sub: &Subresource) -> Value {
    let mut map = Map::new();
    map.insert("name".into(), format!("{}/{}", resource.plural, sub.name).into());
    map.insert("singularName".into(), "".into());
    map.insert("namespaced".into(), resource.namespaced.into());
    if sub.kind.group_version() != resource.group_version() {
        if !sub.kind.group.is_empty() {
            map.insert("group".into(), sub.kind.group.clone().into());
        }
        map.insert("version".into(), sub.kind.version.clone().into());
    }
    map.insert("kind".into(), sub.kind.kind.clone().into());
    map.insert("verbs".into(), sub.verbs.clone().into());
    Value::Object(map)
}

/// What tells clients that the stored version changed.
pub fn storage_version_hash(resource: &Resource) -> String {
    let storage = resource.storage_kind();
    let version = resource.hashed_version.as_ref().unwrap_or(&storage.version);
    let digest = Sha256::digest(format!("{}/{version}/{}", storage.group, storage.kind));
    STANDARD.encode(&digest[..8])
}

/// The aggregated document of `/api` (`core`) or `/apis`.
pub fn aggregated(registry: &Registry, core: bool, form: Aggregated) -> Value {
    let groups = registry.groups().iter().filter(|g| g.name.is_empty() == core);
    let items: Vec<Value> = groups.map(aggregated_group).collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{}", form.version()),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(group: &Group) -> Value {
    let mut metadata = Map::new();
    if !group.name.is_empty() {
        metadata.insert("name".into(), group.name.clone().into());
    }
    let versions: Vec<Value> = group.versions.iter().map(aggregated_version).collect();
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_version(version: &GroupVersionResources) -> Value {
    let resources: Vec<Value> = version.resources.iter().map(|r| aggregated_resource(r)).collect();
    json!({"version": version.version, "resources": resources, "freshness": "Current"})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut map = Map::new();
    map.insert("resource".into(), resource.plural.clone().into());
    map.insert("responseKind".into(), json!(resource.gvk()));
    map.insert("scope".into(), if resource.namespaced { "Namespaced" } else { "Cluster" }.into());
    map.insert("singularResource".into(), resource.singular.clone().into());
    map.insert("verbs".into(), resource.verbs.clone().into());
    for (key, list) in [("shortNames", &resource.short_names), ("categories", &resource.categories)] {
        if !list.is_empty() {
            map.insert(key.into(), list.clone().into());
        }
    }
    let subresource =
        |sub: &Subresource| json!({"subresource": sub.name, "responseKind": sub.kind, "verbs": sub.verbs});
    if !resource.subresources.is_empty() {
        map.insert("subresources".into(), resource.subresources.iter().map(subresource).collect());
    }
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_kubernetes() {
        let registry = Registry::built_in();
        for (group, version, name, hash) in [
            ("", "v1", "configmaps", "qFsyl6wFWjQ="),
            ("apps", "v1", "deployments", "8aSe+NMegvE="),
            ("autoscaling", "v1", "horizontalpodautoscalers", "qwQve8ut294="),
            ("events.k8s.io", "v1", "events", "r2yiGXH7wu8="),
            ("apiextensions.k8s.io", "v1", "customresourcedefinitions", "jfWCUB31mvA="),
            ("storage.k8s.io", "v1", "csinodes", "Pe62DkZtjuo="),
        ] {
            let list = api_resource_list(&registry, group, version).unwrap();
            let row = list["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap();
            assert_eq!(row["storageVersionHash"], hash, "{name}");
        }
    }

    #[test]
    fn plain_documents() {
        let registry = Registry::built_in();
        let apps = api_resource_list(&registry, "apps", "v1").unwrap();
        let names: Vec<_> =
            apps["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
        assert_eq!(
            &names[..6],
            [
                "controllerrevisions",
                "daemonsets",
                "daemonsets/status",
                "deployments",
                "deployments/scale",
                "deployments/status"
            ]
        );
        assert_eq!(
            apps["resources"][4],
            json!({"name": "deployments/scale", "singularName": "", "namespaced": true, "group": "autoscaling",
                   "version": "v1", "kind": "Scale", "verbs": ["get", "patch", "update"]})
        );
        assert_eq!(
            api_group(&registry, "autoscaling").unwrap(),
            json!({"kind": "APIGroup", "apiVersion": "v1", "name": "autoscaling",
                   "versions": [{"groupVersion": "autoscaling/v2", "version": "v2"},
                                {"groupVersion": "autoscaling/v1", "version": "v1"}],
                   "preferredVersion": {"groupVersion": "autoscaling/v2", "version": "v2"}})
        );
        assert_eq!(api_versions(&registry, "127.0.0.1:6443")["versions"], json!(["v1"]));
        assert_eq!(api_group_list(&registry)["groups"].as_array().unwrap().len(), 20);
        assert_eq!(api_group(&registry, "none"), None);
    }

    #[test]
    fn aggregated_documents() {
        let registry = Registry::built_in();
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        assert_eq!(Aggregated::of_accept(accept), Some(Aggregated::V2));
        assert_eq!(Aggregated::of_accept("application/json"), None);
        let core = aggregated(&registry, true, Aggregated::V2);
        assert_eq!(core["apiVersion"], "apidiscovery.k8s.io/v2");
        assert_eq!(core["items"].as_array().unwrap().len(), 1);
        let resources = core["items"][0]["versions"][0]["resources"].as_array().unwrap();
        let pods = resources.iter().find(|r| r["resource"] == "pods").unwrap();
        assert_eq!(pods["responseKind"], json!({"group": "", "version": "v1", "kind": "Pod"}));
        assert_eq!(pods["scope"], "Namespaced");
        assert!(pods["subresources"].as_array().unwrap().iter().any(|s| s["subresource"] == "log"));
        assert_eq!(aggregated(&registry, false, Aggregated::V2)["items"].as_array().unwrap().len(), 20);
    }
}
