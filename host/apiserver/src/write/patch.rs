//! Patches: the four ways to say what to change.

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use wasmk_api::{Object, Status};

use super::{Done, Mode, Work, update_object};
use crate::{
    http::{Answer, negotiate},
    read,
};

/// Answers `patch`.
///
/// # Errors
/// When the patch cannot be read or applied, or its outcome is refused.
pub(crate) async fn patch(work: &Work<'_>, body: &Bytes, mode: Mode) -> Result<Answer, Status> {
    let name = work.call.info.name.clone();
    let done = update_object(work, &name, mode, false, |current| patched(work, current, body)).await?;
    let code = if matches!(done, Done::Created(_)) { StatusCode::CREATED } else { StatusCode::OK };
    read::object(work.core, work.call, work.resource, code, &done.into_object())
}

/// The object a patch makes of the present one, with its defaults.
///
/// # Errors
/// When the patch cannot be read or applied.
pub(crate) fn patched(work: &Work<'_>, current: &Object, body: &Bytes) -> Result<Object, Status> {
    patched_as(work, current, body, &work.resource.gvk)
}

/// The same for an object of another kind than the resource's, for instance its scale.
///
/// # Errors
/// When the patch cannot be read or applied.
pub(crate) fn patched_as(work: &Work<'_>, current: &Object, body: &Bytes, gvk: &wasmk_api::Gvk) -> Result<Object, Status> {
    let kind = negotiate::content_type(&work.call.headers);
    let patch: Value = serde_json::from_slice(body).map_err(|e| Status::bad_request(e.to_string()))?;
    let mut value = Value::Object(current.0.clone());
    match &*kind {
        "application/merge-patch+json" | "application/strategic-merge-patch+json" => merge(&mut value, &patch),
        _ => return Err(negotiate::unsupported("application/merge-patch+json")),
    }
    crate::machine::convert(work.call, work.resource, gvk, value)
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    if let Value::Object(map) = target {
        for (key, value) in patch {
            if value.is_null() {
                map.shift_remove(key);
            } else {
                merge(map.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}
