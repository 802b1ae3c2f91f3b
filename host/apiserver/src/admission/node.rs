//! What a node may write: itself, its pods, and nothing that would reach beyond.

use serde_json::Value;
use wasmk_api::{Object, Status};

use super::PODS;
use crate::{
    auth::node::identity,
    write::{Mode, Work},
};

/// The resources that are looked at when nodes write them.
pub(crate) const WATCHED: [&str; 6] =
    [PODS, NODES, LEASES, CSI_NODES, "core/persistentvolumeclaims", CERTIFICATES];
const NODES: &str = "core/nodes";
const LEASES: &str = "coordination.k8s.io/leases";
const CSI_NODES: &str = "storage.k8s.io/csinodes";
const CERTIFICATES: &str = "certificates.k8s.io/certificatesigningrequests";
const MIRROR: &str = "kubernetes.io/config.mirror";

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
    identity(&work.call.user)
}

fn forbidden(work: &Work<'_>, object: &Object, why: &str) -> Status {
    Status::forbidden(&work.resource.group_resource(), object.name(), why)
}

fn bound(pod: &Object, node: &str) -> bool {
    pod.at(&["spec", "nodeName"]).and_then(Value::as_str) == Some(node)
}

/// Checks what a node writes.
pub(crate) fn validate(
    work: &Work<'_>,
    new: &Object,
    old: Option<&Object>,
    mode: Mode,
) -> Result<(), Status> {
    let Some(node) = caller(work) else { return Ok(()) };
    let refuse = |why: &str| Err(forbidden(work, new, why));
    match &*work.resource.storage {
        PODS => pod(work, node, new, old, mode),
        NODES => itself(work, node, new, old),
        LEASES if new.namespace() != "kube-node-lease" => {
            refuse("can only access leases in the \"kube-node-lease\" system namespace")
        }
        LEASES if new.name() != node => {
            refuse("can only access node lease with the same name as the requesting node")
        }
        CSI_NODES if new.name() != node => {
            refuse("can only access CSINode with the same name as the requesting node")
        }
        CERTIFICATES => request(work, node, new, old),
        _ => Ok(()),
    }
}

/// A node's own object: its labels, and neither its taints nor its owners once it is there.
fn itself(work: &Work<'_>, node: &str, new: &Object, old: Option<&Object>) -> Result<(), Status> {
    let refuse = |why: String| Err(forbidden(work, new, &why));
    if new.name() != node {
        return refuse(format!("node {node:?} is not allowed to modify node {:?}", new.name()));
    }
    if let Some(old) = old {
        let part = |object: &Object, path: &[&str]| object.at(path).filter(|v| !v.is_null()).cloned();
        for (what, path) in
            [("taints", &["spec", "taints"][..]), ("ownerReferences", &["metadata", "ownerReferences"][..])]
        {
            if part(new, path) != part(old, path) {
                return refuse(format!("node {node:?} is not allowed to modify {what}"));
            }
        }
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
    refuse(format!("node {node:?} is not allowed to {verb} the following labels: {}", refused.join(",")))
}

fn may_set(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let below = |d: &str| domain == d || domain.ends_with(&format!(".{d}"));
    !RESERVED.iter().any(|d| below(d)) || OWN_LABELS.contains(&key) || OWN_DOMAINS.iter().any(|d| below(d))
}

fn pod(work: &Work<'_>, node: &str, new: &Object, old: Option<&Object>, mode: Mode) -> Result<(), Status> {
    let refuse = |why: String| Err(forbidden(work, new, &why));
    let Some(old) = old else { return mirror(work, node, new) };
    if mode != Mode::Status {
        return Ok(());
    }
    if !bound(old, node) {
        return refuse(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    if !new.labels().eq(old.labels()) {
        return refuse(format!("node {node:?} cannot update labels through pod status"));
    }
    Ok(())
}

/// Nodes create only the mirrors of pods that they run without being told, and these use nothing.
fn mirror(work: &Work<'_>, node: &str, pod: &Object) -> Result<(), Status> {
    let refuse = |why: String| Err(forbidden(work, pod, &why));
    if pod.annotation(MIRROR).is_none() {
        return refuse(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if !bound(pod, node) {
        return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners = pod.metadata().and_then(|m| m.get("ownerReferences")).and_then(Value::as_array);
    let owners = owners.map_or(&[][..], Vec::as_slice);
    if owners.len() > 1 {
        return refuse(format!(
            "node {node:?} can only create pods with a single owner reference set to itself"
        ));
    }
    let own = |owner: &Value| {
        let text = |key: &str| owner.get(key).and_then(Value::as_str).unwrap_or("");
        let known = work.core.caches.of(NODES).get(node).map(|entry| entry.object());
        (text("apiVersion"), text("kind"), text("name")) == ("v1", "Node", node)
            && known.is_none_or(|known| known.uid() == text("uid"))
            && owner.get("blockOwnerDeletion") != Some(&Value::Bool(true))
    };
    if !owners.first().is_some_and(own) {
        return refuse(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    let account = pod.at(&["spec", "serviceAccountName"]).and_then(Value::as_str).unwrap_or("");
    if !account.is_empty() {
        return refuse(format!("node {node:?} can not create pods that reference a service account"));
    }
    for (key, what) in [
        ("secret", "secrets"),
        ("configMap", "configmaps"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
    ] {
        if volumes(pod).any(|volume| volume.get(key).is_some_and(|v| !v.is_null())) {
            return refuse(format!("node {node:?} can not create pods that reference {what}"));
        }
    }
    Ok(())
}

fn volumes(pod: &Object) -> impl Iterator<Item = &Value> {
    pod.at(&["spec", "volumes"]).and_then(Value::as_array).into_iter().flatten()
}

/// A node asks for certificates in its own name only.
fn request(work: &Work<'_>, node: &str, new: &Object, old: Option<&Object>) -> Result<(), Status> {
    let signer = new.at(&["spec", "signerName"]).and_then(Value::as_str).unwrap_or("");
    let kubelets =
        ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"].contains(&signer);
    if old.is_some() || !kubelets {
        return Ok(());
    }
    let wanted = format!("system:node:{node}");
    if super::certificates::common_name(new).as_deref() == Some(&*wanted) {
        return Ok(());
    }
    Err(forbidden(work, new, &format!("can only create a node CSR with CN={wanted}")))
}

/// Checks a node's deletions.
pub(crate) fn validate_delete(work: &Work<'_>, old: &Object) -> Result<(), Status> {
    let Some(node) = caller(work) else { return Ok(()) };
    if work.resource.storage == PODS && !bound(old, node) {
        let why = format!("node {node:?} can only delete pods with spec.nodeName set to itself");
        return Err(forbidden(work, old, &why));
    }
    Ok(())
}

/// Checks that a node evicts a pod of its own.
pub(crate) fn validate_eviction(work: &Work<'_>, pod: &Object) -> Result<(), Status> {
    let Some(node) = caller(work).filter(|_| is_on(work)) else { return Ok(()) };
    if bound(pod, node) {
        return Ok(());
    }
    Err(forbidden(work, pod, &format!("node {node:?} can only evict pods with spec.nodeName set to itself")))
}

fn is_on(work: &Work<'_>) -> bool {
    work.core.config.admission.has(super::Plugin::NodeRestriction)
}

/// Checks a node's request for a service account's token: for a pod it runs, and for no audience but the API's and
/// those the pod names. The audience that needs a right of its own, when there is one.
pub(crate) fn validate_token(
    work: &Work<'_>,
    account: &Object,
    reference: Option<&Value>,
    audiences: &[String],
) -> Result<Option<String>, Status> {
    let Some(node) = caller(work).filter(|_| is_on(work)) else { return Ok(None) };
    let refuse = |why: &str| Err(forbidden(work, account, why));
    let text =
        |key: &str| reference.and_then(|r| r.get(key)).and_then(Value::as_str).unwrap_or("").to_owned();
    if text("kind") != "Pod" || text("apiVersion") != "v1" {
        return refuse("node requested token not bound to a pod");
    }
    if text("uid").is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    let found = work.core.caches.of(PODS).get(&crate::cache::key(work.namespace(), &text("name")));
    let Some(entry) = found.filter(|entry| entry.uid() == text("uid")) else {
        return refuse("node requested token bound to a pod that is not there");
    };
    if entry.field("spec.nodeName") != Some(node) {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    let own = work.core.authenticator.audiences();
    if audiences.iter().all(|a| own.contains(&a.as_str())) {
        return Ok(None);
    }
    let pod = entry.object();
    let named: Vec<&str> = volumes(&pod)
        .filter_map(|volume| volume.pointer("/projected/sources")?.as_array())
        .flatten()
        .filter_map(|source| source.pointer("/serviceAccountToken/audience")?.as_str())
        .collect();
    let odd = audiences.iter().find(|a| !own.contains(&a.as_str()) && !named.contains(&a.as_str()));
    Ok(odd.cloned())
}
