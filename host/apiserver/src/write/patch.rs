//! Patches: the four ways to say what to change.

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use wasmk_api::{Cause, GroupKind, Gvk, Object, Reason, Status};
use wasmk_machinery::{
    decode::{self, FieldValidation, Format},
    patch::{self, PatchType},
};

use super::{Done, Mode, Work, update_object};
use crate::{
    http::{Answer, negotiate},
    machine, read,
};

/// What the body of a patch is.
pub(crate) enum Sent {
    /// Changes to the present object.
    Changes(PatchType, Value),
    /// A configuration to be applied.
    Apply(Value),
}

/// Reads the body of a patch.
///
/// # Errors
/// When its media type is none of a patch, or it is malformed.
pub(crate) fn read_patch(work: &Work<'_>, body: &Bytes) -> Result<Sent, Status> {
    let kind = match &*negotiate::content_type(&work.call.headers) {
        "application/json-patch+json" => PatchType::Json,
        "application/merge-patch+json" => PatchType::Merge,
        "application/strategic-merge-patch+json" if work.resource.custom().is_none() => PatchType::Strategic,
        "application/strategic-merge-patch+json" => {
            return Err(negotiate::unsupported(
                "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            ));
        }
        "application/apply-patch+yaml" => return apply_body(work, body).map(Sent::Apply),
        _ => return Err(Status::new(Reason::UnsupportedMediaType, "415: Unsupported Media Type")),
    };
    if work.call.query.get("force").is_some() {
        return Err(options_invalid(
            "FieldValueForbidden",
            "Forbidden: may not be specified for non-apply patch",
            "force",
        ));
    }
    let parsed = patch::parse(kind, body)?;
    match machine::validation(work.call)? {
        FieldValidation::Strict if !parsed.strict.is_empty() => {
            return Err(Status::bad_request(format!("strict decoding error: {}", parsed.strict.join(", "))));
        }
        FieldValidation::Warn => parsed.strict.into_iter().for_each(|warning| work.call.warn(warning)),
        _ => {}
    }
    Ok(Sent::Changes(kind, parsed.patch))
}

fn options_invalid(reason: &str, message: &str, field: &str) -> Status {
    let cause = Cause { reason: reason.into(), message: message.into(), field: field.into() };
    Status::invalid(&GroupKind { group: "meta.k8s.io".into(), kind: "PatchOptions".into() }, "", &[cause])
}

fn apply_body(work: &Work<'_>, body: &Bytes) -> Result<Value, Status> {
    if work.call.query.text("fieldManager").is_empty() {
        return Err(options_invalid(
            "FieldValueRequired",
            "Required value: is required for apply patch",
            "fieldManager",
        ));
    }
    let (value, repeated) = decode::plain(body, Format::Yaml)
        .map_err(|e| Status::bad_request(format!("error decoding YAML: {e}")))?;
    match machine::validation(work.call)? {
        FieldValidation::Strict if !repeated.is_empty() => {
            return Err(Status::bad_request(format!("error strict decoding YAML: {}", repeated.join(", "))));
        }
        FieldValidation::Warn => repeated.into_iter().for_each(|warning| work.call.warn(warning)),
        _ => {}
    }
    Ok(value)
}

/// Answers `patch`.
///
/// # Errors
/// When the patch cannot be read or applied, or its outcome is refused.
pub(crate) async fn patch(work: &mut Work<'_>, body: &Bytes, mode: Mode) -> Result<Answer, Status> {
    let sent = read_patch(work, body)?;
    work.owned = matches!(sent, Sent::Apply(_));
    work.patch = true;
    let work = &*work;
    let name = work.call.info.name.clone();
    // Applying creates what is not there.
    let creates = work.owned && mode == Mode::Main;
    let done = update_object(work, &name, mode, creates, |current| {
        let mut object = patched(work, current, &sent, mode)?;
        work.place(&mut object, &name)?;
        Ok(object)
    })
    .await?;
    let code = if matches!(done, Done::Created(_)) { StatusCode::CREATED } else { StatusCode::OK };
    read::object(work.core, work.call, work.resource, code, &done.into_object())
}

/// The object a patch makes of the present one (empty: there is none), with its defaults.
///
/// # Errors
/// When the patch cannot be applied.
pub(crate) fn patched(work: &Work<'_>, current: &Object, sent: &Sent, mode: Mode) -> Result<Object, Status> {
    patched_as(work, current, sent, &work.resource.gvk, mode.subresource())
}

/// The same for an object of another kind than the resource's, for instance its scale.
///
/// # Errors
/// When the patch cannot be applied.
pub(crate) fn patched_as(
    work: &Work<'_>,
    current: &Object,
    sent: &Sent,
    gvk: &Gvk,
    subresource: &str,
) -> Result<Object, Status> {
    let schema = machine::schema(work.resource, gvk)?;
    let live = || Value::Object(current.0.clone());
    let make = || -> Result<Value, Status> {
        Ok(match sent {
            Sent::Changes(PatchType::Json, changes) => patch::json(live(), changes)?,
            Sent::Changes(PatchType::Merge, changes) => patch::merge(live(), changes.clone()),
            Sent::Changes(PatchType::Strategic, changes) => {
                patch::strategic(schema.schema(), live(), changes.clone())?
            }
            Sent::Apply(config) => {
                let live = (!current.0.is_empty()).then(live);
                applied(work, live.as_ref(), config, gvk, &schema, subresource)?
            }
        })
    };
    machine::convert(work, gvk, make()?, || make().unwrap_or_default())
}

fn applied(
    work: &Work<'_>,
    live: Option<&Value>,
    config: &Value,
    gvk: &Gvk,
    schema: &wasmk_machinery::schema::KindSchema,
    subresource: &str,
) -> Result<Value, Status> {
    let given = config.get("metadata").and_then(|m| m.get("name")).and_then(Value::as_str).unwrap_or("");
    if live.is_none() && given.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            work.call.info.name
        )));
    }
    let force = work.call.query.flag("force");
    let value = machine::field_manager(work, gvk, schema, subresource, |manager| {
        manager.apply(live, config, &work.manager, force)
    })?;
    Ok(value)
}
