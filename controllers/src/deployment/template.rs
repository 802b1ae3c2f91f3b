//! Pod templates of deployments and of their ReplicaSets.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::base::{controller_ref, hash};

use super::{DESIRED_REPLICAS, MAX_REPLICAS, REVISION, REVISION_HISTORY};

const HASH_LABEL: &str = "pod-template-hash";
/// Longest list of former revisions kept, in characters.
const MAX_HISTORY: usize = 2000;
/// Annotations that are about one object and do not pass from a deployment to its sets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// Whether a set runs the deployment's template, whatever its hash.
pub(super) fn is_of(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let (Some(set), Some(deployment)) = (&set.spec, &deployment.spec) else { return false };
    set.template.as_ref().is_some_and(|t| plain(t) == plain(&deployment.template))
}

fn plain(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let mut meta = template.metadata.take().unwrap_or_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    meta.labels = meta.labels.filter(|l| !l.is_empty());
    meta.annotations = meta.annotations.filter(|a| !a.is_empty());
    meta.creation_timestamp = None;
    template.metadata = Some(meta);
    template
}

/// The set that runs the deployment's template: the oldest, should there be several.
pub(super) fn find_new<'a>(
    deployment: &Deployment,
    sets: &'a [Arc<ReplicaSet>],
) -> Option<&'a Arc<ReplicaSet>> {
    let age =
        |s: &&Arc<ReplicaSet>| (s.metadata.creation_timestamp.as_ref().map(|t| t.0), s.metadata.name.clone());
    sets.iter().filter(|set| is_of(set, deployment)).min_by_key(age)
}

/// A new set for the deployment's template.
pub(super) fn new_set(
    deployment: &Deployment,
    replicas: i32,
    revision: i64,
    surge: i32,
) -> Option<ReplicaSet> {
    let spec = deployment.spec.as_ref()?;
    let mut template = spec.template.clone();
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let text = serde_json::to_string(&plain(&template)).unwrap_or_default();
    let hash = hash(&match collisions {
        Some(count) => format!("{text}#{count}"),
        None => text,
    });
    let with_hash = |labels: Option<BTreeMap<String, String>>| {
        let mut labels = labels.unwrap_or_default();
        labels.insert(HASH_LABEL.into(), hash.clone());
        Some(labels)
    };
    let mut meta = template.metadata.take().unwrap_or_default();
    meta.labels = with_hash(meta.labels);
    let mut selector = spec.selector.clone();
    selector.match_labels = with_hash(selector.match_labels);
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or(""))),
            namespace: deployment.metadata.namespace.clone(),
            labels: meta.labels.clone(),
            owner_references: Some(vec![controller_ref(deployment)]),
            ..Default::default()
        },
        spec: None,
        status: None,
    };
    template.metadata = Some(meta);
    set.spec = Some(ReplicaSetSpec {
        replicas: Some(replicas),
        min_ready_seconds: spec.min_ready_seconds,
        selector,
        template: Some(template),
    });
    annotate(&mut set, deployment, revision);
    note_scale(&mut set, spec.replicas.unwrap_or(1), surge);
    Some(set)
}

/// Copies the deployment's annotations and moves the set to a newer revision.
pub(super) fn annotate(set: &mut ReplicaSet, deployment: &Deployment, revision: i64) {
    let notes = set.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&&**key) {
            notes.insert(key.clone(), value.clone());
        }
    }
    let old = notes.get(REVISION).cloned().unwrap_or_default();
    if old.parse::<i64>().unwrap_or(0) >= revision {
        return;
    }
    notes.insert(REVISION.into(), revision.to_string());
    if old.is_empty() {
        return;
    }
    let history = match notes.get(REVISION_HISTORY).filter(|h| !h.is_empty()) {
        Some(history) => format!("{history},{old}"),
        None => old,
    };
    let cut = history.len().saturating_sub(MAX_HISTORY);
    let start = if cut == 0 { 0 } else { history[cut..].find(',').map_or(cut, |i| cut + i + 1) };
    notes.insert(REVISION_HISTORY.into(), history[start..].to_owned());
}

/// Notes what the deployment wanted when it scaled the set. True when that is news.
pub(super) fn note_scale(set: &mut ReplicaSet, desired: i32, surge: i32) -> bool {
    let notes = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, value) in [(DESIRED_REPLICAS, desired), (MAX_REPLICAS, desired + surge)] {
        let value = value.to_string();
        changed |= notes.get(key) != Some(&value);
        notes.insert(key.into(), value);
    }
    changed
}

/// A number in an annotation.
pub(super) fn noted(set: &ReplicaSet, key: &str) -> Option<i64> {
    set.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}
