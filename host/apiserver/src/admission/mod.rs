//! Admission: what may enter the cluster, and what is added to it on the way in.
//!
//! Mutating steps run before an object is prepared and validated, validating ones after. Each is a row with the
//! resources it looks at; one file per concern. What they need to know they read from the caches.

mod amounts;
mod chain;
mod defaults;
mod kept;
mod lifecycle;
mod limits;
mod mutations;
mod node;
mod pod;
mod pod_security;
mod policies;
mod question;
mod quota;
mod service_account;
mod subjects;
mod webhooks;

use std::sync::Arc;

use wasmk_api::{Object, Status};

pub(crate) use kept::Kept;
pub(crate) use mutations::Mutation;
pub(crate) use policies::Policy;
pub(crate) use webhooks::Hook;

use question::Question;

use crate::{
    config::KindHook,
    sub,
    table::Resource,
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

/// What policies and webhooks have no say in: nobody can lock out those who would change them.
fn is_exempt(resource: &Resource) -> bool {
    resource.gvk.group == "admissionregistration.k8s.io"
}

/// Lets every step change an object that is created (`old` absent) or updated; policies and webhooks after the
/// server's own.
///
/// # Errors
/// When a step refuses it.
pub(crate) async fn mutate(
    work: &Work<'_>,
    object: &mut Object,
    old: Option<&Object>,
    mode: Mode,
) -> Result<(), Status> {
    own_steps(work, object, old, mode)?;
    if mode == Mode::Scale {
        return Ok(());
    }
    chain::mutate(work, Some(object), old, mode).await
}

fn own_steps(work: &Work<'_>, object: &mut Object, old: Option<&Object>, mode: Mode) -> Result<(), Status> {
    if !matches!(mode, Mode::Main | Mode::Scale) {
        return Ok(());
    }
    MUTATE.iter().filter(|(r, _)| applies(r, work)).try_for_each(|(_, step)| step(work, object, old))?;
    kind_hooks(work).for_each(|hook| hook.mutate(object, old, &work.call.user.name));
    Ok(())
}

/// The hooks of other parts of the program that have a say in the resource.
fn kind_hooks<'a>(work: &'a Work<'_>) -> impl Iterator<Item = &'a Arc<dyn KindHook>> {
    let (group, plural) = work.resource.storage.split_once('/').unwrap_or(("", &work.resource.storage));
    let group = if group == "core" { "" } else { group };
    work.core.config.hooks.iter().filter(move |hook| hook.applies(group, plural))
}

/// Asks policies and webhooks about an object that is sent to a subresource and stored nowhere (`Eviction`,
/// `Binding`, `TokenRequest`).
///
/// # Errors
/// When one refuses it.
pub(crate) async fn sent(work: &Work<'_>, object: &mut Object) -> Result<(), Status> {
    let subresource = work.call.info.subresource.clone();
    chain::mutate_as(work, &subresource, Some(object), None).await?;
    if webhooks::are_asked(work) {
        webhooks::validate(&Question::new(work, &subresource, Some(object), None)).await?;
    }
    Ok(())
}

/// Asks webhooks about a connection to an object.
///
/// # Errors
/// When one refuses it.
pub(crate) async fn connect(work: &Work<'_>, options: &Object) -> Result<(), Status> {
    let subresource = work.call.info.subresource.clone();
    if webhooks::are_asked(work) {
        webhooks::validate(&Question::connect(work, &subresource, options)).await?;
    }
    Ok(())
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
        kind_hooks(work).try_for_each(|hook| hook.validate(new, old))?;
    }
    // A change of scale is looked at as one of the scale.
    let scales = match mode {
        Mode::Scale => [Some(new), old].map(|o| sub::scale_of(work.resource, o?)),
        _ => [None, None],
    };
    let new_seen = scales[0].as_ref().unwrap_or(new);
    let old_seen = scales[1].as_ref().or(old);
    policies::check(work, Some(new_seen), old_seen, mode)?;
    if webhooks::are_asked(work) {
        webhooks::validate(&Question::new(work, mode.subresource(), Some(new_seen), old_seen)).await?;
    }
    if mode == Mode::Main {
        quota::charge(work, new, old).await?;
    }
    Ok(())
}

/// Lets every step refuse a deletion.
///
/// # Errors
/// When a step refuses it.
pub(crate) async fn validate_delete(work: &Work<'_>, old: &Object) -> Result<(), Status> {
    lifecycle::protect(work, old)?;
    node::validate_delete(work, old)?;
    // An eviction was looked at as such.
    if work.call.info.subresource == "eviction" {
        return Ok(());
    }
    chain::mutate(work, None, Some(old), Mode::Main).await?;
    policies::check(work, None, Some(old), Mode::Main)?;
    if webhooks::are_asked(work) {
        webhooks::validate(&Question::new(work, "", None, Some(old))).await?;
    }
    Ok(())
}
