//! The `APIService` objects of what this server has itself: one for each group and version.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::json;
use wasmk_api::{Object, Status};

use super::SERVICES;
use crate::{
    cache::Filter,
    crd::own_call,
    server::Core,
    table::Resource,
    write::{DeleteOptions, Work, create_object, delete_object},
};

/// Marks the objects that are kept here.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Priorities of built-in groups and of their preferred versions, in Kubernetes' order of groups.
const PRIORITIES: [(&str, u32, u32); 21] = [
    ("", 18_000, 1),
    ("apps", 17_800, 15),
    ("events.k8s.io", 17_750, 5),
    ("authentication.k8s.io", 17_700, 15),
    ("authorization.k8s.io", 17_600, 15),
    ("autoscaling", 17_500, 30),
    ("batch", 17_400, 15),
    ("certificates.k8s.io", 17_300, 15),
    ("networking.k8s.io", 17_200, 15),
    ("policy", 17_100, 15),
    ("rbac.authorization.k8s.io", 17_000, 15),
    ("storage.k8s.io", 16_800, 15),
    ("admissionregistration.k8s.io", 16_700, 15),
    ("apiextensions.k8s.io", 16_700, 15),
    ("scheduling.k8s.io", 16_600, 15),
    ("coordination.k8s.io", 16_500, 15),
    ("node.k8s.io", 16_300, 15),
    ("discovery.k8s.io", 16_200, 15),
    ("flowcontrol.apiserver.k8s.io", 16_100, 21),
    ("resource.k8s.io", 15_900, 15),
    ("storagemigration.k8s.io", 15_800, 15),
];
/// Priorities of custom groups.
const CUSTOM: (u32, u32) = (1000, 100);

/// Writes those that are missing and removes those of groups that are gone.
pub(super) async fn register(core: &Arc<Core>) {
    let Some(resource) = core.table.load().get("apiregistration.k8s.io", "v1", "apiservices").cloned() else {
        return;
    };
    let wanted = wanted(core);
    let present = core.caches.of(SERVICES).list(&Filter::default());
    for (name, object) in &wanted {
        if present.iter().any(|e| *e.name == **name) {
            continue;
        }
        log(name, create(core, &resource, object.clone()).await);
    }
    for entry in present.iter().filter(|e| e.label(MANAGED).is_some() && !wanted.contains_key(&*e.name)) {
        log(&entry.name, delete(core, &resource, &entry.name).await);
    }
}

fn log(name: &str, outcome: Result<(), Status>) {
    if let Err(status) = outcome
        && !matches!(status.code, 404 | 409)
    {
        tracing::warn!(service = name, error = %status, "an API service was not written");
    }
}

async fn create(core: &Arc<Core>, resource: &Arc<Resource>, object: Object) -> Result<(), Status> {
    let mut call = own_call(resource, "");
    call.info.verb = "create";
    let work = Work { trusted: true, ..Work::new(core, &call, resource)? };
    create_object(&work, object).await.map(|_| ())
}

async fn delete(core: &Arc<Core>, resource: &Arc<Resource>, name: &str) -> Result<(), Status> {
    let mut call = own_call(resource, name);
    call.info.verb = "delete";
    let work = Work { trusted: true, ..Work::new(core, &call, resource)? };
    delete_object(&work, "", name, &DeleteOptions::default()).await.map(|_| ())
}

fn wanted(core: &Core) -> BTreeMap<String, Object> {
    let table = core.table.load();
    let mut all = BTreeMap::new();
    for group in table.registry.groups() {
        for (at, version) in group.versions.iter().enumerate() {
            let own = version.resources.first().is_some_and(|r| table.has(r));
            // The group that registers groups registers itself.
            if !own || group.name == "apiregistration.k8s.io" {
                continue;
            }
            let row = PRIORITIES.iter().find(|row| row.0 == group.name);
            let mark = if row.is_some() { "onstart" } else { "true" };
            let (priority, first) = row.map_or(CUSTOM, |row| (row.1, row.2));
            let below = u32::try_from(at).unwrap_or(0).min(first - 1);
            let name = format!("{}.{}", version.version, group.name);
            let mut value = json!({
                "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
                "metadata": { "name": name, "labels": { MANAGED: mark } },
                "spec": {
                    "version": version.version, "groupPriorityMinimum": priority, "versionPriority": first - below,
                },
            });
            if !group.name.is_empty() {
                value["spec"]["group"] = group.name.clone().into();
            }
            if let Some(object) = Object::from_value(value) {
                all.insert(name, object);
            }
        }
    }
    all
}
