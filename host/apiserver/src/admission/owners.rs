//! Owners: only who could delete an object may say what owns it, and only who could keep an owner may block its
//! deletion.

use serde_json::Value;
use wasmk_api::{GroupVersion, Object, Status};

use crate::{
    auth::Attributes,
    authorize,
    write::{Mode, Work},
};

/// Checks the owners of an object that is created or updated.
///
/// # Errors
/// 403 when they change and the user has not the rights.
pub(crate) async fn check(
    work: &Work<'_>,
    new: &Object,
    old: Option<&Object>,
    mode: Mode,
) -> Result<(), Status> {
    let (now, before) = (references(new), old.map(references).unwrap_or_default());
    if now == before || mode == Mode::Status {
        return Ok(());
    }
    let refuse = |why: String| Err(Status::forbidden(&work.resource.group_resource(), new.name(), &why));
    let may = async |asked: Attributes<'_>| authorize::decide(work.core, &work.call.user, &asked).await;
    let decision = may(Attributes {
        verb: "delete",
        group: &work.resource.gvk.group,
        version: &work.resource.gvk.version,
        resource: &work.resource.plural,
        namespace: work.namespace(),
        name: new.name(),
        is_resource: true,
        ..Attributes::default()
    })
    .await;
    // Who creates an object takes nothing away from anybody by giving it an owner.
    if old.is_some() && !decision.allowed {
        return refuse(format!(
            "cannot set an ownerRef on a resource you can't delete: {}, <nil>",
            decision.reason
        ));
    }
    for reference in now.iter().filter(|r| blocks(r) && !before.iter().any(|b| b == *r)) {
        let text = |key: &str| reference.get(key).and_then(Value::as_str).unwrap_or("");
        let version = GroupVersion::parse(text("apiVersion"));
        let table = work.core.table.load_full();
        let Some(owner) = version.and_then(|v| table.by_kind(&v.kind(text("kind"))).cloned()) else {
            return refuse(format!(
                "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {} Kind {}",
                text("apiVersion"),
                text("kind")
            ));
        };
        let decision = may(Attributes {
            verb: "update",
            group: &owner.gvk.group,
            version: &owner.gvk.version,
            resource: &owner.plural,
            subresource: "finalizers",
            namespace: if owner.namespaced { work.namespace() } else { "" },
            name: text("name"),
            is_resource: true,
            ..Attributes::default()
        })
        .await;
        if !decision.allowed {
            return refuse(format!(
                "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {}, <nil>",
                decision.reason
            ));
        }
    }
    Ok(())
}

fn references(object: &Object) -> Vec<Value> {
    let list = object.metadata().and_then(|m| m.get("ownerReferences")).and_then(Value::as_array);
    list.cloned().unwrap_or_default()
}

fn blocks(reference: &Value) -> bool {
    reference.get("blockOwnerDeletion") == Some(&Value::Bool(true))
}
