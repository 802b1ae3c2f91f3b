//! Deleting objects: preconditions, grace, finalizers, propagation.

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use wasmk_api::{Cause, GroupKind, Object, Status, Timestamp};

use super::{Work, Written, meta, put, remove};
use crate::{
    admission, alloc,
    cache::Entry,
    call::bad_dry_run,
    http::{Answer, ListOptions, respond},
    read, special,
    table::Nature,
};

/// How often a delete is tried anew after somebody else was faster.
const ATTEMPTS: usize = 128;

/// What the client says about how to delete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) preconditions: Option<Preconditions>,
    pub(crate) orphan_dependents: Option<bool>,
    pub(crate) propagation_policy: Option<String>,
    pub(crate) dry_run: Option<Vec<String>>,
}

/// What must hold of the object that is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Preconditions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

impl DeleteOptions {
    /// From the body, and the query where the body is empty.
    ///
    /// # Errors
    /// When they cannot be read or contradict each other.
    pub(crate) fn read(work: &Work<'_>, body: &Bytes) -> Result<Self, Status> {
        let query = &work.call.query;
        let mut options = if body.is_empty() { Self::default() } else { Self::from_body(work, body)? };
        if body.is_empty() {
            options.grace_period_seconds = query.number("gracePeriodSeconds")?;
            options.propagation_policy = query.get("propagationPolicy").map(Into::into);
            options.orphan_dependents = query.get("orphanDependents").map(|_| query.flag("orphanDependents"));
        }
        options.check()?;
        Ok(options)
    }

    fn from_body(work: &Work<'_>, body: &Bytes) -> Result<Self, Status> {
        crate::machine::decode_options(work.call, body)
    }

    /// Whether nothing is to be stored.
    pub(crate) fn is_dry(&self) -> bool {
        self.dry_run.iter().flatten().any(|stage| stage == "All")
    }

    /// Checks what they say.
    ///
    /// # Errors
    /// When a value is unknown or two contradict each other.
    pub(crate) fn check(&self) -> Result<(), Status> {
        let invalid = |reason: &str, message: String| {
            let cause = Cause { reason: reason.into(), message, field: "propagationPolicy".into() };
            Err(Status::invalid(
                &GroupKind { group: "meta.k8s.io".into(), kind: "DeleteOptions".into() },
                "",
                &[cause],
            ))
        };
        for value in self.dry_run.iter().flatten() {
            if value != "All" {
                return Err(bad_dry_run(value, "DeleteOptions"));
            }
        }
        match self.propagation_policy.as_deref() {
            Some(policy) if self.orphan_dependents.is_some() => invalid(
                "FieldValueInvalid",
                format!(
                    "Invalid value: {policy:?}: orphanDependents and deletionPropagation cannot be both set"
                ),
            ),
            None | Some("Foreground" | "Background" | "Orphan" | "") => Ok(()),
            Some(odd) => invalid(
                "FieldValueNotSupported",
                format!(
                    "Unsupported value: {odd:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                ),
            ),
        }
    }

    /// The finalizers of propagation an object has after this delete.
    fn finalizers(&self, old: &Object, work: &Work<'_>) -> Vec<String> {
        let has = |name: &str| old.finalizers().any(|f| f == name);
        let policy = self.propagation_policy.as_deref().filter(|p| !p.is_empty());
        let (orphan, foreground) = match (policy, self.orphan_dependents) {
            (Some(policy), _) => (policy == "Orphan", policy == "Foreground"),
            (None, Some(orphan)) => (orphan, false),
            (None, None) if has(ORPHAN) => (true, false),
            (None, None) if has(FOREGROUND) => (false, true),
            (None, None) => (work.resource.kind().orphans_by_default(), false),
        };
        let mut all: Vec<String> =
            old.finalizers().filter(|f| *f != ORPHAN && *f != FOREGROUND).map(Into::into).collect();
        if orphan {
            all.push(ORPHAN.into());
        }
        if foreground {
            all.push(FOREGROUND.into());
        }
        all
    }
}

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Answers `delete`.
///
/// # Errors
/// When the object does not exist or a precondition fails.
pub(crate) async fn delete(work: &mut Work<'_>, body: &Bytes) -> Result<Answer, Status> {
    let options = DeleteOptions::read(work, body)?;
    work.dry_run |= options.is_dry();
    let name = work.call.info.name.clone();
    let (object, gone) = delete_object(work, work.namespace(), &name, &options).await?;
    let accepted = !gone && options.orphan_dependents == Some(false);
    let code = if accepted { StatusCode::ACCEPTED } else { StatusCode::OK };
    if !gone || special::returns_deleted(work.resource) {
        return read::object(work.core, work.call, work.resource, code, &object);
    }
    let resource = work.resource.group_resource();
    let mut details = json!({ "name": name });
    if !resource.group.is_empty() {
        details["group"] = resource.group.into();
    }
    details["kind"] = resource.resource.into();
    details["uid"] = object.uid().into();
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    });
    Ok(respond::value_as(code, call_wanted(work), &status))
}

fn call_wanted(work: &Work<'_>) -> crate::http::Wanted {
    work.call.wanted
}

/// Deletes an object: its last state, and whether it is gone.
///
/// # Errors
/// When it does not exist or a precondition fails.
pub(crate) async fn delete_object(
    work: &Work<'_>,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<(Object, bool), Status> {
    for _ in 0..ATTEMPTS {
        work.core.caches.catch_up().await?;
        let entry = work
            .resource
            .cache
            .get(&crate::cache::key(namespace, name))
            .ok_or_else(|| work.not_found(name))?;
        let entry = work.resource.present_one(work.core, entry).await?;
        if let Some(done) = attempt(work, &entry, options).await? {
            return Ok(done);
        }
    }
    Err(Status::conflict(&work.resource.group_resource(), name, super::update::MODIFIED))
}

async fn attempt(
    work: &Work<'_>,
    entry: &Entry,
    options: &DeleteOptions,
) -> Result<Option<(Object, bool)>, Status> {
    let old = work.resource.shown(entry);
    preconditions(work, &old, options)?;
    if !work.trusted {
        admission::validate_delete(work, &old).await?;
    }
    let mut new = old.clone();
    let finalizers = options.finalizers(&old, work);
    new.set_meta("finalizers", if finalizers.is_empty() { Value::Null } else { json!(finalizers) });
    if special::is_namespace(work.resource) {
        return namespace(work, new, &old, entry.revision).await;
    }
    if special::is_definition(work.resource) && !old.is_deleting() {
        crate::crd::mark(&mut new, work.now);
        return store(work, new, &old, entry.revision).await;
    }
    let grace = grace(work, &old, options);
    let mut revision = entry.revision;
    if matches!(grace, Grace::Now) && work.resource.kind().default_grace(&old).is_some() {
        // Who watches sees that there is nothing left to wait for before the object is gone.
        mark(work, &mut new, 0, true);
        if finalizers.is_empty() && new != old {
            match put(work, &mut new, None, revision, Vec::new()).await? {
                Written::Done(written) => revision = written,
                _ => return Ok(None),
            }
        }
    }
    match grace {
        Grace::Waiting => return Ok(Some((old, false))),
        Grace::Now if finalizers.is_empty() => {
            let claims = alloc::releases(work, &old);
            return Ok(match remove(work, &old, revision, claims).await? {
                Written::Done(revision) => {
                    if !work.dry_run {
                        new.set_meta("resourceVersion", revision.to_string());
                        meta::order(&mut new);
                    }
                    Some((new, true))
                }
                _ => None,
            });
        }
        Grace::Now => mark(work, &mut new, 0, true),
        Grace::Seconds(seconds) => mark(work, &mut new, seconds, true),
    }
    store(work, new, &old, entry.revision).await
}

async fn store(
    work: &Work<'_>,
    mut new: Object,
    old: &Object,
    revision: u64,
) -> Result<Option<(Object, bool)>, Status> {
    meta::order(&mut new);
    if new == *old {
        return Ok(Some((new, false)));
    }
    Ok(match put(work, &mut new, None, revision, Vec::new()).await? {
        Written::Done(_) => Some((new, false)),
        _ => None,
    })
}

/// A namespace stays, terminating, until everything in it is gone and its own finalizers are.
async fn namespace(
    work: &Work<'_>,
    mut new: Object,
    old: &Object,
    revision: u64,
) -> Result<Option<(Object, bool)>, Status> {
    if !new.is_deleting() {
        new.set_meta("deletionTimestamp", work.now.to_string());
    }
    if let Some(status) = new.0.entry("status").or_insert_with(|| json!({})).as_object_mut() {
        status.insert("phase".into(), "Terminating".into());
    }
    if super::update::is_released(&new) {
        return Ok(match remove(work, old, revision, Vec::new()).await? {
            Written::Done(_) => Some((new, true)),
            _ => None,
        });
    }
    store(work, new, old, revision).await
}

enum Grace {
    /// It is being deleted already, with a grace that is not longer.
    Waiting,
    /// Nothing to wait for.
    Now,
    /// So many seconds.
    Seconds(i64),
}

fn grace(work: &Work<'_>, old: &Object, options: &DeleteOptions) -> Grace {
    let Nature::Builtin(kind) = &work.resource.nature else { return Grace::Now };
    let Some(usual) = kind.default_grace(old) else { return Grace::Now };
    let wanted = match options.grace_period_seconds {
        // A negative grace is a mistake of old clients; it means at once, as far as that goes.
        Some(seconds) if seconds < 0 => 1,
        Some(seconds) if usual > 0 => seconds,
        _ => usual,
    };
    let running = old.metadata().and_then(|m| m.get("deletionGracePeriodSeconds")).and_then(Value::as_i64);
    match (running, wanted) {
        (_, 0) => Grace::Now,
        (Some(running), wanted) if old.is_deleting() && wanted >= running && running > 0 => Grace::Waiting,
        (_, wanted) => Grace::Seconds(wanted),
    }
}

fn mark(work: &Work<'_>, object: &mut Object, seconds: i64, with_grace: bool) {
    let first = !object.is_deleting();
    let until = work.now.after(std::time::Duration::from_secs(seconds.try_into().unwrap_or(0)));
    let earlier = object.meta("deletionTimestamp").parse::<Timestamp>().is_ok_and(|old| until < old);
    if first || earlier {
        object.set_meta("deletionTimestamp", until.to_string());
    }
    if with_grace {
        object.set_meta("deletionGracePeriodSeconds", seconds);
    }
    // The generation of a kind that counts its specs rises when its deletion begins.
    if first && with_grace && object.generation() > 0 {
        meta::set_generation(object, object.generation() + 1);
    }
}

fn preconditions(work: &Work<'_>, old: &Object, options: &DeleteOptions) -> Result<(), Status> {
    let Some(wanted) = &options.preconditions else { return Ok(()) };
    let conflict = |why: String| {
        let kind =
            wasmk_api::GroupResource::new(work.resource.gvk.group.clone(), work.resource.gvk.kind.clone());
        Err(Status::conflict(&kind, old.name(), &why))
    };
    if let Some(uid) = wanted.uid.as_deref().filter(|uid| *uid != old.uid()) {
        return conflict(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            old.uid()
        ));
    }
    if let Some(version) = wanted.resource_version.as_deref().filter(|v| *v != old.resource_version()) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
            old.resource_version()
        ));
    }
    Ok(())
}

/// Answers `deletecollection`.
///
/// # Errors
/// When the options are wrong or an object cannot be deleted.
pub(crate) async fn delete_collection(work: &mut Work<'_>, body: &Bytes) -> Result<Answer, Status> {
    let options = DeleteOptions::read(work, body)?;
    work.dry_run |= options.is_dry();
    let list = ListOptions::parse(&work.call.query, false)?;
    let filter = read::filter(work.call, work.resource, &list)?;
    let revision = work.core.caches.catch_up().await?;
    let mut items = Vec::new();
    let entries = work.resource.present(work.core, work.resource.cache.list(&filter)).await?;
    for entry in entries {
        match delete_object(work, &entry.namespace, &entry.name, &options).await {
            Ok(_) => {
                let mut object = work.resource.shown(&entry);
                if work.resource.custom().is_none() {
                    object.0.shift_remove("kind");
                    object.0.shift_remove("apiVersion");
                }
                items.push(object.into_value());
            }
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    let answer = json!({
        "kind": work.resource.list_kind,
        "apiVersion": work.resource.gvk.api_version(),
        "metadata": { "resourceVersion": revision.to_string() },
        "items": items,
    });
    Ok(respond::value_as(StatusCode::OK, work.call.wanted, &answer))
}
