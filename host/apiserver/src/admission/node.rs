//! What a node may write: itself, its pods, and nothing that would reach beyond.

use serde_json::Value;
use wasmk_api::{Object, Status};

use super::PODS;
use crate::write::{Mode, Work};

/// Labels of these domains are not for nodes to set, apart from a few.
const RESERVED: [&str; 2] = ["kubernetes.io", "k8s.io"];
const OWN_LABELS: [&str; 10] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
];
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// The node that makes the request, if it is one.
fn caller<'a>(work: &'a Work<'_>) -> Option<&'a str> {
    let user = &work.call.user;
    user.name.strip_prefix("system:node:").filter(|_| user.is_in("system:nodes"))
}

fn forbidden(work: &Work<'_>, object: &Object, why: &str) -> Status {
    Status::forbidden(&work.resource.group_resource(), object.name(), why)
}

/// Checks a node's writes of pods and nodes.
pub(crate) fn validate(
    work: &Work<'_>,
    new: &Object,
    old: Option<&Object>,
    mode: Mode,
) -> Result<(), Status> {
    let Some(node) = caller(work) else { return Ok(()) };
    if work.resource.storage == PODS {
        return pod(work, node, new, old, mode);
    }
    if new.name() != node {
        return Err(forbidden(
            work,
            new,
            &format!("node {node:?} is not allowed to modify node {:?}", new.name()),
        ));
    }
    let before = |key: &str| old.and_then(|o| o.label(key));
    let mut refused: Vec<&str> = new
        .labels()
        .filter(|(key, value)| before(key) != Some(value) && !may_set(key))
        .map(|(key, _)| key)
        .collect();
    refused.sort_unstable();
    if refused.is_empty() {
        return Ok(());
    }
    let verb = if old.is_none() { "set" } else { "modify" };
    let why = format!("node {node:?} is not allowed to {verb} the following labels: {}", refused.join(","));
    Err(forbidden(work, new, &why))
}

fn may_set(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let below = |d: &str| domain == d || domain.ends_with(&format!(".{d}"));
    !RESERVED.iter().any(|d| below(d)) || OWN_LABELS.contains(&key) || OWN_DOMAINS.iter().any(|d| below(d))
}

fn pod(work: &Work<'_>, node: &str, new: &Object, old: Option<&Object>, mode: Mode) -> Result<(), Status> {
    let bound = |pod: &Object| pod.at(&["spec", "nodeName"]).and_then(Value::as_str) == Some(node);
    match old {
        None if new.annotation("kubernetes.io/config.mirror").is_none() => Err(forbidden(
            work,
            new,
            &format!(
                "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
            ),
        )),
        None if !bound(new) => Err(forbidden(
            work,
            new,
            &format!("node {node:?} can only create pods with spec.nodeName set to itself"),
        )),
        Some(old) if mode == Mode::Status && !bound(old) => Err(forbidden(
            work,
            new,
            &format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"),
        )),
        _ => Ok(()),
    }
}

/// Checks a node's deletions.
pub(crate) fn validate_delete(work: &Work<'_>, old: &Object) -> Result<(), Status> {
    let Some(node) = caller(work) else { return Ok(()) };
    let bound = old.at(&["spec", "nodeName"]).and_then(Value::as_str) == Some(node);
    if work.resource.storage == PODS && !bound {
        let why = format!("node {node:?} can only delete pods with spec.nodeName set to itself");
        return Err(forbidden(work, old, &why));
    }
    Ok(())
}
