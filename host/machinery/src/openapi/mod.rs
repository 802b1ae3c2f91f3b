//! OpenAPI documents: version 3 by group and version with its index, and version 2 as a whole.
//!
//! They serve `kubectl explain`, the clients' choice of patch, and their check of which query parameters
//! the server knows. Everything is derived from the [`Registry`] and the schemas of its rows.

mod descriptions;
mod paths;
mod protobuf;
mod schemas;

use std::{collections::BTreeSet, sync::LazyLock};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::resources::{GroupVersionResources, Registry};

/// The two forms of document, which spell references and some types differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    V2,
    V3,
}

impl Form {
    fn reference(self, name: &str) -> Value {
        let place = if self == Self::V2 { "definitions" } else { "components/schemas" };
        json!({"$ref": format!("#/{place}/{name}")})
    }
}

/// Built-in documents change with the program only; this stands for their content.
static BUILT_IN_HASH: LazyLock<String> = LazyLock::new(|| {
    let tables = [include_str!("../../data/types.tsv"), include_str!("../../data/resources.tsv")];
    let mut digest = Sha256::new();
    tables.iter().for_each(|table| digest.update(table));
    digest.update(env!("CARGO_PKG_VERSION"));
    hex(&digest.finalize())
});

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// `/openapi/v3`: where each group version's document is, with a hash of its content.
pub fn index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for group in registry.groups() {
        for version in &group.versions {
            let path = path_of(&group.name, &version.version);
            let hash = hash(&group.name, version);
            paths.insert(
                path.clone(),
                json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}),
            );
        }
    }
    json!({"paths": paths})
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The hash in the index, which clients send back and may cache for ever.
pub fn hash(group: &str, version: &GroupVersionResources) -> String {
    let mut digest = Sha256::new();
    digest.update(&*BUILT_IN_HASH);
    digest.update(path_of(group, &version.version));
    for resource in version.resources.iter().filter(|resource| resource.is_custom()) {
        digest.update(format!("{}{:?}", resource.plural, resource.verbs));
        digest
            .update(schemas::custom(resource, Form::V3).map(|schema| schema.to_string()).unwrap_or_default());
    }
    hex(&digest.finalize())
}

/// `/openapi/v3/<api or apis/group>/<version>`; `None` when it is not served.
pub fn document_v3(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let served = registry.group_version(group, version)?;
    let mut wanted = BTreeSet::new();
    let mut components = Map::new();
    let mut paths = Map::new();
    for resource in &served.resources {
        paths::add(&mut paths, resource, Form::V3, &mut wanted);
        schemas::add_custom(&mut components, resource, Form::V3, &mut wanted);
    }
    schemas::add_built_in(&mut components, wanted, Form::V3);
    components.sort_keys();
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.0"},
        "paths": paths,
        "components": {"schemas": components},
    }))
}

/// `/openapi/v2`: everything in one document.
pub fn document_v2(registry: &Registry) -> Value {
    let mut wanted = BTreeSet::new();
    let mut definitions = Map::new();
    let mut paths = Map::new();
    for resource in registry.all() {
        paths::add(&mut paths, resource, Form::V2, &mut wanted);
        schemas::add_custom(&mut definitions, resource, Form::V2, &mut wanted);
    }
    schemas::add_built_in(&mut definitions, wanted, Form::V2);
    definitions.sort_keys();
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.36.0"},
        "paths": paths,
        "definitions": definitions,
    })
}

/// The media type of [`document_v2_protobuf`], which clients ask for with an `@` for the first dot of the version.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `/openapi/v2` in protobuf.
pub fn document_v2_protobuf(registry: &Registry) -> Vec<u8> {
    protobuf::encode(&document_v2(registry))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{resources::Resource, schema::KindSchema};

    fn registry() -> Registry {
        let schema = json!({"type": "object", "description": "A thing.", "required": ["spec"], "properties": {
            "spec": {"type": "object", "properties": {
                "size": {"type": "integer", "minimum": 1, "description": "How big."},
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                          "items": {"type": "object", "properties": {"name": {"type": "string"}}}}}}}});
        Registry::built_in().with([Arc::new(Resource {
            group: "example.com".into(),
            version: "v1".into(),
            plural: "things".into(),
            singular: "thing".into(),
            kind: "Thing".into(),
            list_kind: "ThingList".into(),
            namespaced: true,
            verbs: ["create", "get", "list", "patch", "watch"].map(String::from).into(),
            custom: Some(KindSchema::custom(&schema).unwrap()),
            ..Resource::default()
        })])
    }

    /// Every reference in a document leads somewhere.
    fn check_references(document: &Value, place: &str) {
        fn walk(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        found.push(reference.clone());
                    }
                    map.values().for_each(|value| walk(value, found));
                }
                Value::Array(items) => items.iter().for_each(|item| walk(item, found)),
                _ => (),
            }
        }
        let mut found = Vec::new();
        walk(document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(pointer.starts_with(place), "{reference}");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn references_lead_somewhere() {
        let registry = registry();
        for group in registry.groups() {
            for version in &group.versions {
                let document = document_v3(&registry, &group.name, &version.version).unwrap();
                check_references(&document, "/components/schemas/");
            }
        }
        check_references(&document_v2(&registry), "/definitions/");
        assert_eq!(document_v3(&registry, "none.example.com", "v1"), None);
    }

    #[test]
    fn what_kubectl_looks_for() {
        let registry = registry();
        let apps = document_v3(&registry, "apps", "v1").unwrap();
        let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        let gvk = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
        assert_eq!(patch["x-kubernetes-group-version-kind"], gvk);
        assert_eq!(patch["x-kubernetes-action"], "patch");
        let named = |name: &str| patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == name);
        assert!(named("fieldValidation") && named("dryRun") && named("fieldManager"));
        assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
        let deployment = &apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(deployment["x-kubernetes-group-version-kind"], json!([gvk]));
        let containers =
            &apps["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-type"], "map");

        let things = document_v3(&registry, "example.com", "v1").unwrap();
        let thing = &things["components"]["schemas"]["com.example.v1.Thing"];
        assert_eq!(thing["properties"]["spec"]["properties"]["size"]["description"], "How big.");
        assert_eq!(thing["x-kubernetes-group-version-kind"][0]["kind"], "Thing");
        let patch = &things["paths"]["/apis/example.com/v1/namespaces/{namespace}/things/{name}"]["patch"];
        assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_null());
    }

    #[test]
    fn the_index_follows_definitions() {
        let (with, without) = (registry(), Registry::built_in());
        let url =
            |registry: &Registry, path: &str| index(registry)["paths"][path]["serverRelativeURL"].clone();
        assert!(
            url(&with, "apis/example.com/v1")
                .as_str()
                .unwrap()
                .starts_with("/openapi/v3/apis/example.com/v1?hash=")
        );
        assert_eq!(url(&without, "apis/example.com/v1"), Value::Null);
        assert_eq!(url(&with, "api/v1"), url(&without, "api/v1"));
    }
}
