//! The built-in rows (`data/resources.tsv`).

use std::sync::Arc;

use wasmk_api::{GroupVersion, Gvk};

use super::{Resource, Subresource};

const TABLE: &str = include_str!("../../data/resources.tsv");

/// The order in which discovery lists groups; others follow by name.
const GROUPS: [&str; 21] = [
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];

/// Resources that are stored in another version than their own: group, version, plural, and the storage.
const STORED_ELSEWHERE: [(&str, &str, &str, &str, &str); 2] = [
    ("autoscaling", "v1", "horizontalpodautoscalers", "autoscaling", "v2"),
    ("events.k8s.io", "v1", "events", "", "v1"),
];

/// Kubernetes hashes the version it stores definitions in, which it no longer serves.
const HASHED: [(&str, &str, &str); 1] = [("apiextensions.k8s.io", "customresourcedefinitions", "v1beta1")];

/// The place of a group in discovery.
pub(super) fn group_rank(group: &str) -> usize {
    GROUPS.iter().position(|name| *name == group).unwrap_or(GROUPS.len())
}

/// The rows, subresources joined to their resources.
pub(super) fn resources() -> Vec<Arc<Resource>> {
    let mut resources: Vec<Resource> = Vec::new();
    for line in TABLE.lines() {
        let mut columns = line.split('\t');
        let mut column = || columns.next().unwrap_or("");
        let [api_version, name, kind, kind_version, singular, short, scope, categories, verbs] =
            std::array::from_fn(|_| column());
        let list =
            |text: &str| text.split(',').filter(|t| !t.is_empty()).map(String::from).collect::<Vec<_>>();
        let Some(gv) = GroupVersion::parse(api_version) else { continue };
        let Some((parent, sub)) = name.split_once('/') else {
            resources.push(Resource {
                plural: name.into(),
                singular: singular.into(),
                kind: kind.into(),
                list_kind: format!("{kind}List"),
                namespaced: scope == "namespaced",
                short_names: list(short),
                categories: list(categories),
                verbs: list(verbs),
                storage: storage(&gv, name),
                hashed_version: hashed(&gv, name),
                group: gv.group,
                version: gv.version,
                ..Resource::default()
            });
            continue;
        };
        let own =
            GroupVersion::parse(kind_version).filter(|_| !kind_version.is_empty()).unwrap_or(gv.clone());
        let kind = Gvk::new(own.group, own.version, kind);
        let owner = resources.iter_mut().rev().find(|r| r.plural == parent && r.group_version() == gv);
        if let Some(owner) = owner {
            owner.subresources.push(Subresource { name: sub.into(), kind, verbs: list(verbs) });
        }
    }
    resources.into_iter().map(Arc::new).collect()
}

fn storage(gv: &GroupVersion, plural: &str) -> GroupVersion {
    let elsewhere =
        STORED_ELSEWHERE.iter().find(|(g, v, p, ..)| (*g, *v, *p) == (&gv.group, &gv.version, plural));
    elsewhere.map_or_else(|| gv.clone(), |(.., group, version)| GroupVersion::new(*group, *version))
}

fn hashed(gv: &GroupVersion, plural: &str) -> Option<String> {
    let row = HASHED.iter().find(|(group, name, _)| (*group, *name) == (&gv.group, plural));
    row.map(|(.., version)| (*version).into())
}
