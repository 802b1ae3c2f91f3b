//! Namespaces: nothing is created in one that does not exist or is going away, and some are never deleted.

use serde_json::json;
use wasmk_api::{Cause, GroupResource, Object, Status};

use crate::{special, write::Work};

/// Namespaces that stay.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Checks the namespace of an object that is created.
///
/// # Errors
/// 404 when it does not exist, 403 when it is being deleted.
pub(crate) fn check(work: &Work<'_>, object: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    if old.is_some() || !work.resource.namespaced {
        return Ok(());
    }
    let namespace = work.namespace();
    let Some(entry) = work.core.caches.of("core/namespaces").get(namespace) else {
        return Err(Status::not_found(&GroupResource::new("", "namespaces"), namespace));
    };
    if entry.field("status.phase") != Some("Terminating") && !entry.object().is_deleting() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let name = object.name();
    let mut status = Status::forbidden(&work.resource.group_resource(), name, &why);
    status.details.insert(
        "causes".into(),
        json!([Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        }]),
    );
    Err(status)
}

/// Refuses to delete namespaces the cluster needs.
///
/// # Errors
/// 403 for those.
pub(crate) fn protect(work: &Work<'_>, old: &Object) -> Result<(), Status> {
    if special::is_namespace(work.resource) && IMMORTAL.contains(&old.name()) {
        return Err(Status::forbidden(
            &work.resource.group_resource(),
            old.name(),
            "this namespace may not be deleted",
        ));
    }
    Ok(())
}
