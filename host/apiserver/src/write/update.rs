//! Replacing objects, and what updates and patches share.

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use wasmk_api::{Cause, Object, Status};

use super::{Work, Written, meta, put, remove};
use crate::{admission, alloc, http::Answer, machine, read, table::Nature};

/// How often a change is tried anew after somebody else was faster.
const ATTEMPTS: usize = 128;
/// The conflict everybody knows.
pub(crate) const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Which part of an object an update may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Everything but the status.
    Main,
    /// The status alone.
    Status,
    /// The number of replicas: as the main resource, in the name of `scale`.
    Scale,
    /// Whatever the subresource of that name changed itself.
    Free(&'static str),
}

impl Mode {
    /// The subresource's name, empty for the main resource.
    pub(crate) fn subresource(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Free(name) => name,
        }
    }
}

/// What an update came to.
#[derive(Debug)]
pub(crate) enum Done {
    /// The object did not exist and was created.
    Created(Object),
    /// The object as it is now, whether or not it changed.
    Updated(Object),
    /// The update removed the last thing that kept the object; its last state.
    Removed(Object),
}

impl Done {
    /// The object.
    pub(crate) fn into_object(self) -> Object {
        match self {
            Self::Created(object) | Self::Updated(object) | Self::Removed(object) => object,
        }
    }
}

/// Answers `update` of an object or its status.
///
/// # Errors
/// When the object is refused.
pub(crate) async fn update(work: &Work<'_>, body: &Bytes, mode: Mode) -> Result<Answer, Status> {
    let mut sent = work.decode(body)?;
    let name = work.call.info.name.clone();
    work.place(&mut sent, &name)?;
    let creates =
        mode == Mode::Main && work.resource.kind().creates_on_update() && sent.resource_version().is_empty();
    if sent.resource_version().is_empty() && !unconditional(work) {
        let exists = work
            .core
            .caches
            .catch_up()
            .await
            .map(|_| work.resource.cache.get(&crate::cache::key(work.namespace(), &name)).is_some())?;
        if exists || !creates {
            return Err(if exists { must_name_version(work, &name) } else { work.not_found(&name) });
        }
    }
    let done = update_object(work, &name, mode, creates, |_| Ok(sent.clone())).await?;
    let code = if matches!(done, Done::Created(_)) { StatusCode::CREATED } else { StatusCode::OK };
    read::object(work.core, work.call, work.resource, code, &done.into_object())
}

fn unconditional(work: &Work<'_>) -> bool {
    match &work.resource.nature {
        Nature::Builtin(kind) => kind.allows_unconditional_update(),
        Nature::Custom(_) => false,
    }
}

fn must_name_version(work: &Work<'_>, name: &str) -> Status {
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message: "Invalid value: 0: must be specified for an update".into(),
        field: "metadata.resourceVersion".into(),
    };
    let resource = work.resource.group_resource();
    let kind = wasmk_api::GroupKind { group: resource.group, kind: resource.resource };
    Status::invalid(&kind, name, &[cause])
}

/// Changes an object: `change` makes the new one from the present one and is called again when somebody else was
/// faster. With `creates`, an object that does not exist is made from an empty one.
///
/// # Errors
/// When the change is refused, or the object it was made for has changed.
pub(crate) async fn update_object(
    work: &Work<'_>,
    name: &str,
    mode: Mode,
    creates: bool,
    change: impl Fn(&Object) -> Result<Object, Status>,
) -> Result<Done, Status> {
    for _ in 0..ATTEMPTS {
        work.core.caches.catch_up().await?;
        let key = crate::cache::key(work.namespace(), name);
        let Some(entry) = work.resource.cache.get(&key) else {
            if !creates {
                return Err(work.not_found(name));
            }
            let object = change(&Object::default())?;
            return Box::pin(super::create_object(work, object)).await.map(Done::Created);
        };
        let entry = work.resource.present_one(work.core, entry).await?;
        let old = work.resource.shown(&entry);
        let new = change(&old)?;
        let wanted = new.resource_version();
        if !wanted.is_empty() && wanted != old.resource_version() {
            return Err(Status::conflict(&work.resource.group_resource(), name, MODIFIED));
        }
        let pinned = !wanted.is_empty() && wanted != "0";
        let unpinned_change = change_ignores_version(&new, &old);
        if let Some(done) = finish(work, new, old, mode, entry.revision).await? {
            return Ok(done);
        }
        if pinned && !unpinned_change {
            return Err(Status::conflict(&work.resource.group_resource(), name, MODIFIED));
        }
    }
    Err(Status::conflict(&work.resource.group_resource(), name, MODIFIED))
}

/// A change made from the present object repeats its version, which pins nothing: it can be made again.
fn change_ignores_version(new: &Object, old: &Object) -> bool {
    new.resource_version() == old.resource_version()
}

/// Takes a changed object through the rest of the way; `None` when somebody else was faster.
async fn finish(
    work: &Work<'_>,
    mut new: Object,
    mut old: Object,
    mode: Mode,
    revision: u64,
) -> Result<Option<Done>, Status> {
    admit(work, &mut new, &mut old, mode).await?;
    meta::order(&mut new);
    if is_released(&new) && mode != Mode::Status {
        let claims = alloc::releases(work, &old);
        return Ok(match remove(work, &old, revision, claims).await? {
            Written::Done(_) => Some(Done::Removed(new)),
            _ => None,
        });
    }
    if machine::same(&new, &old) {
        return Ok(Some(Done::Updated(old)));
    }
    let claims = alloc::claims(work, &mut new, Some(&old))?;
    Ok(match put(work, &mut new, Some(&old), revision, claims).await? {
        Written::Done(_) => Some(Done::Updated(new)),
        _ => None,
    })
}

/// Brings a changed object to what may be stored, or refuses it.
async fn admit(work: &Work<'_>, new: &mut Object, old: &mut Object, mode: Mode) -> Result<(), Status> {
    let resource = work.resource;
    if new.namespace().is_empty() && !old.namespace().is_empty() {
        new.set_meta("namespace", old.namespace());
    }
    machine::manage_update(work, new, old, mode)?;
    if !work.trusted {
        admission::mutate(work, new, Some(old), mode).await?;
    }
    meta::carry(new, old, &resource.group_resource(), work.patch)?;
    prepare(work, new, old, mode);
    new.set_meta("resourceVersion", old.resource_version());
    if !work.trusted {
        machine::validate_update(work, new, old, mode)?;
    }
    for warning in machine::warnings(resource, new, Some(old)) {
        work.call.warn(warning);
    }
    if !work.trusted {
        admission::validate(work, new, Some(old), mode).await?;
    }
    Ok(())
}

/// Whether nothing keeps an object that is being deleted.
pub(crate) fn is_released(object: &Object) -> bool {
    let grace = object.metadata().and_then(|m| m.get("deletionGracePeriodSeconds")).and_then(Value::as_i64);
    let spec_finalizers = object.kind() == "Namespace"
        && object.at(&["spec", "finalizers"]).and_then(Value::as_array).is_some_and(|f| !f.is_empty());
    object.is_deleting()
        && object.finalizers().next().is_none()
        && grace.unwrap_or(0) == 0
        && !spec_finalizers
}

fn prepare(work: &Work<'_>, new: &mut Object, old: &Object, mode: Mode) {
    let metadata = new.0.get_mut("metadata").and_then(Value::as_object_mut);
    let owners = metadata.and_then(|metadata| metadata.shift_remove("managedFields"));
    prepare_fields(work, new, old, mode);
    new.set_meta("managedFields", owners.unwrap_or(Value::Null));
}

fn prepare_fields(work: &Work<'_>, new: &mut Object, old: &Object, mode: Mode) {
    match (&work.resource.nature, mode) {
        (Nature::Builtin(kind), Mode::Free("resize" | "ephemeralcontainers")) => {
            if kind.has_generation() && kind.spec_changed(new, old) {
                meta::set_generation(new, old.generation() + 1);
            }
        }
        (_, Mode::Free(_)) => {}
        (Nature::Builtin(kind), Mode::Status) => kind.prepare_status(new, old),
        (Nature::Builtin(kind), Mode::Main | Mode::Scale) => {
            kind.prepare_update(new, old);
            if kind.has_generation() && kind.spec_changed(new, old) {
                meta::set_generation(new, old.generation() + 1);
            }
        }
        (Nature::Custom(_), Mode::Status) => {
            if !same_but(new, old, &["metadata", "status"]) {
                let status = new.0.shift_remove("status");
                *new = old.clone();
                set(new, "status", status);
            }
            // But for the owners of fields, the greatest part, which are put back anyway.
            let metadata = old.metadata().into_iter().flatten().filter(|(key, _)| *key != "managedFields");
            *new.metadata_mut() = metadata.map(|(key, value)| (key.clone(), value.clone())).collect();
        }
        (Nature::Custom(version), Mode::Main | Mode::Scale) => {
            if version.has_status {
                set(new, "status", old.0.get("status").cloned());
            }
            let besides = if version.has_status { &["metadata", "status"][..] } else { &["metadata"] };
            if !same_but(new, old, besides) {
                meta::set_generation(new, old.generation() + 1);
            }
        }
    }
}

/// Whether objects are equal in all but some of their fields.
fn same_but(new: &Object, old: &Object, besides: &[&str]) -> bool {
    let counts = |(key, _): &(&String, &Value)| !besides.contains(&key.as_str());
    let (mut new_fields, mut old_fields) = (new.0.iter().filter(counts), old.0.iter().filter(counts));
    new_fields.by_ref().all(|(key, value)| old.0.get(key) == Some(value))
        && old_fields.all(|(key, _)| new.0.contains_key(key))
}

fn set(object: &mut Object, key: &str, value: Option<Value>) {
    match value {
        Some(value) => {
            object.0.insert(key.into(), value);
        }
        None => {
            object.0.shift_remove(key);
        }
    }
}
