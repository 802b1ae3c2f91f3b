//! Creating objects.

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use wasmk_api::{Object, Status};

use super::{Mode, Work, Written, meta, put};
use crate::{admission, alloc, http::Answer, machine, read, table::Nature};

/// How often a generated name or address that was taken is tried anew.
const ATTEMPTS: usize = 8;

/// Answers `create`.
///
/// # Errors
/// When the object is refused.
pub(crate) async fn create(work: &Work<'_>, body: &Bytes) -> Result<Answer, Status> {
    let object = work.decode(body)?;
    let object = create_object(work, object).await?;
    read::object(work.core, work.call, work.resource, StatusCode::CREATED, &object)
}

/// Creates an object that has its defaults already.
///
/// # Errors
/// When the object is refused.
pub(crate) async fn create_object(work: &Work<'_>, mut object: Object) -> Result<Object, Status> {
    work.place(&mut object, "")?;
    work.core.caches.catch_up().await?;
    machine::manage_create(work, &mut object)?;
    if !work.trusted {
        admission::mutate(work, &mut object, None, Mode::Main).await?;
    }
    let generate = object.name().is_empty() && !object.meta("generateName").is_empty();
    for _ in 0..ATTEMPTS {
        let mut object = object.clone();
        meta::stamp(&mut object, work.now);
        prepare(work, &mut object);
        admission::identify(work, &mut object);
        if !work.trusted {
            machine::validate_create(work, &object)?;
        }
        for warning in machine::warnings(work.resource, &object, None) {
            work.call.warn(warning);
        }
        if !work.trusted {
            admission::validate(work, &object, None, Mode::Main).await?;
        }
        let claims = alloc::claims(work, &mut object, None)?;
        match put(work, &mut object, None, 0, claims).await? {
            Written::Done(_) => {
                if work.dry_run {
                    object.set_meta("resourceVersion", Value::Null);
                }
                return Ok(object);
            }
            Written::Raced if generate => {}
            Written::Raced => return Err(exists(work, &object)),
            Written::ClaimTaken => {
                work.core.caches.catch_up().await?;
            }
        }
    }
    let mut status = Status::already_exists(&work.resource.group_resource(), object.meta("generateName"));
    status.message =
        format!("{}, the server was not able to generate a unique name for the object", status.message);
    Err(status.retry_after(1))
}

fn exists(work: &Work<'_>, object: &Object) -> Status {
    let deleting = work
        .resource
        .cache
        .get(&crate::cache::key(object.namespace(), object.name()))
        .is_some_and(|e| e.object().is_deleting());
    let mut status = Status::already_exists(&work.resource.group_resource(), object.name());
    if deleting {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}

fn prepare(work: &Work<'_>, object: &mut Object) {
    match &work.resource.nature {
        Nature::Builtin(kind) => {
            kind.prepare_create(object);
            if kind.has_generation() {
                meta::set_generation(object, 1);
            } else {
                object.set_meta("generation", Value::Null);
            }
        }
        Nature::Custom(version) => {
            if version.has_status {
                object.0.shift_remove("status");
            }
            meta::set_generation(object, 1);
        }
    }
}
