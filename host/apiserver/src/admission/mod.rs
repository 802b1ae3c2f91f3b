//! Admission: what may enter the cluster, and what is added to it on the way in.
//!
//! Mutating steps run before an object is prepared and validated, validating ones after. Each is a row with the
//! resources it looks at; one file per concern. What they need to know they read from the caches.

mod amounts;
mod asker;
mod certificates;
mod chain;
mod defaults;
mod extras;
mod kept;
mod lifecycle;
mod limits;
mod mutations;
pub(crate) mod node;
mod owners;
mod plugins;
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

pub(crate) use asker::Asker;
pub(crate) use kept::Kept;
pub(crate) use mutations::Mutation;
pub(crate) use plugins::Plugin;
pub use plugins::{AdmissionPlugins, PluginError};
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
/// The claims of the core group.
const CLAIMS: &str = "core/persistentvolumeclaims";

type Mutate = fn(&Work<'_>, &mut Object, Option<&Object>) -> Result<(), Status>;
type Validate = fn(&Work<'_>, &Object, Option<&Object>, Mode) -> Result<(), Status>;

/// The steps that change objects, with their plugins and the resources they look at (none: all), in order.
const MUTATE: [(Plugin, &[&str], Mutate); 14] = [
    (Plugin::NamespaceLifecycle, &[], lifecycle::check),
    (Plugin::LimitRanger, &[PODS], limits::mutate),
    (Plugin::ServiceAccount, &[PODS], service_account::mutate),
    (Plugin::TaintNodesByCondition, &["core/nodes"], defaults::taint_node),
    (Plugin::AlwaysPullImages, &[PODS], extras::always_pull),
    (Plugin::Priority, &[PODS], pod::priority),
    (Plugin::DefaultTolerationSeconds, &[PODS], pod::tolerations),
    (Plugin::ExtendedResourceToleration, &[PODS], extras::tolerate_extended),
    (Plugin::RuntimeClass, &[PODS], pod::runtime_class),
    (Plugin::StorageObjectInUseProtection, &[CLAIMS], defaults::protect_claim),
    (Plugin::StorageObjectInUseProtection, &["core/persistentvolumes"], defaults::volume),
    (Plugin::DefaultStorageClass, &[CLAIMS], defaults::claim_class),
    (Plugin::DefaultIngressClass, &["networking.k8s.io/ingresses"], defaults::ingress),
    (Plugin::Priority, &["scheduling.k8s.io/priorityclasses"], pod::priority_class),
];

/// The steps that only refuse.
const VALIDATE: [(Plugin, &[&str], Validate); 9] = [
    (Plugin::LimitRanger, &[PODS, CLAIMS], limits::validate),
    (Plugin::NodeRestriction, &node::WATCHED, node::validate),
    (Plugin::PodSecurity, &[PODS], pod_security::validate),
    (Plugin::PodSecurity, &["core/namespaces"], pod_security::validate_namespace),
    (Plugin::PersistentVolumeClaimResize, &[CLAIMS], defaults::resize),
    (Plugin::LimitPodHardAntiAffinityTopology, &[PODS], extras::anti_affinity),
    (Plugin::DenyServiceExternalIPs, &["core/services"], extras::external_ips),
    (Plugin::NamespaceExists, &[], extras::namespace_exists),
    (Plugin::AlwaysDeny, &[], extras::never),
];

fn applies(plugin: Plugin, resources: &[&str], work: &Work<'_>) -> bool {
    work.core.config.admission.has(plugin)
        && (resources.is_empty() || resources.contains(&&*work.resource.storage))
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
    if old.is_none() && work.core.config.admission.has(Plugin::NamespaceAutoProvision) {
        extras::provide_namespace(work).await?;
    }
    own_steps(work, object, old, mode)?;
    if mode == Mode::Scale {
        return mutate_scale(work, object, old).await;
    }
    chain::mutate(work, Some(object), old, mode).await
}

/// Lets policies and webhooks change a scale: the number goes back into what is scaled.
async fn mutate_scale(work: &Work<'_>, object: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    let old = old.and_then(|old| sub::scale_of(work.resource, old));
    let Some(mut scale) = sub::scale_of(work.resource, object) else { return Ok(()) };
    chain::mutate_as(work, Mode::Scale.subresource(), Some(&mut scale), old.as_ref()).await?;
    sub::set_scale(work.resource, &scale, object);
    Ok(())
}

fn own_steps(work: &Work<'_>, object: &mut Object, old: Option<&Object>, mode: Mode) -> Result<(), Status> {
    if !matches!(mode, Mode::Main | Mode::Scale) {
        return Ok(());
    }
    MUTATE
        .iter()
        .filter(|(p, r, _)| applies(*p, r, work))
        .try_for_each(|(_, _, step)| step(work, object, old))?;
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
    VALIDATE
        .iter()
        .filter(|(p, r, _)| applies(*p, r, work))
        .try_for_each(|(_, _, step)| step(work, new, old, mode))?;
    certificates::check(work, new, old, mode).await?;
    if work.core.config.admission.has(Plugin::OwnerReferencesPermissionEnforcement) {
        owners::check(work, new, old, mode).await?;
    }
    subjects::validate(work, new, old, mode).await?;
    if mode == Mode::Main {
        kind_hooks(work).try_for_each(|hook| hook.validate(new, old))?;
        if old.is_none() {
            kind_hooks(work).flat_map(|hook| hook.warnings(new)).for_each(|text| work.call.warn(text));
        }
    }
    // A change of scale is looked at as one of the scale.
    let scales = match mode {
        Mode::Scale => [Some(new), old].map(|o| sub::scale_of(work.resource, o?)),
        _ => [None, None],
    };
    let new_seen = scales[0].as_ref().unwrap_or(new);
    let old_seen = scales[1].as_ref().or(old);
    if work.core.config.admission.has(Plugin::ValidatingAdmissionPolicy) {
        policies::check(work, Some(new_seen), old_seen, mode).await?;
    }
    if webhooks::are_asked(work) {
        webhooks::validate(&Question::new(work, mode.subresource(), Some(new_seen), old_seen)).await?;
    }
    if mode == Mode::Main && work.core.config.admission.has(Plugin::ResourceQuota) {
        quota::charge(work, new, old).await?;
    }
    Ok(())
}

/// Lets every step refuse a deletion.
///
/// # Errors
/// When a step refuses it.
pub(crate) async fn validate_delete(work: &Work<'_>, old: &Object) -> Result<(), Status> {
    let on = |plugin| work.core.config.admission.has(plugin);
    if on(Plugin::NamespaceLifecycle) {
        lifecycle::protect(work, old)?;
    }
    if on(Plugin::NodeRestriction) {
        node::validate_delete(work, old)?;
    }
    if on(Plugin::AlwaysDeny) {
        extras::never(work, old, None, Mode::Main)?;
    }
    // An eviction was looked at as such.
    if work.call.info.subresource == "eviction" {
        return Ok(());
    }
    chain::mutate(work, None, Some(old), Mode::Main).await?;
    if on(Plugin::ValidatingAdmissionPolicy) {
        policies::check(work, None, Some(old), Mode::Main).await?;
    }
    if webhooks::are_asked(work) {
        webhooks::validate(&Question::new(work, "", None, Some(old))).await?;
    }
    Ok(())
}
