//! Admission: what may enter the cluster, and what is added to it on the way in.
//!
//! Mutating steps run before an object is prepared and validated, validating ones after. Each is a row with the
//! resources it looks at; one file per concern. What they need to know they read from the caches.

mod amounts;
mod defaults;
mod lifecycle;
mod limits;
mod node;
mod pod;
mod pod_security;
mod policies;
mod quota;
mod service_account;
mod subjects;

use std::sync::Arc;

use wasmk_api::{Object, Status};

pub(crate) use policies::Policies;

use crate::{
    config::Hook,
    write::{Mode, Work},
};

/// The pods of the core group.
pub(crate) const PODS: &str = "core/pods";

type Mutate = fn(&Work<'_>, &mut Object, Option<&Object>) -> Result<(), Status>;
type Validate = fn(&Work<'_>, &Object, Option<&Object>, Mode) -> Result<(), Status>;

/// The steps that change objects, with the resources they look at (none: all), in order.
const MUTATE: [(&[&str], Mutate); 11] = [
    (&[], lifecycle::check),
    (&[PODS], service_account::mutate),
    (&[PODS], limits::mutate),
    (&["core/nodes"], defaults::taint_node),
    (&[PODS], pod::priority),
    (&[PODS], pod::tolerations),
    (&[PODS], pod::runtime_class),
    (&["core/persistentvolumeclaims"], defaults::claim),
    (&["core/persistentvolumes"], defaults::volume),
    (&["networking.k8s.io/ingresses"], defaults::ingress),
    (&["scheduling.k8s.io/priorityclasses"], pod::priority_class),
];

/// The steps that only refuse.
const VALIDATE: [(&[&str], Validate); 6] = [
    (&[PODS, "core/persistentvolumeclaims"], limits::validate),
    (&[PODS, "core/nodes"], node::validate),
    (&[PODS], pod_security::validate),
    (&["core/namespaces"], pod_security::validate_namespace),
    (&["core/persistentvolumeclaims"], defaults::resize),
    (&[], subjects::validate),
];

fn applies(resources: &[&str], work: &Work<'_>) -> bool {
    resources.is_empty() || resources.contains(&&*work.resource.storage)
}

/// Lets every step change an object that is created (`old` absent) or updated.
///
/// # Errors
/// When a step refuses it.
pub(crate) async fn mutate(work: &Work<'_>, object: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    MUTATE.iter().filter(|(r, _)| applies(r, work)).try_for_each(|(_, step)| step(work, object, old))?;
    hooks(work).for_each(|hook| hook.mutate(object, old, &work.call.user.name));
    Ok(())
}

/// The hooks that have a say in the resource.
fn hooks<'a>(work: &'a Work<'_>) -> impl Iterator<Item = &'a Arc<dyn Hook>> {
    let (group, plural) = work.resource.storage.split_once('/').unwrap_or(("", &work.resource.storage));
    let group = if group == "core" { "" } else { group };
    work.core.config.hooks.iter().filter(move |hook| hook.applies(group, plural))
}

/// Notes who asks for a certificate in the request for it.
pub(crate) fn identify(work: &Work<'_>, object: &mut Object) {
    if work.resource.storage != "certificates.k8s.io/certificatesigningrequests" {
        return;
    }
    let user = work.call.user.to_value();
    let Some(spec) = object.0.get_mut("spec").and_then(serde_json::Value::as_object_mut) else { return };
    for key in ["username", "uid", "groups", "extra"] {
        match user.get(key) {
            Some(value) => {
                spec.insert(key.into(), value.clone());
            }
            None => {
                spec.shift_remove(key);
            }
        }
    }
}

/// Lets every step refuse an object that is created or updated.
///
/// # Errors
/// When a step refuses it.
pub(crate) async fn validate(
    work: &Work<'_>,
    new: &Object,
    old: Option<&Object>,
    mode: Mode,
) -> Result<(), Status> {
    VALIDATE.iter().filter(|(r, _)| applies(r, work)).try_for_each(|(_, step)| step(work, new, old, mode))?;
    if mode == Mode::Main {
        hooks(work).try_for_each(|hook| hook.validate(new, old))?;
    }
    policies::check(work, Some(new), old, mode)?;
    if mode == Mode::Main {
        quota::charge(work, new, old).await?;
    }
    Ok(())
}

/// Lets every step refuse a deletion.
///
/// # Errors
/// When a step refuses it.
pub(crate) fn validate_delete(work: &Work<'_>, old: &Object) -> Result<(), Status> {
    lifecycle::protect(work, old)?;
    node::validate_delete(work, old)?;
    policies::check(work, None, Some(old), Mode::Main)
}
